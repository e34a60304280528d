"""Laws of loss against compute, and how much more compute and time the baseline needs for equal loss."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import pandas as pd

from analysis.laws.fit import FitRecord
from analysis.optima import RunsBehind
from analysis.page.figures.compute import plot_loss_compute, plot_ratios
from analysis.page.page_table import Column, Table
from analysis.page.table_fields import COMPUTE, SERIES, SIZE, estimate, table
from analysis.questions.iso_loss import TRUSTED_SCALES, IsoLoss, Ratio
from analysis.questions.parts.critical_batches import fitted_curves
from analysis.questions.question import Inputs, Part
from analysis.questions.time_ratio import TimeRatio


@dataclass(frozen=True)
class NotFitted:
    """There are no laws, and so no ratios."""

    reason: str


@dataclass(frozen=True)
class FittedLoss:
    """A loss behind the laws."""

    series: str
    num_params: int
    flops: float
    loss: float
    loss_se: float | None
    """Standard error of the mean over seeds; null for one seed."""
    reducible: float
    """Loss minus E."""
    residual: float
    """Log fitted minus log observed."""


@dataclass(frozen=True)
class HoldoutRecord:
    """The largest size predicted from the others."""

    series: str
    num_params: int
    predicted_loss: float
    observed_loss: float
    relative_error: float


@dataclass(frozen=True)
class EqualLoss:
    """L = E + A C^-alpha with one E, and compute ratios at equal loss."""

    reason: None
    baseline: str
    stands_on: RunsBehind
    fit: FitRecord
    scales: int
    trusted_scales: int
    points: list[FittedLoss]
    ratios: list[Ratio]
    """At the compute of each scale."""
    curves: dict[str, list[Ratio]]
    """By series, for the figure."""
    holdouts: list[HoldoutRecord]
    holdout_reason: str | None
    refused: dict[str, str]
    """Series without a law, and why."""


@dataclass(frozen=True)
class EqualLossTime:
    """Time at the critical batch, C / B_crit(D), baseline over series at equal loss."""

    reason: None
    definition: str
    """Of the critical batch."""
    stands_on: RunsBehind
    ratios: list[TimeRatio]
    """At the compute of each scale."""
    curves: dict[str, list[TimeRatio]]
    """By series, for the figure."""
    refused: dict[str, str]
    """Series without one, and why."""


def equal_loss(inputs: Inputs) -> EqualLoss | NotFitted:
    """The laws of all series, and the compute ratios that follow."""
    found = inputs.iso_loss
    if isinstance(found, str):
        return NotFitted(found)
    rows = _rows_behind(inputs, found)
    floor = found.fit.value("E")
    points = [
        FittedLoss(
            row["series"], row["num_params"], row["flops"], row["loss"], row["loss_se"], row["loss"] - floor, residual
        )
        for row, residual in zip(rows.to_dict("records"), found.fit.residuals, strict=True)
    ]
    holdouts = [
        HoldoutRecord(one.series, one.num_params, one.predicted_loss, one.observed_loss, one.relative_error)
        for one in found.holdouts
    ]
    return EqualLoss(
        reason=None,
        baseline=found.baseline,
        stands_on=inputs.optima.runs_behind(rows),
        fit=found.fit.record(),
        scales=int(rows["num_params"].nunique()),
        trusted_scales=TRUSTED_SCALES,
        points=points,
        ratios=found.ratios,
        curves=found.curves,
        holdouts=holdouts,
        holdout_reason=found.holdout_reason,
        refused=found.refused,
    )


def _rows_behind(inputs: Inputs, found: IsoLoss) -> pd.DataFrame:
    return inputs.best[inputs.best["series"].isin(found.series)]


def equal_loss_time(inputs: Inputs) -> EqualLossTime | NotFitted:
    """The time ratios, and the runs behind the laws of loss and of critical batches."""
    found, laws = inputs.time_ratios, inputs.iso_loss
    if isinstance(found, str) or isinstance(laws, str):
        return NotFitted(str(found))
    batch_laws = [law for law in inputs.critical_batch_laws if law.definition == found.definition and law.fit]
    curves = [
        fitted_curves(law, inputs.critical_batches, inputs.optima) for law in batch_laws if law.series in laws.series
    ]
    rows = _rows_behind(inputs, laws)
    fitted = rows[rows["series"].isin([law.series for law in batch_laws])]
    return EqualLossTime(
        None,
        found.definition,
        inputs.optima.runs_behind(pd.concat([fitted, *curves])),
        found.ratios,
        found.curves,
        found.refused,
    )


def _loss_compute(report: dict[str, Any]) -> Table:
    iso = report["iso_loss"]
    parameters = {} if iso.get("reason") else iso["fit"]["parameters"]
    return table(
        "loss_compute",
        "Laws of loss against compute, L = E + A C^-alpha with one E",
        [{**found, "name": name} for name, found in parameters.items()],
        (Column("parameter"), "name"),
        (Column("value", "number"), "value"),
        (Column("standard error", "number"), "se"),
        (Column("95% interval", "number"), "ci"),
    )


def _ratios(report: dict[str, Any], name: str, caption: str) -> Table:
    return table(
        name,
        caption,
        report[name].get("ratios") or [],
        SERIES,
        COMPUTE,
        *estimate(Column("ratio", "ratio")),
        (Column("resamples without a ratio", "integer"), "undefined"),
    )


def _holdouts(report: dict[str, Any]) -> Table:
    return table(
        "holdouts",
        "The largest size, predicted from the smaller ones",
        report["iso_loss"].get("holdouts") or [],
        SERIES,
        SIZE,
        (Column("predicted loss", "loss"), "predicted_loss"),
        (Column("observed loss", "loss"), "observed_loss"),
        (Column("error", "percent"), "relative_error"),
    )


def _tables(report: dict[str, Any]) -> list[Table]:
    ratios = _ratios(report, "iso_loss", "Compute of the baseline over compute of the series, at equal loss")
    return [_loss_compute(report), ratios, _holdouts(report)]


def _tables_of_time(report: dict[str, Any]) -> list[Table]:
    return [_ratios(report, "time_ratio", "Training time of the baseline over that of the series, at equal loss")]


COMPUTE_PART = Part("iso_loss", EqualLoss | NotFitted, equal_loss, _tables, (plot_loss_compute, plot_ratios))
TIME_PART = Part("time_ratio", EqualLossTime | NotFitted, equal_loss_time, _tables_of_time)
