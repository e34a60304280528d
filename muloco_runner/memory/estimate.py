"""The estimate: what stays, and the peak phase of a step."""

from __future__ import annotations

from dataclasses import dataclass

from muloco_runner.config import RunConfig
from muloco_runner.distributed.message_sizes import MESSAGE_VALUES
from muloco_runner.memory.inner_step_peak import of_passes, of_sum, of_update
from muloco_runner.memory.outer_step_peak import outer_step_of
from muloco_runner.memory.placement import Placement
from muloco_runner.memory.rank import Rank

_SHARE_OF_DEVICE = 0.92
"""Share of a GPU that tensors may take; the rest is the driver's, the libraries' and lost between blocks."""


@dataclass(frozen=True)
class MemoryEstimate:
    """Bytes on one rank."""

    parameters: int
    inner_optimizer: int
    method: int
    """Anchor, outer optimizer state and error memory."""
    step: int
    """Gradients, activations and temporaries in the peak phase of a step."""
    peak_phase: str
    """Which phase that is."""

    @property
    def total(self) -> int:
        return self.parameters + self.inner_optimizer + self.method + self.step


def usable_bytes(device_bytes: int) -> int:
    """Bytes of a GPU's memory that tensors may take."""
    return int(_SHARE_OF_DEVICE * device_bytes)


def estimate_memory(run: RunConfig, placement: Placement) -> MemoryEstimate:
    """Peak bytes of the tensors that one rank holds while it trains."""
    rank, inner = Rank(run, placement), run.inner_optimizer
    outer = outer_step_of(rank)
    held, workers = rank.held, rank.workers
    owned = -(-rank.matrices // rank.replicas) if rank.shares_matrices else rank.matrices
    state = inner.matrix_state_bytes * owned + inner.other_state_bytes * (held - rank.matrices)
    phases = {**of_passes(rank), "inner optimizer": 4.0 * rank.summed + of_update(rank) + outer.updating}
    if rank.replicas > 1 and not rank.sharded:
        phases["sum over replicas"] = 4 * held + of_sum(rank)
    if rank.placement.copies > 1:
        phases["sum over copies"] = 4.0 * held + 4 * min(held, max(MESSAGE_VALUES, run.model.embedding_params))
    phases = {name: phase + outer.in_flight for name, phase in phases.items()}
    phases["outer step"] = outer.peak
    peak = max(phases, key=lambda name: phases[name])
    return MemoryEstimate(4 * held * workers, state * workers, outer.state, int(phases[peak]), peak)


def checkpoint_bytes(run: RunConfig) -> int:
    """Bytes of one checkpoint: all that stays, of all workers, in full, however many ranks hold it."""
    estimate = estimate_memory(run, Placement(device="cpu"))
    return estimate.parameters + estimate.inner_optimizer + estimate.method
