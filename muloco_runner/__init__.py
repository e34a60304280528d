"""Trains one run of DDP-AdamW, DDP-Muon, DiLoCo or MuLoCo on the ranks it is given."""

DISTRIBUTION = "muloco-sweeps"
"""Whose package this is: the programs look for this line (`muloco_sweeps`), since names can be taken."""
