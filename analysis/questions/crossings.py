"""Where the laws of two series cross: the compute below which the one is better and above which the other.

The difference of the logs of both reducible losses is a straight line in log compute. Its 95% interval is found at each
compute from the resamples that drive all ratios; what of the data's compute has an interval with zero in it is the
interval of the crossing (Fieller's inversion), which holds the true one as often as those intervals hold the truth.
Which series is better at an end of the data is known where that interval leaves zero out and the law, predicting the
largest size from the smaller ones, misses by less than the gap.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal, get_args

import numpy as np

from analysis.laws.solver import Array
from analysis.page.numbers import count, flops, integer
from analysis.page.page_table import Column, Table
from analysis.questions.compared_pairs import other_pairs, partners, stated_pairs
from analysis.questions.iso_loss import IsoLoss, loss_at, prediction_error, widening
from analysis.questions.question import NOT_IDENTIFIED, Inputs, Question

Standing = Literal["cross", "do not cross within the data", "cannot be told"]
_GRID = 400
_ALL_PAIRS_UP_TO = 8
"""Series beyond which the pairs that were stated beforehand are compared alone."""


@dataclass(frozen=True)
class Crossing:
    """Two series with laws of loss against compute."""

    first: str
    second: str
    standing: Standing
    flops: float | None
    """Where the laws cross, inside the data of both."""
    low: float | None
    """Below this compute one is better for sure; None where that is not known of any compute in the data."""
    high: float | None
    num_params: float | None
    """The size at `flops`, at the tokens per parameter that sizes are compared at."""
    better_below: str | None
    """The series with the lower loss at the smallest compute, where that is known."""
    better_above: str | None
    data: tuple[float, float] | None
    """Compute that both were trained with."""
    prediction_error: float | None = None
    """The larger of both series' errors at the largest size, predicted from the smaller ones, relative to the loss."""


@dataclass(frozen=True)
class Crossings:
    """Every pair, or why there are none."""

    pairs: list[Crossing]
    all_pairs: bool
    """False: each series against the baseline and its partner, as there are many."""
    reason: str | None = None


def compute(inputs: Inputs) -> Crossings:
    """Crossings of all series with a law."""
    iso = inputs.iso_loss
    if isinstance(iso, str):
        return Crossings([], True, iso)
    if not iso.fit.draws:
        return Crossings([], True, "without resamples (--bootstrap) no interval is known")
    names = [name for name in inputs.study.series if name in iso.series]
    wanted = stated_pairs(names, inputs.baseline, partners(inputs.best, inputs.options.style))
    all_pairs = len(names) <= _ALL_PAIRS_UP_TO
    wanted += other_pairs(names, wanted) if all_pairs else []
    ranges = inputs.best.groupby("series", observed=True)["flops"].agg(["min", "max"])
    pairs = []
    for first, second in wanted:
        low = float(ranges.loc[[first, second], "min"].max())
        high = float(ranges.loc[[first, second], "max"].min())
        pairs.append(cross(iso, first, second, low, high, inputs.budget))
    return Crossings(pairs, all_pairs, None if pairs else "fewer than two series have a law of loss against compute")


def cross(iso: IsoLoss, first: str, second: str, low: float, high: float, budget: float) -> Crossing:
    """Where two laws cross between `low` and `high` flops."""
    if not high > low:
        return Crossing(first, second, "cannot be told", None, None, None, None, None, None, None)
    grid = np.linspace(np.log(low), np.log(high), _GRID)
    point = {name: np.array([one.value]) for name, one in iso.fit.parameters.items()}
    value = _difference(point, first, second, grid)[0]
    reach = np.quantile(_difference(iso.fit.draws, first, second, grid), [0.025, 0.975], axis=0) - value
    lowest, highest = value + widening(iso.scales) * np.array([np.minimum(reach[0], 0), np.maximum(reach[1], 0)])
    side = np.where(highest < 0, -1, np.where(lowest > 0, 1, 0))
    error = prediction_error(iso, first, second)
    gaps = [abs(loss_at(iso.fit, first, c) / loss_at(iso.fit, second, c) - 1) for c in (low, high)]
    below, above = (
        {-1: first, 0: None, 1: second}[int(side[i])] if error is None or error <= gap else None
        for i, gap in zip((0, -1), gaps, strict=True)
    )
    if below and above and (side == side[0]).all():
        return Crossing(
            first, second, "do not cross within the data", None, None, None, None, below, above, (low, high), error
        )
    at = float(np.exp(np.interp(0.0, *_rising(value, grid)))) if value[0] * value[-1] < 0 else None
    return Crossing(
        first,
        second,
        "cross" if below and above and below != above else "cannot be told",
        at,
        _end(grid, highest if below == first else lowest) if below else None,
        _end(grid[::-1], (highest if above == first else lowest)[::-1]) if above else None,
        float(np.sqrt(at / (6 * budget))) if at is not None else None,
        below,
        above,
        (low, high),
        error,
    )


