"""Differences between series that the paper orders: what it has, what the study found, and whether they agree.

A difference is of log losses, seed by seed, at the best settings of the series, on seeds that had no part in choosing
these. Its interval is that of `decide`, which holds the mean at every number of seeds at once with 95% confidence, so
that it does not matter when one stopped to look.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from numbers_in_words import percent, thousands
from scipy import special

from analysis.confidence import CONFIDENCE
from analysis.published.published_tables import read
from sweeps.engine.tuning.sequential import estimate

Report = Mapping[str, Any]
_POWER = 0.8
_PUBLISHED_WORKERS = 16
"""K of the paper's several workers."""


@dataclass(frozen=True)
class Contrast:
    """A sum of log losses with a sign each, of which the paper says on which side of zero it lies."""

    title: str
    weights: Mapping[str, int]


CONTRASTS = (
    Contrast("Muon against AdamW", {"DDP-Muon": 1, "DDP-AdamW": -1}),
    Contrast("DiLoCo, one worker, against AdamW", {"DiLoCo K=1": 1, "DDP-AdamW": -1}),
    Contrast("MuLoCo, one worker, against Muon", {"MuLoCo K=1": 1, "DDP-Muon": -1}),
    Contrast("MuLoCo against DiLoCo, one worker", {"MuLoCo K=1": 1, "DiLoCo K=1": -1}),
    Contrast("MuLoCo against DiLoCo, several workers", {"MuLoCo K=4": 1, "DiLoCo K=4": -1}),
    Contrast("MuLoCo, several workers against one", {"MuLoCo K=4": 1, "MuLoCo K=1": -1}),
    Contrast("DiLoCo, several workers against one", {"DiLoCo K=4": 1, "DiLoCo K=1": -1}),
    Contrast(
        "Cost of several workers, MuLoCo less DiLoCo",
        {"MuLoCo K=4": 1, "MuLoCo K=1": -1, "DiLoCo K=4": -1, "DiLoCo K=1": 1},
    ),
    Contrast("MuLoCo, several workers, against AdamW", {"MuLoCo K=4": 1, "DDP-AdamW": -1}),
)


@dataclass(frozen=True)
class Found:
    """A contrast at one size, as a share: .01 is one percent of the loss."""

    num_params: int
    seeds: int
    mean: float | None
    """None without a fresh seed that all its series have."""
    low: float
    high: float
    sees: float
    """The true difference that so many seeds tell from none with a chance of 80%."""

    @property
    def sign(self) -> int:
        """-1 or 1 where the interval lies on one side of zero, else 0."""
        return (self.low > 0) - (self.high < 0)

    @property
    def interval(self) -> str:
        """In words."""
        return f"{percent(self.low)} to {percent(self.high)}" if math.isfinite(self.low) else "none"


def found(report: Report, contrast: Contrast) -> list[Found]:
    """The contrast at every size that has all its series, at the budget that sizes are compared at."""
    sizes = sorted({one["num_params"] for one in report["best"]})
    return [one for size in sizes if (one := _found_at(report, contrast, size)) is not None]


def _found_at(report: Report, contrast: Contrast, size: int) -> Found | None:
    fresh = {
        one["series"]: {seed["seed"]: math.log(seed["loss"]) for seed in one["seed_losses"]} if one["unbiased"] else {}
        for one in report["best"]
        if one["num_params"] == size
    }
    if not fresh.keys() >= contrast.weights.keys():
        return None
    seeds = sorted(set.intersection(*(set(fresh[name]) for name in contrast.weights)))
    sums = [sum(weight * fresh[name][seed] for name, weight in contrast.weights.items()) for seed in seeds]
    num = len(sums)
    if num < 2:
        return Found(size, num, sums[0] if sums else None, -math.inf, math.inf, math.inf)
    mean, sd, half = estimate(sums, CONFIDENCE)
    sees = half + float(special.stdtrit(num - 1, _POWER)) * sd / math.sqrt(num)
    return Found(size, num, mean, mean - half, mean + half, sees)


def published(contrast: Contrast) -> list[float]:
    """The contrast at each of the paper's sizes, from the smallest."""
    table = read("muloco_final_eval_loss")
    columns = (table[name].tolist() for name in ("method", "K", "N_exact", "loss"))
    losses = {(method, workers, size): math.log(loss) for method, workers, size, loss in zip(*columns, strict=True)}
    return [
        sum(weight * losses[(*_published_name(name), size)] for name, weight in contrast.weights.items())
        for size in sorted(set(table["N_exact"].tolist()))
    ]


def _published_name(series: str) -> tuple[str, int]:
    """Method and K in the paper's table."""
    algorithm, _, workers = series.partition(" K=")
    if not workers:
        return algorithm.replace("DDP-", "DP_"), 0
    return algorithm, 1 if workers == "1" else _PUBLISHED_WORKERS


def verdict(contrast: Contrast, one: Found) -> str:
    """Whether what was found lies on the side of zero on which most of the paper's sizes do."""
    values = published(contrast)
    side = 1 if sum(value > 0 for value in values) * 2 > len(values) else -1
    if one.sign == 0:
        return "cannot be told"
    return "agrees" if one.sign == side else "differs"


def table(report: Report) -> Iterator[str]:
    """The paper's order against what was found, as lines of Markdown."""
    yield "| | paper: at how many sizes lower, differences | size | found | 95% interval | seeds | sees | |"
    yield "|---|---|---|---|---|---|---|---|"
    for contrast in CONTRASTS:
        values = published(contrast)
        below = sum(one < 0 for one in values)
        paper = f"{below} of {len(values)}, {percent(min(values))} to {percent(max(values))}"
        rows = found(report, contrast)
        for one in rows:
            cells = [contrast.title, paper, thousands(one.num_params), percent(one.mean), one.interval, str(one.seeds)]
            yield f"| {' | '.join(cells)} | {percent(one.sees, sign=False)} | **{verdict(contrast, one)}** |"
        if not rows:
            yield f"| {contrast.title} | {paper} | not run | | | | | **cannot be told** |"


def headline(report: Report) -> Iterator[str]:
    """Sentences of the first contrasts, which have one worker, at the largest size with an interval."""
    for contrast in CONTRASTS[:4]:
        for one in [one for one in found(report, contrast) if math.isfinite(one.low)][-1:]:
            yield f"- {sentence(contrast, one)}"


def sentence(contrast: Contrast, one: Found) -> str:
    """What was found, with its interval and the verdict."""
    where = f"{contrast.title} at {thousands(one.num_params)} parameters"
    if one.mean is None or not math.isfinite(one.low):
        return f"{where}: {one.seeds} fresh seeds in common, too few for an interval: cannot be told."
    said = {
        -1: f"{percent(-one.mean, sign=False)} lower",
        0: f"{percent(one.mean)}, not told from zero",
        1: f"{percent(one.mean, sign=False)} higher",
    }[one.sign]
    behind = f"95% interval {one.interval}, {one.seeds} seeds"
    return f"{where}: {said} ({behind}). The paper's order: {verdict(contrast, one)}."
