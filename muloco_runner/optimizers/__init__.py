"""Inner optimizers: Muon, usable on its own, and what a run's config builds."""

from muloco_runner.optimizers.build import build_inner_optimizer
from muloco_runner.optimizers.muon import Muon

__all__ = ["Muon", "build_inner_optimizer"]
