"""Whole sweeps on a cluster that exists in numbers alone."""
