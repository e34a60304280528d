"""Which setting is best, whether it lies on the edge of its grid, and which batches bracket the critical one.

One rule for sweeps, which extend their grids by it, and for reports. Standard library alone.

A run that diverged is a result: a value that was tried, and never the best. So a cliff brackets as a worse loss does.
"""

from __future__ import annotations

from collections.abc import Hashable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal, NamedTuple, TypeVar

PLATEAU = 1.01
"""Losses up to 1% above the best are as good for most purposes; a batch curve has risen once it is above that."""

LEAST_STEPS = 10
"""Batches do not grow until a run has fewer inner steps than this."""
Edge = Literal["low", "high"]
ONLY_ONE_BATCH = "only one batch"
P = TypeVar("P", bound=Hashable)
S = TypeVar("S", bound=Hashable)


class Tried(NamedTuple):
    """What is known of one setting."""

    seeds: frozenset[int]
    """Those with a loss."""
    diverged: bool
    """Whether it diverged at any seed."""


def choosing_seeds(points: Mapping[P, Mapping[S, Tried]]) -> tuple[dict[P, dict[S, frozenset[int]]], bool]:
    """Return the seeds whose mean loss each setting is compared by, and whether all settings share them.

    `points` are the batches of one series and scale, each with its settings. A setting that diverged at any seed takes
    no part, unless all of its batch did. Settings are compared on the seeds that all of them have, else on those that
    all of one batch have, else each on its own: a lucky seed of one setting wins nothing.
    """
    taking_part = {point: _taking_part(settings) for point, settings in points.items()}
    shared = _shared(seeds for settings in taking_part.values() for seeds in settings.values())
    if shared:
        return {point: dict.fromkeys(settings, shared) for point, settings in taking_part.items()}, True
    out = {}
    for point, settings in taking_part.items():
        of_batch = _shared(settings.values())
        out[point] = dict.fromkeys(settings, of_batch) if of_batch else settings
    return out, False


def _taking_part(settings: Mapping[S, Tried]) -> dict[S, frozenset[int]]:
    is_clean = any(not tried.diverged for tried in settings.values())
    return {
        setting: tried.seeds for setting, tried in settings.items() if tried.seeds and not (tried.diverged and is_clean)
    }


def _shared(seeds: Iterable[frozenset[int]]) -> frozenset[int]:
    found = list(seeds)
    return frozenset.intersection(*found) if found else frozenset()


def best_of(losses: Mapping[S, float]) -> S | None:
    """Return the setting with the lowest loss, the first of several; None where there is none."""
    return min(losses, key=lambda setting: losses[setting], default=None)


def edge_of(value: float, lowest: float, highest: float) -> Edge | None:
    """Return the end of what was tried on which the best `value` lies; None inside, or where one value was tried."""
    if lowest < highest and value in (lowest, highest):
        return "low" if value == lowest else "high"
    return None


def batch_edge_of(batch: float, lowest: float, highest: float) -> str | None:
    """Return `edge_of` the batch, or that only one was tried."""
    return ONLY_ONE_BATCH if lowest == highest else edge_of(batch, lowest, highest)


def steps_beyond(here: int, losses: Mapping[int, float], is_added: bool = False) -> int:
    """Return by how many steps a grid goes on beyond its edge `here`, the best; `losses` along it are by position.

    To the minimum of the parabola through the three values next to it, at least one step and at most twice as far as
    they reach. Without three, or where that has none: by one step, or, where the edge is itself a value that was added,
    by twice the last.
    """
    near = sorted(losses, key=lambda position: abs(position - here))[:3]
    step = 1 if not is_added or len(near) < 2 else 2 * abs(near[1] - here)
    if len(near) == 3:
        first, second = abs(near[1] - here), abs(near[2] - here)
        slopes = [(losses[near[0]] - losses[near[1]]) / first, (losses[near[1]] - losses[near[2]]) / (second - first)]
        curvature = (slopes[0] - slopes[1]) / (second / 2)
        if curvature > 0:
            step = min(max(round(-(slopes[0] + curvature * first / 2) / curvature), 1), 2 * second)
    return step


@dataclass(frozen=True)
class BatchBracket:
    """What the best losses at growing batches say of the critical batch. Positions in that sequence."""

    best: int
    largest_good: int
    """The last batch within `PLATEAU` of the best loss."""
    first_risen: int | None
    """The batch after it: the critical batch lies between the two; None where no batch is bad enough."""

    @property
    def censored(self) -> str | None:
        """right: no tried batch is bad enough; left: the best batch is the smallest, so the best loss is not known."""
        ends = [*(["left"] if self.best == 0 else []), *(["right"] if self.first_risen is None else [])]
        return " and ".join(ends) or None


def bracket_batches(losses: Sequence[float]) -> BatchBracket:
    """Return what brackets the critical batch; `losses` are the best at each batch, by growing batch, at least one."""
    best = min(range(len(losses)), key=losses.__getitem__)
    good = max(n for n, loss in enumerate(losses) if loss <= PLATEAU * losses[best])
    return BatchBracket(best, good, good + 1 if good + 1 < len(losses) else None)
