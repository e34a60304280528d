"""Training runs as work of the engine."""
