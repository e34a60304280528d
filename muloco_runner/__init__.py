"""Trains one run of DDP-AdamW, DDP-Muon, DiLoCo or MuLoCo on the ranks it is given."""
