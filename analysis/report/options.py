"""What a report was asked for."""

from __future__ import annotations

from dataclasses import dataclass, field

from analysis.questions.wall_clock import DEFAULT_BANDWIDTHS_GBITS, Assumptions


@dataclass(frozen=True)
class Options:
    """Choices of the analysis; all of them are written into the report."""

    delta: float = 1e-3
    bootstrap: int = 1000
    seed: int = 0
    title: str = "Scaling-law report"
    command: str = ""
    budget: float | None = None
    """Tokens per parameter to compare at; None: where most sizes were trained."""
    published: bool = False
    """Whether published points are drawn beside the study's."""
    bandwidths: tuple[float, ...] = DEFAULT_BANDWIDTHS_GBITS
    """Gbit/s of the link between workers, for the wall-clock page."""
    machine: Assumptions = field(default_factory=Assumptions)
