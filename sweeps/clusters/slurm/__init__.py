"""SLURM behind the engine's port."""
