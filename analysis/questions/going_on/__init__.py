"""How the study was tuned, and what it still lacks."""
