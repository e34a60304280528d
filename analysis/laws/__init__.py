"""Scaling laws, how they are fitted, and how sure the fits are."""
