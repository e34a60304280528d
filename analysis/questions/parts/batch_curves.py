"""Loss against batch: the best of the hyper-parameters at every batch that was tried."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, cast

from analysis.page.figures.batch_size import plot_loss_vs_batch
from analysis.page.page_table import Column, Table
from analysis.page.table_fields import EDGES, LOSS, LOSS_SE, SEEDS, SERIES, SIZE, batch, table
from analysis.questions.question import Inputs, Part


@dataclass(frozen=True)
class BatchPoint:
    """The best at one batch."""

    global_batch_tokens: int
    loss: float
    """Mean over seeds: those that took no part in choosing the setting, where it has such seeds."""
    loss_se: float | None
    """Standard error of the mean over seeds; null for one seed."""
    seeds: int
    """Seeds behind the loss."""
    lr: float | None
    settings: int
    diverged: int
    edges: list[str]
    """Hyper-parameters whose best value is the smallest (low) or largest (high) tried."""


@dataclass(frozen=True)
class BatchCurve:
    """One series at one size."""

    series: str
    num_params: int
    points: list[BatchPoint]


_FROM_THE_ROW = ["global_batch_tokens", "loss", "loss_se", "seeds", "lr", "settings", "diverged", "edges"]


def batch_curves(inputs: Inputs) -> list[BatchCurve]:
    """Curves at the budget that sizes are compared at, by size and series."""
    points = inputs.optima.points
    rows = points[points["tokens_per_parameter"] == inputs.budget]
    out = []
    for key, curve in rows.groupby(["num_params", "series"], sort=True, observed=True):
        n, series = cast("tuple[int, str]", key)
        tried: list[Any] = curve.sort_values("global_batch_tokens")[_FROM_THE_ROW].to_dict("records")
        out.append(BatchCurve(series, n, [BatchPoint(**point) for point in tried]))
    return out


def _loss_vs_batch(report: dict[str, Any]) -> Table:
    return table(
        "loss_vs_batch",
        "Best loss at each batch size",
        [{**curve, **point} for curve in report["loss_vs_batch"] for point in curve["points"]],
        SIZE,
        SERIES,
        batch(report),
        LOSS,
        LOSS_SE,
        SEEDS,
        (Column("lr", "number"), "lr"),
        (Column("settings", "integer"), "settings"),
        (Column("diverged", "integer"), "diverged"),
        EDGES,
    )


PART = Part(
    "loss_vs_batch", list[BatchCurve], batch_curves, lambda report: [_loss_vs_batch(report)], (plot_loss_vs_batch,)
)
