"""Loss against learning rate at each series' and size's best batch; at the largest size, over batch and rate."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import pandas as pd

from analysis.page.figures.hyper_parameters import plot_learning_rates, plot_maps
from analysis.page.page_table import Column, Table
from analysis.page.table_fields import EDGES, SERIES, SIZE, batch, table
from analysis.questions.question import Inputs, Part


@dataclass(frozen=True)
class RatePoint:
    """The best of the other hyper-parameters at one learning rate."""

    lr: float
    loss: float
    """Mean over seeds: those that took no part in choosing the setting, where it has such seeds."""
    loss_se: float | None
    """Standard error of the mean over seeds; null for one seed."""
    seeds: int
    """Seeds behind the loss."""


@dataclass(frozen=True)
class RateCurve:
    """One series at one size, at its best batch."""

    series: str
    num_params: int
    global_batch_tokens: int
    best_lr: float | None
    plateau_lr: list[float | None]
    edges: list[str]
    """Hyper-parameters whose best value is the smallest (low) or largest (high) tried."""
    num_lrs: int
    points: list[RatePoint]


@dataclass(frozen=True)
class RateCell:
    """One batch and learning rate."""

    global_batch_tokens: int
    lr: float
    loss: float
    """Mean over seeds: those that took no part in choosing the setting, where it has such seeds."""
    loss_se: float | None
    """Standard error of the mean over seeds; null for one seed."""
    seeds: int
    """Seeds behind the loss."""
    relative: float
    """selection_loss over the lowest of the map, minus one."""


@dataclass(frozen=True)
class RateMap:
    """One series at the largest size."""

    series: str
    num_params: int
    cells: list[RateCell]


@dataclass(frozen=True)
class TunedRates:
    """Curves at the best batch, maps at the largest size."""

    curves: list[RateCurve]
    """Loss against learning rate at the best batch."""
    maps: list[RateMap]
    """At the largest size."""


_LOSS = ["loss", "loss_se", "seeds"]


def tuned_rates(inputs: Inputs) -> TunedRates:
    """Curves of every series and size at the budget that is compared, and maps."""
    settings = inputs.optima.settings[inputs.optima.settings["tokens_per_parameter"] == inputs.budget]
    # The best of the other hyper-parameters, by the losses that settings are compared by.
    keys = ["series", "num_params", "global_batch_tokens", "lr"]
    lowest = settings.groupby(keys, observed=True, dropna=False)["selection_loss"].idxmin()
    groups = dict(list(settings.loc[lowest].sort_values(keys).groupby(["series", "num_params"], observed=True)))
    largest = int(inputs.best["num_params"].max())
    curves, maps = [], []
    for row in inputs.best.to_dict("records"):
        cells = groups[row["series"], row["num_params"]]
        cells = cells[cells["lr"].notna()]
        by_lr = cells[cells["global_batch_tokens"] == row["global_batch_tokens"]]
        points = [RatePoint(**point) for point in _records(by_lr[["lr", *_LOSS]])]
        place = (row["series"], row["num_params"])
        plateau = list(row["plateau_lr"])
        curves.append(
            RateCurve(*place, row["global_batch_tokens"], row["lr"], plateau, row["edges"], len(by_lr), points)
        )
        if row["num_params"] == largest:
            relative = cells["selection_loss"] / cells["selection_loss"].min() - 1
            columns = ["global_batch_tokens", "lr", *_LOSS, "relative"]
            found = [RateCell(**cell) for cell in _records(cells.assign(relative=relative)[columns])]
            maps.append(RateMap(row["series"], largest, found))
    return TunedRates(curves, maps)


def _records(rows: pd.DataFrame) -> list[Any]:
    return rows.to_dict("records")


def _hyper_parameters(report: dict[str, Any]) -> Table:
    return table(
        "hyper_parameters",
        "Best learning rate and the range within 1% of its loss, at the best batch",
        report["hyper_parameters"]["curves"],
        SIZE,
        SERIES,
        batch(report),
        (Column("best lr", "number"), "best_lr"),
        (Column("within 1%", "number"), "plateau_lr"),
        (Column("learning rates tried", "integer"), "num_lrs"),
        EDGES,
    )


PART = Part(
    "hyper_parameters",
    TunedRates,
    tuned_rates,
    lambda report: [_hyper_parameters(report)],
    (plot_learning_rates, plot_maps),
)
