"""What is open in a study and which runs would settle it: edges of grids, batches that bracket nothing, missing seeds.

Best settings, edges and how far a grid goes on are by the rule of sweeps (`muloco_runner.record.bracket`).
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import pandas as pd

from analysis.page.numbers import count, integer, number
from analysis.questions.critical_batch_size import CriticalBatch
from analysis.questions.pairwise_tests import PairTest
from analysis.questions.question import Inputs
from analysis.runs import POINT, SCALE, SETTING, TUNED
from muloco_runner.record import ONLY_ONE_BATCH, steps_beyond

BATCH = "global_batch_tokens"
KEYS = {
    "lr": "inner_optimizer.lr",
    "outer_lr": "method.outer_optimizer.lr",
    "outer_momentum": "method.outer_optimizer.momentum",
    "weight_decay": "inner_optimizer.weight_decay",
}
"""Columns of a study -> keys of a sweep file."""
_BY_DIFFERENCE = ("outer_momentum",)
"""Hyper-parameters whose grids have a common difference; those of all others have a common ratio."""
_MORE_SEEDS = 2
"""Fresh seeds that give a best setting a loss that did not choose it, with an error."""
MOST_SEEDS = 20
"""Of one setting that are asked for: what would need more is said in words."""

Kind = Literal["edge", "batch", "seeds", "size"]


@dataclass(frozen=True)
class Wish:
    """Runs that would settle one thing."""

    kind: Kind
    why: str
    like: Mapping[Any, Any]
    """Row of a setting that they differ from (columns `SETTING`)."""
    values: Mapping[str, Sequence[float]]
    """Keys of a sweep file: every combination is a run."""


@dataclass(frozen=True)
class Unwritten:
    """What is open and has no runs that could be named."""

    why: str


def name_of(row: Mapping[Any, Any]) -> str:
    """The series and its size."""
    return f"{row['series']} at {count(row['num_params'])}"


def edges(inputs: Inputs) -> Iterator[Wish | Unwritten]:
    """Values beyond the best ones that lie on the edge of their grid."""
    for row in inputs.best.to_dict("records"):
        for name, end in (edge.rsplit(" ", 1) for edge in row["edges"]):
            yield _beyond_value(inputs, row, name, 1 if end == "high" else -1)


def _beyond_value(inputs: Inputs, row: Mapping[Any, Any], name: str, direction: int) -> Wish | Unwritten:
    best = float(row[name])
    where = f"{name_of(row)}: {KEYS[name]}={number(best)} was best at a batch of {integer(row[BATCH])}"
    why = f"{where} and is the {_end(direction)} tried"
    line = _line(inputs, row, name)
    values = sorted(line)
    if name in _BY_DIFFERENCE:
        step = min((high - low for low, high in itertools.pairwise(values)), default=0.0)
        if not step:
            return Unwritten(f"{why}; nothing else is as it is there, so that no step follows")
        losses = {round((value - best) / step): loss for value, loss in line.items()}
        found = best + direction * steps_beyond(0, losses) * step
        return Wish("edge", why, row, {KEYS[name]: [float(f"{found:.12g}")]})
    ratio = ratio_of(values)
    if ratio is None:
        return Unwritten(f"{why}; no step follows from the values beside it")
    losses = {round(math.log(value / best) / math.log(ratio)): loss for value, loss in line.items()}
    return Wish("edge", why, row, {KEYS[name]: [beyond(best, ratio, direction * steps_beyond(0, losses))]})


def _line(inputs: Inputs, row: Mapping[Any, Any], name: str) -> dict[float, float]:
    """Losses of the settings that differ from a row in one hyper-parameter alone, by its value."""
    found = alike(inputs.optima.settings, row, [*POINT, *(other for other in TUNED if other != name)])
    return dict(zip(found[name].astype(float), found["selection_loss"].astype(float), strict=True))


def alike(frame: pd.DataFrame, row: Mapping[Any, Any], columns: Sequence[str]) -> pd.DataFrame:
    """The rows of `frame` that agree with `row` in these columns; empty cells are equal."""
    same = pd.Series(True, index=frame.index)
    for column in columns:
        same &= frame[column].isna() if pd.isna(row[column]) else frame[column] == row[column]
    return frame[same]


def ratio_of(values: Sequence[float]) -> float | None:
    """The smallest ratio of neighbours; None for fewer than two, or where one is not positive."""
    if len(values) < 2 or values[0] <= 0:
        return None
    return min(high / low for low, high in itertools.pairwise(values))


def beyond(value: float, ratio: float, steps: int) -> float:
    """`value` times so many powers of the ratio; those of the root of two as sweep files have them."""
    halves = 2 * math.log2(value) + steps * 2 * math.log2(ratio)
    if all(abs(one - round(one)) < 1e-9 for one in (halves, 2 * math.log2(value))):
        return float(2.0 ** (round(halves) / 2))
    return float(f"{value * ratio**steps:.12g}")


def batches(inputs: Inputs) -> Iterator[Wish | Unwritten]:
    """Batches beyond the best where it is the smallest or the largest, and until the curve has risen."""
    for row in inputs.best.to_dict("records"):
        end = row["batch_edge"]
        if end is None:
            continue
        if end == ONLY_ONE_BATCH:
            yield from (_beyond_batch(inputs, row, side, f"{name_of(row)}: one batch was tried") for side in (-1, 1))
            continue
        why = f"{name_of(row)}: a batch of {integer(row[BATCH])} was best and is the {_end(1 if end == 'high' else -1)}"
        yield _beyond_batch(inputs, row, 1 if end == "high" else -1, f"{why} tried")
    for point in inputs.critical_batches:
        if "right" in (point.censored or "") and point.largest_good_batch != point.best_batch:
            there = _at_batch(inputs, point)
            largest = f"the loss at the largest batch tried, {integer(there[BATCH])}, is within 1% of the best"
            yield _beyond_batch(inputs, there, 1, f"{name_of(there)}: {largest}")


def _beyond_batch(inputs: Inputs, row: Mapping[Any, Any], direction: int, why: str) -> Wish | Unwritten:
    of_series = alike(inputs.optima.points, row, ["series"])
    of_scale = alike(of_series, row, SCALE)
    # The step of other sizes where there is none at this one.
    steps = (ratio_of(sorted(some[BATCH].astype(float).unique())) for some in (of_scale, of_series))
    ratio = next((step for step in steps if step is not None), None)
    if ratio is None:
        return Unwritten(f"{why}; no step follows from one batch")
    batch = row[BATCH] * ratio**direction
    if batch < 1 or abs(batch - round(batch)) > 1e-6 * batch:
        return Unwritten(f"{why}; the next one by the grid's own step, {batch:,.1f}, is no whole number of tokens")
    return Wish("batch", why, row, {BATCH: [round(batch)]})


def _at_batch(inputs: Inputs, point: CriticalBatch) -> Mapping[Any, Any]:
    """The best setting at the largest good batch of a curve."""
    found = alike(inputs.optima.points, {**vars(point), BATCH: point.largest_good_batch}, POINT)
    return dict(found.iloc[0].to_dict())


def seeds(inputs: Inputs, pairs: Sequence[PairTest]) -> Iterator[Wish | Unwritten]:
    """Seeds of best settings: for a loss and an error of their own, and for pairs that no test told of."""
    largest = inputs.best["num_params"].max()
    there = set(inputs.best.loc[inputs.best["num_params"] == largest, "series"])
    asked: dict[str, tuple[int, str]] = {}
    for pair in pairs:
        if (
            pair.seeds_needed is None
            or pair.num_params not in (largest, None)
            or not {pair.first, pair.second} <= there
        ):
            continue
        what = f"{pair.first} against {pair.second} needs {pair.seeds_needed} seeds of each to be told apart"
        if pair.seeds_needed > MOST_SEEDS:
            yield Unwritten(f"At {count(largest)}: {what} by the gap seen now, more than are asked for here")
            continue
        for name in (pair.first, pair.second):
            asked[name] = max(asked.get(name, (0, "")), (pair.seeds_needed, what))
    for row in inputs.best.to_dict("records"):
        fresh = int(row["seeds"]) if row["unbiased"] else 0
        wanted, why = (_MORE_SEEDS, "more seeds give its loss, by seeds that did not choose it, and an error")
        if row["num_params"] == largest and row["series"] in asked:
            wanted, why = max((wanted, why), asked[row["series"]])
        if fresh < wanted and not (row["unbiased"] and fresh >= _MORE_SEEDS and wanted == _MORE_SEEDS):
            used = set(alike(inputs.study.runs, row, SETTING)["seed"].tolist())
            new = itertools.islice((seed for seed in itertools.count() if seed not in used), wanted - fresh)
            has = f"the best setting has {len(used)} seed{'s' if len(used) != 1 else ''}"
            yield Wish("seeds", f"{name_of(row)}: {has}; {why}", row, {"seed": list(new)})


def _end(direction: int) -> str:
    return "largest" if direction > 0 else "smallest"
