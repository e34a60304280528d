"""What every scale (N, D) says of its best hyper-parameters and critical batch: a value, or a bound.

A best learning rate or batch is the minimum of a parabola in the logarithm through the best setting and its neighbours.
Its plateau, within which the loss rises by 1%, says how well it is known. Where the best setting is the last of its
grid the optimum lies beyond the middle between it and its neighbour: a bound, not a value.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Literal, cast

import numpy as np
import pandas as pd

from analysis.laws.solver import Array
from analysis.optima import Optima
from analysis.questions.critical_batch_size import CriticalBatch, find_critical_batches
from analysis.runs import SCALE
from muloco_runner.record import PLATEAU

Quantity = Literal["critical batch, 1% rule", "critical batch, 20% overhead", "best batch", "best learning rate"]
COLUMNS: dict[Quantity, tuple[str, ...]] = {
    "critical batch, 1% rule": ("global_batch_tokens", "num_params", "num_tokens", "loss"),
    "critical batch, 20% overhead": ("global_batch_tokens", "num_params", "num_tokens", "loss"),
    "best batch": ("global_batch_tokens", "num_params", "num_tokens", "loss"),
    "best learning rate": ("lr", "num_params", "num_tokens", "loss"),
}
"""Columns that each rests on."""


@dataclass(frozen=True)
class ScaleObservation:
    """One quantity at one scale: `low` = `high` where it is known, None where it is unbounded on that side."""

    num_params: float
    num_tokens: float
    low: float | None
    high: float | None
    width: float = 1.0
    """Half of the plateau in units of ln: how far the quantity may move until the loss rises by 1%."""

    @property
    def known(self) -> bool:
        return self.low is not None and self.low == self.high


def observe(optima: Optima, series: str, quantity: Quantity) -> tuple[list[ScaleObservation], int]:
    """The scales of a series that say something of `quantity`, and how many do not."""
    best = optima.best[optima.best["series"] == series]
    match quantity:
        case "best batch":
            found = list(_best_batches(optima.points[optima.points["series"] == series]))
        case "best learning rate":
            found = list(_best_learning_rates(optima.settings[optima.settings["series"] == series], best))
        case "critical batch, 1% rule" | "critical batch, 20% overhead":
            found = list(_critical_batches(optima, series, quantity))
    return found, len(best) - len(found)


def _critical_batches(optima: Optima, series: str, quantity: Quantity) -> Iterator[ScaleObservation]:
    mine = optima.points[optima.points["series"] == series]
    for budget in sorted(mine["tokens_per_parameter"].unique()):
        at_budget = mine[mine["tokens_per_parameter"] == budget]
        largest = at_budget.groupby("num_params")["global_batch_tokens"].max()
        for point in find_critical_batches(replace(optima, points=mine), budget):
            low, high = _ends(point, float(largest[point.num_params]), quantity)
            if low is not None or high is not None:
                yield ScaleObservation(float(point.num_params), float(point.num_tokens), low, high)


def _ends(point: CriticalBatch, largest: float, quantity: Quantity) -> tuple[float | None, float | None]:
    """Where the critical batch lies. Where the best loss is not known the crossing bounds it from above."""
    if quantity == "critical batch, 20% overhead" and point.overhead_factor is None:
        return None, None
    crossing = point.interpolated if quantity == "critical batch, 1% rule" else point.overhead20
    best_unknown = "left" in (point.censored or "")
    if crossing is None:
        return (None, None) if best_unknown else (largest, None)
    return (None if best_unknown else crossing), crossing


def _best_batches(points: pd.DataFrame) -> Iterator[ScaleObservation]:
    for _, curve in points.groupby(SCALE, sort=True):
        rows = curve.sort_values("global_batch_tokens")
        best = rows.iloc[int(rows["selection_loss"].to_numpy().argmin())]
        found = locate(*(rows[name].to_numpy(dtype=float) for name in ("global_batch_tokens", "selection_loss")))
        if found is not None:
            yield ScaleObservation(float(best["num_params"]), float(best["num_tokens"]), *found)


def _best_learning_rates(settings: pd.DataFrame, best: pd.DataFrame) -> Iterator[ScaleObservation]:
    """At each scale's best batch; the best of the other hyper-parameters at each rate."""
    for row in best.sort_values(SCALE).to_dict("records"):
        here = np.logical_and.reduce([settings[key] == row[key] for key in (*SCALE, "global_batch_tokens")])
        cells: pd.DataFrame = settings[np.asarray(here, dtype=bool)]
        lowest = cells[cells["lr"].notna()].groupby("lr")["selection_loss"].min().sort_index()
        found = locate(lowest.index.to_numpy(dtype=float), lowest.to_numpy(dtype=float))
        if found is None:
            continue
        low, high, width = found
        edges = cast("list[str]", row["edges"])
        if (low is None and "lr low" not in edges) or (high is None and "lr high" not in edges):
            # Beyond the last rate that finished others diverged: the optimum is there, known to the grid's step.
            low = high = float(row["lr"])
        yield ScaleObservation(float(row["num_params"]), float(row["num_tokens"]), low, high, width)


def locate(tried: Array, loss: Array) -> tuple[float | None, float | None, float] | None:
    """Ends between which the best of `tried` lies, and half its plateau in ln; None with fewer than two."""
    if len(tried) < 2:
        return None
    x, y = np.log(tried), np.log(loss)
    i = int(y.argmin())
    if i == 0:
        return None, float(np.exp(x[:2].mean())), float(x[1] - x[0])
    if i == len(x) - 1:
        return float(np.exp(x[-2:].mean())), None, float(x[-1] - x[-2])
    (before, after), rise = (x[i] - x[i - 1], x[i + 1] - x[i]), y[[i - 1, i + 1]] - y[i]
    # Divided differences: y = y_i + slope u + curvature u^2, u = x - x_i.
    slope = (rise[1] * before / after - rise[0] * after / before) / (before + after)
    curvature = (rise[0] / before + rise[1] / after) / (before + after)
    if not curvature > 0:
        return float(tried[i]), float(tried[i]), float((before + after) / 2)
    at = float(np.exp(x[i] - slope / (2 * curvature)))
    return at, at, float(np.clip(np.sqrt(np.log(PLATEAU) / curvature), min(before, after) / 2, np.ptp(x)))
