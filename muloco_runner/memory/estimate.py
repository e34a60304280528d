"""The estimate: what stays, and the worst of all moments."""

from __future__ import annotations

from dataclasses import dataclass

from muloco_runner.config import DiLoCoConfig, MuonConfig, RunConfig
from muloco_runner.memory.inner_step_peak import of_muon, of_passes, of_sum
from muloco_runner.memory.outer_step_peak import OuterStep
from muloco_runner.memory.placement import Placement
from muloco_runner.memory.rank import Rank

_SHARE_OF_DEVICE = 0.92
"""What tensors may take of a GPU; the rest is the driver's, the libraries' and lost between blocks."""


@dataclass(frozen=True)
class MemoryEstimate:
    """Bytes on one rank."""

    parameters: int
    inner_optimizer: int
    method: int
    """Anchor, outer momentum and error memory."""
    step: int
    """Gradients, activations and temporaries at the worst moment of a step."""
    moment: str
    """Which moment that is."""

    @property
    def total(self) -> int:
        return self.parameters + self.inner_optimizer + self.method + self.step


def usable_bytes(device_bytes: int) -> int:
    """Of a GPU's memory, for tensors."""
    return int(_SHARE_OF_DEVICE * device_bytes)


def estimate_memory(run: RunConfig, placement: Placement) -> MemoryEstimate:
    """Peak bytes of the tensors that one rank holds while it trains."""
    here = Rank(run, placement)
    held, workers = here.held, here.workers
    if isinstance(run.inner_optimizer, MuonConfig):
        momenta = here.matrices if here.sharded else -(-here.matrices // here.replicas)
        inner = 4 * momenta + 8 * (held - here.matrices)
    else:
        inner = 8 * held
    moments = {**of_passes(here), "inner optimizer": 4.0 * here.summed + of_muon(here)}
    if here.replicas > 1 and not here.sharded:
        moments["sum over replicas"] = 4 * held + of_sum(here)
    method = 0
    if isinstance(run.method, DiLoCoConfig):
        outer = OuterStep(here, run.method)
        method = 8 * held + (4 * held * workers if outer.remembers else 0)
        moments = {name: moment + outer.under_way for name, moment in moments.items()}
        moments["outer step"] = outer.peak
    moment = max(moments, key=lambda name: moments[name])
    return MemoryEstimate(4 * held * workers, inner * workers, method, int(moments[moment]), moment)
