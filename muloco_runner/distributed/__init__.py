"""Ranks, the groups they form, and what they send each other."""
