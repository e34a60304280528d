"""Decides what runs where and when, for any work on any cluster. Pure: no I/O, no torch, nothing of one scheduler."""
