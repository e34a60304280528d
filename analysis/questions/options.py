"""What a report was asked for."""

from __future__ import annotations

from dataclasses import dataclass, field

from analysis.input.cells import OK, parse_cell
from analysis.laws.fit import DEFAULT_DELTA
from analysis.questions.wall_clock import DEFAULT_BANDWIDTHS_GBITS, Assumptions
from analysis.style import Style
from muloco_runner.config import ConfigError

_MOST = 1e24
"""Parameters or tokens beyond which what follows from them leaves the range of floating point."""


@dataclass(frozen=True)
class Size:
    """A size that hyper-parameters are predicted for."""

    num_params: float
    num_tokens: float | None = None
    """None: as many for each parameter as the sizes that are compared have."""


def parse_size(text: str) -> Size:
    """`model=7b`, `N=7e9` or `N=7e9,D=1.4e11`. Raises `ConfigError` for anything else."""
    help_text = (
        f"--predict {text}: write model=7b, N=7e9 or N=7e9,D=1.4e11 (parameters, and tokens if need be; 1 to {_MOST:g})"
    )
    found: dict[str, float] = {}
    for part in text.split(","):
        name, _, number = part.partition("=")
        key = {"model": "N", "N": "N", "D": "D"}.get(name.strip())
        value, state = parse_cell(number, "count", "point")
        if key is None or key in found or state != OK or not 1 <= value <= _MOST:
            raise ConfigError(help_text)
        found[key] = value
    if "N" not in found:
        raise ConfigError(help_text)
    return Size(found["N"], found.get("D"))


@dataclass(frozen=True)
class Options:
    """Choices of the analysis; all of them are written into the report."""

    delta: float = DEFAULT_DELTA
    bootstrap: int = 1000
    seed: int = 0
    title: str = "Scaling-law report"
    command: str = ""
    budget: float | None = None
    """Tokens per parameter to compare at; None: where most sizes were trained."""
    baseline: str | None = None
    """Series that ratios are relative to; None: as `choose_baseline` says."""
    predict: tuple[Size, ...] = ()
    """Sizes whose best hyper-parameters are predicted."""
    interval_width: float = 0.1
    """Of the 95% intervals of exponents: new sizes are proposed until they are as narrow."""
    published: bool = False
    """Whether published points are drawn beside the study's."""
    bandwidths: tuple[float, ...] = DEFAULT_BANDWIDTHS_GBITS
    """Gbit/s of the link between workers, for the wall-clock page."""
    style: Style = field(default_factory=Style)
    """Order, colours, labels, partners and the baseline."""
    machine: Assumptions = field(default_factory=Assumptions)
