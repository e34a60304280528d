"""Plans, submits, watches and resubmits many runs under quotas. Never imports torch."""

DISTRIBUTION = "muloco-sweeps"
"""Whose package this is: the programs look for this line (`muloco_sweeps`), since names can be taken."""
