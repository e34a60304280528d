"""Whole sweeps on a simulated cluster."""
