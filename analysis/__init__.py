"""Turns run records into optima, fits, figures and a report. Never imports torch, never talks to SLURM."""

DISTRIBUTION = "muloco-sweeps"
"""Whose package this is: the programs look for this line (`muloco_sweeps`), since names can be taken."""
