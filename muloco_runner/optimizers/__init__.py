"""Inner optimizers: Muon, MuLoCo with one worker and GPA, usable on their own, and what a run's config builds."""

from muloco_runner.optimizers.build import build_inner_optimizer
from muloco_runner.optimizers.gpa import GPA
from muloco_runner.optimizers.muloco1 import MuLoCo1
from muloco_runner.optimizers.muon import Muon
from muloco_runner.optimizers.parameter_groups import describe_groups, parameter_groups, parameter_kinds

__all__ = ["GPA", "MuLoCo1", "Muon", "build_inner_optimizer", "describe_groups", "parameter_groups", "parameter_kinds"]
