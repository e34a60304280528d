"""Turns run records into optima, fits, figures and a report. Never imports torch, never talks to SLURM."""
