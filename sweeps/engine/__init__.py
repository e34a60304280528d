"""Decides what runs where and when, for any work on any cluster. Pure: no I/O, no scheduler's words, no torch."""