def _end(grid: Array, bound: Array) -> float | None:
    """Where `bound`, straight between points of `grid`, first loses the sign that it begins with; None: nowhere."""
    lost = np.flatnonzero(bound * bound[0] <= 0)
    if not len(lost):
        return None
    i = int(lost[0])
    share = bound[i - 1] / (bound[i - 1] - bound[i])
    return float(np.exp(grid[i - 1] + share * (grid[i] - grid[i - 1])))


def _rising(value: Array, grid: Array) -> tuple[Array, Array]:
    """`grid` as a function of the rising `value`."""
    return (value, grid) if value[-1] > value[0] else (value[::-1], grid[::-1])


def _difference(parameters: Mapping[str, Array], first: str, second: str, log_c: Array) -> Array:
    """Log reducible loss of the first over the second, (draws, points)."""
    level = np.log(parameters[f"A[{first}]"]) - np.log(parameters[f"A[{second}]"])
    slope = parameters[f"alpha[{first}]"] - parameters[f"alpha[{second}]"]
    return np.asarray(level[:, None] - slope[:, None] * log_c)


def findings(result: Crossings) -> list[str]:
    """One sentence for each pair that crosses."""
    return [_sentence(one) for one in result.pairs if one.standing == "cross"]


def _sentence(one: Crossing) -> str:
    interval = f" [{flops(one.low)}, {flops(one.high)}]" if one.low and one.high else ""
    return (
        f"The laws of {one.better_below} and {one.better_above} cross at {flops(one.flops or 0)}{interval} FLOPs, "
        f"{count(one.num_params or 0)} parameters: below, {one.better_below} has the lower loss, above, "
        f"{one.better_above}."
    )


def section(result: Crossings) -> list[str]:
    """What a crossing is, and how many pairs have one."""
    if result.reason:
        return [f"{NOT_IDENTIFIED}{result.reason}."]
    which = "Every pair of laws" if result.all_pairs else "The law of each series with the baseline's and its partner's"
    counted = Counter(one.standing for one in result.pairs)
    each = "; ".join(f"{integer(counted[standing])} {standing}" for standing in get_args(Standing) if counted[standing])
    return [
        f"{which}, within the compute that both were trained with: {each}. The interval of a crossing is where the "
        "95% interval of the difference holds zero; an end that lies beyond the data is not known. Nor is which series "
        "is better where the law misses the largest size, predicted from the smaller ones, by more than the gap."
    ]


def rows(result: Crossings) -> list[Table]:
    """One row a pair."""
    table = Table(
        "crossings",
        "Compute at which the laws of two series cross",
        [
            Column("first"), Column("second"), Column("standing"), Column("compute", "flops", "FLOPs"),
            Column("not below", "flops", "FLOPs"), Column("not above", "flops", "FLOPs"),
            Column("size", "count", "parameters"), Column("better below"), Column("better above"),
            Column("error at the largest size", "spread"), Column("compute of both", "flops", "FLOPs"),
        ],
        [
            [
                one.first, one.second, one.standing, one.flops, one.low, one.high, one.num_params,
                one.better_below or "not known", one.better_above or "not known",
                one.prediction_error, one.data,
            ]
            for one in result.pairs
        ],
    )  # fmt: skip
    return [table] if table.rows else []


QUESTION: Question[Any] = Question(
    name="crossings",
    title="Where curves cross",
    result=Crossings,
    compute=compute,
    findings=findings,
    section=section,
    rows=rows,
)
