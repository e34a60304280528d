"""Tries classes from outside the package before anything is queued, in a process of its own that may load torch."""
