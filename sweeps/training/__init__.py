"""Training runs as work of the engine."""

from sweeps.training.entry import preload, train

__all__ = ["preload", "train"]
