"""Laws of loss against compute, and how much more compute and time the baseline needs for equal loss."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd

from analysis.laws.fit import FitRecord
from analysis.optima import RunsBehind
from analysis.page import axis_labels
from analysis.page.axes import error_bars, log_axis, power_of_ten
from analysis.page.drawing import INK, Drawing, finish, panel
from analysis.page.numbers import count, integer, loss, share, show
from analysis.page.page_table import Column, Table
from analysis.page.section import Block, Figures, Note, Shown
from analysis.page.styles import Styles
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
        scales=found.scales,
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


def plot_loss_compute(report: dict[str, Any], styles: Styles) -> list[Drawing]:
    """Reducible loss against compute with its laws, and the residuals."""
    iso = report["iso_loss"]
    if iso.get("reason"):
        return []
    names = [name for name in report["series"] if any(p["series"] == name for p in iso["points"])]
    flops_seen = [p["flops"] for p in iso["points"]]
    grid = np.geomspace(min(flops_seen), max(flops_seen), 50)
    parameters = iso["fit"]["parameters"]
    title = "Loss above the shared irreducible loss"
    across = axis_labels.compute(report)
    upright = axis_labels.upright(report, "L - E", "loss", "nats per token")
    figure, axes = panel(title, across, upright)
    residuals, lower = panel("Residuals of the laws", across, "fitted / observed loss - 1 (%)")
    values: list[float] = []
    for name in names:
        rows = [p for p in iso["points"] if p["series"] == name]
        at, above = [p["flops"] for p in rows], [p["reducible"] for p in rows]
        axes.plot(at, above, **styles.points(name))
        error_bars(axes, at, above, [p["loss_se"] for p in rows], styles.points(name)["color"])
        fitted = parameters[f"A[{name}]"]["value"] * grid ** -parameters[f"alpha[{name}]"]["value"]
        axes.plot(grid, fitted, **styles.curve(name))
        values += [p["reducible"] for p in rows]
        lower.plot([p["flops"] for p in rows], [100 * p["residual"] for p in rows], **styles.points(name))
    lower.axhline(0, color=INK, linewidth=0.8)
    log_axis(axes.xaxis, flops_seen, power_of_ten)
    log_axis(lower.xaxis, flops_seen, power_of_ten)
    log_axis(axes.yaxis, values, lambda v: f"{v:g}")
    finish(figure, axes)
    finish(residuals, lower)
    return [
        Drawing(
            "loss_compute",
            title,
            "Reducible loss against compute on log axes, with fitted laws.",
            figure,
        ),
        Drawing(
            "residuals",
            "Residuals of the laws",
            "Residuals of the laws in percent against compute.",
            residuals,
        ),
    ]


def plot_ratios(report: dict[str, Any], styles: Styles) -> list[Drawing]:
    """Compute and time ratios over compute, with intervals at the sizes trained; dotted beyond the data."""
    baseline = report["settings"]["baseline"]
    out = []
    for key, word, published in (
        ("iso_loss", "Compute", "compute_ratio"),
        ("time_ratio", "Training time", "time_ratio"),
    ):
        part = report[key]
        if part.get("reason") or not part["curves"]:
            continue
        title = f"{word} of {baseline} for the same loss"
        y = f"{word.lower()} of {baseline} / series"
        figure, axes = panel(title, axis_labels.across(report, "compute C of the series", "flops", "flops"), y)
        for name in report["series"]:
            if name in part["curves"]:
                _ratio_curve(
                    axes, part["curves"][name], [r for r in part["ratios"] if r["series"] == name], styles, name
                )
        axes.axhline(1, color=INK, linewidth=0.8)
        reach = [r["flops"] for curve in part["curves"].values() for r in curve]
        shown = [r["value"] for curve in part["curves"].values() for r in curve]
        if report["published"]:
            for name, curve in report["published"]["curves"][published].items():
                reach += [p["flops"] for p in curve]
                shown += [p["value"] for p in curve]
                style = {**styles.published(name), "markevery": 6}
                axes.plot([p["flops"] for p in curve], [p["value"] for p in curve], **style)
        log_axis(axes.xaxis, reach, power_of_ten)
        _ratio_axis(axes, shown)
        finish(figure, axes)
        alt = f"{word} {baseline} needs over that of each series at the same loss; dotted beyond the data."
        out.append(Drawing(key, title, alt, figure))
    return out


def _ratio_curve(axes: Any, curve: list[Any], own: list[Any], styles: Styles, name: str) -> None:
    color = styles.line(name)["color"]
    inside = [r for r in curve if not r["extrapolated"]]
    beyond = inside[-1:] + [r for r in curve if r["extrapolated"]]
    axes.plot([r["flops"] for r in inside], [r["value"] for r in inside], **styles.curve(name))
    dotted = (0, (1, 2.5))
    axes.plot([r["flops"] for r in beyond], [r["value"] for r in beyond], color=color, linestyle=dotted, linewidth=1.2)
    if name in styles.named and all(r["ci"] for r in curve):
        low, high = zip(*(r["ci"] for r in curve), strict=True)
        axes.fill_between([r["flops"] for r in curve], low, high, color=color, alpha=0.08, linewidth=0)
    axes.plot([r["flops"] for r in own], [r["value"] for r in own], **styles.points(name))
    for r in own:
        if name in styles.named and r["ci"]:
            axes.plot([r["flops"]] * 2, r["ci"], color=color, linewidth=0.8, alpha=0.7)


def _ratio_axis(axes: Any, shown: list[float]) -> None:
    """The curves with room for intervals; those of an uncertain ratio may leave the panel."""
    low, high = min(*shown, 1.0), max(*shown, 1.0)
    if high / low > 4:
        axes.set_ylim(low / 1.6, high * 1.6)
        log_axis(axes.yaxis, [low / 1.6, high * 1.6], lambda v: f"{v:g}")
    else:
        room = 0.5 * (high - low) + 0.03
        axes.set_ylim(max(0.0, low - room), high + room)


def section_of_laws(report: dict[str, Any], drawn: bool) -> list[Block] | str:
    """The laws, their residuals, and how they predict the largest size."""
    iso = report["iso_loss"]
    if iso["reason"]:
        return str(iso["reason"])
    fit, runs = iso["fit"], iso["stands_on"]
    floor, confidence = fit["parameters"]["E"], share(report["settings"]["confidence"])
    interval = f", {confidence} interval {show(floor['ci'], 'loss')}" if floor["ci"] else ""
    blocks: list[Block] = [
        f"One law a series, L = E + A C^−α, with one irreducible loss E for all: {loss(floor['value'])} nats per token"
        f"{interval}. Intervals: {fit['interval']}. The laws stand on {integer(runs['runs'])} of {integer(runs['of'])} "
        f"runs.{''.join(f' Note: {line}.' for line in fit['warnings'])}"
    ]
    counted = [scale for scale in report["scales"] if scale["hardware_flops"]]
    if counted:
        shares = [
            f"{share(s['hardware_flops'] / (6 * s['num_params'] * s['num_tokens']))} of it at {count(s['num_params'])} "
            "parameters"
            for s in counted
        ]
        lookup = "6ND counts the embedding, which is looked up, and no attention; devices compute"
        blocks.append(Note(f"{lookup} {', '.join(shares)}."))
    blocks += [Figures(), Shown("loss_compute", folded=True), Shown("holdouts")]
    if iso["holdout_reason"]:
        blocks.append(f"Prediction of the largest size: not identified, {iso['holdout_reason']}.")
    return blocks


def section_of_ratios(report: dict[str, Any], drawn: bool) -> list[Block] | str:
    """Compute and time of the baseline over the series'."""
    if report["iso_loss"]["reason"]:
        return "there are no laws of loss against compute"
    time, baseline = report["time_ratio"], report["settings"]["baseline"]
    if time["reason"]:
        of_time = f"The time ratio is not identified: {time['reason']}."
    else:
        runs = time["stands_on"]
        of_time = (
            f"Training time is compute over the critical batch ({time['definition']}): the steps that each needs at "
            "its critical batch, were a step to take the same time at every batch. It stands on "
            f"{integer(runs['runs'])} of {integer(runs['of'])} runs."
        )
    grey = " Grey: published curves, whose time ratios stand at the baseline's compute." if report["published"] else ""
    return [
        f"How many times the compute of a series {baseline} needs to reach the same loss: above 1, the series is the "
        f"cheaper one. Dotted beyond the data. Scales are resampled for all series together. {of_time}{grey}",
        Figures(),
        Shown("iso_loss", folded=True),
        Shown("time_ratio", folded=True),
    ]


COMPUTE_PART = Part(
    "iso_loss", EqualLoss | NotFitted, equal_loss, _tables, plot_loss_compute, "Loss against compute", section_of_laws
)
TIME_PART = Part(
    "time_ratio",
    EqualLossTime | NotFitted,
    equal_loss_time,
    _tables_of_time,
    plot_ratios,
    "Compute and time for equal loss",
    section_of_ratios,
)
