"""The lattice of one key of a study: all values that it may take.

The values of a sweep file go on by their own step, a common ratio, else a common difference, up to the bounds that are
given, as far as the run's config allows.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass

from muloco_runner.config import ConfigError, RunConfig
from muloco_runner.record import LEAST_STEPS
from sweeps.engine.tuning.study import BATCH, Axis

_REACH = 10
"""Steps beyond the file's values where no bound is given."""
_LONGEST_REACH = 100
"""Steps beyond them where a bound is given, however far away it lies."""
_SAME = 1e-2
"""Of a step: what a value may lie off its lattice; people write 0.022 for 2^-5.5."""


@dataclass(frozen=True)
class Bounds:
    """How far the values of one key may go."""

    low: float | None = None
    high: float | None = None


def axis_of(
    key: str,
    label: str,
    values: Sequence[float],
    bounds: Bounds,
    runs: Sequence[RunConfig],
    check: Callable[[RunConfig], None],
) -> Axis:
    """Return the lattice of one key of the group `label`, from the lowest to the highest value that `bounds` allow and
    that makes of each of `runs`, one of every kind in the group, a run that `check` does not refuse by `ConfigError`.

    `values` are the file's, growing. Too few to have a step, without one, or outside the bounds raise `ConfigError`.
    """
    written = ", ".join(f"{value:.6g}" for value in values)
    if len(values) < 2:
        raise ConfigError(
            f"extend: {key} has one value ({written}) for {label}, so there is no step to go on by: give it two or "
            "more, or leave these runs to a sweep of their own"
        )
    numbered = _steps(values)
    if numbered is None:
        raise ConfigError(
            f"extend: {key} has values without a common ratio or difference ({written}) for {label}: give them one, "
            "such as sqrt2(-12..-8) or [0.001, 0.002, 0.004]"
        )
    for name, bound, is_inside in (
        ("low", bounds.low, bounds.low is not None and bounds.low > values[0]),
        ("high", bounds.high, bounds.high is not None and bounds.high < values[-1]),
    ):
        if is_inside:
            raise ConfigError(
                f"extend.keys.{key}.{name}={bound:g} lies inside the grid of {label} ({written}): bounds are for what "
                "is added; narrow the grid itself by its values"
            )
    own, going_on = numbered
    below, why_below = _allowed(key, (going_on(-n) for n in _counted(bounds.low)), bounds, runs, check)
    above, why_above = _allowed(key, (going_on(max(own) + n) for n in _counted(bounds.high)), bounds, runs, check)
    inside = [own.get(n, going_on(n)) for n in range(max(own) + 1)]
    first = len(below)
    return Axis(key, (*reversed(below), *inside, *above), first, first + max(own), below=why_below, above=why_above)


def _counted(bound: float | None) -> range:
    """Steps beyond the file's values."""
    return range(1, (_REACH if bound is None else _LONGEST_REACH) + 1)


def _allowed(
    key: str, values: Iterator[float], bounds: Bounds, runs: Sequence[RunConfig], check: Callable[[RunConfig], None]
) -> tuple[list[float], str]:
    """The values up to the first that a bound does not allow or that makes no run, and why it makes none."""
    found: list[float] = []
    for value in values:
        low, high = bounds.low, bounds.high
        if (low is not None and value < low * (1 - 1e-9)) or (high is not None and value > high * (1 + 1e-9)):
            break
        if why := why_no_run(key, value, runs, check):
            return found, why
        found.append(int(value) if key == BATCH else value)
    return found, ""


def why_no_run(key: str, value: float, runs: Sequence[RunConfig], check: Callable[[RunConfig], None]) -> str:
    """Return why another value of one key makes no run of one of `runs` that could be added; empty where it does."""
    if key == BATCH and (value != round(value) or value < 1):
        return f"{key}={value:g} is no whole number of tokens"
    said = next((why for run in runs if (why := why_not_added(run, {key: value}, check))), "")
    return said if not said or f"{key}=" in said else f"{key}={value:.12g}: {said}"


def why_not_added(run: RunConfig, values: Mapping[str, float], check: Callable[[RunConfig], None]) -> str:
    """Return why the run with those values is none that could be added to its series; empty where it is one."""
    try:
        made = run.with_values(values)
        check(made)
    except ConfigError as error:
        return " ".join(str(error).split())
    if made.algorithm != run.algorithm:  # DiLoCo without momentum and at outer lr 1 is local SGD
        return f"a run of {made.algorithm}, which is another series"
    if made.global_batch_tokens > run.global_batch_tokens and made.num_steps < LEAST_STEPS:
        return f"a run of {made.num_steps} steps, fewer than {LEAST_STEPS}"
    return ""


class _Lattice:
    """Values at whole numbers of steps from the first one of a file."""

    def __init__(self, first: float, step: float, by_ratio: bool) -> None:
        self.first, self.step, self.by_ratio = first, step, by_ratio
        # As `sqrt2(..)` and `pow2(..)` write them: the same value is the same run, to the last bit.
        exponents = (2 * math.log2(first), 2 * math.log2(step)) if by_ratio else (0.5, 0.5)
        self.halves = (
            (round(exponents[0]), round(exponents[1]))
            if all(math.isclose(one, round(one), rel_tol=1e-12, abs_tol=1e-12) for one in exponents)
            else None
        )

    def __call__(self, number: int) -> float:
        if self.halves is not None:
            return float(2.0 ** ((self.halves[0] + number * self.halves[1]) / 2))
        # Not more digits than people write: 0.3 and no 0.30000000000000004.
        if not self.by_ratio and abs(self.first + self.step * number) < 1e-9 * self.step:
            return 0.0
        value = self.first * self.step**number if self.by_ratio else self.first + self.step * number
        return float(f"{value:.12g}")

    def number_of(self, value: float) -> int | None:
        """None where the value is not on the lattice."""
        steps = (
            math.log(value / self.first) / math.log(self.step) if self.by_ratio else (value - self.first) / self.step
        )
        return round(steps) if abs(steps - round(steps)) <= _SAME else None


def _steps(values: Sequence[float]) -> tuple[dict[int, float], _Lattice] | None:
    """The values by their numbers of steps, and the lattice; None where they have neither a common ratio, of which some
    powers may be left out, nor all the same difference."""
    pairs = list(itertools.pairwise(values))
    differences = [high - low for low, high in pairs]
    found = []
    if values[0] > 0:
        found.append(_Lattice(values[0], min(high / low for low, high in pairs), True))
    if max(differences) - min(differences) <= _SAME * min(differences):
        found.append(_Lattice(values[0], min(differences), False))
    for lattice in found:
        numbers = [lattice.number_of(value) for value in values]
        if all(number is not None for number in numbers):
            return {number: value for number, value in zip(numbers, values, strict=True) if number is not None}, lattice
    return None
