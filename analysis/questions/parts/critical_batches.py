"""Critical batches under every definition, their laws against tokens, and the joint models."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.ticker import FuncFormatter

from analysis.laws.fit import FitRecord, NotIdentified
from analysis.optima import Optima, RunsBehind
from analysis.page import axis_labels
from analysis.page.axes import arrow, log_axis
from analysis.page.drawing import Drawing, finish, panel
from analysis.page.numbers import count
from analysis.page.page_table import Column, Table
from analysis.page.section import Block, Figures, Shown, Terms
from analysis.page.styles import Styles
from analysis.page.table_fields import (
    SERIES,
    SIZE,
    WHY_NOT,
    Entry,
    estimate,
    inside,
    or_dash,
    stands_on,
    table,
)
from analysis.questions.critical_batch_joint import JointLaw, above_the_best_batch, fit_joint
from analysis.questions.critical_batch_size import DEFINITIONS, CriticalBatch, CriticalBatchLaw, value_of
from analysis.questions.question import Inputs, Part


@dataclass(frozen=True)
class LawOfTokens:
    """B = A D^alpha of one series under one definition."""

    series: str
    definition: str
    fit: FitRecord | None
    reason: str | None
    """Why there is no fit."""
    stands_on: RunsBehind | None


@dataclass(frozen=True)
class JointOfSeries:
    """cbs_joint of one series."""

    series: str
    law: JointLaw | None
    reason: str | None
    stands_on: RunsBehind | None


@dataclass(frozen=True)
class CriticalBatches:
    """Points, laws and joint models; no points from unusable columns."""

    definitions: dict[str, str]
    points: list[CriticalBatch]
    reason: str | None
    """Why there are no points."""
    laws: list[LawOfTokens]
    joint: list[JointOfSeries]


def critical_batches(inputs: Inputs) -> CriticalBatches:
    """Everything about critical batches at the budget that sizes are compared at."""
    points, optima = inputs.critical_batches, inputs.optima
    no_points = optima.reason_against("global_batch_tokens", "num_tokens", "loss")
    return CriticalBatches(
        definitions=DEFINITIONS,
        points=[] if no_points else points,
        reason=no_points or (None if points else "no size was trained with two batches"),
        laws=[_law(law, points, optima) for law in inputs.critical_batch_laws],
        joint=_joint(points, optima, inputs.options.delta),
    )


def _law(law: CriticalBatchLaw, points: list[CriticalBatch], optima: Optima) -> LawOfTokens:
    behind = optima.runs_behind(fitted_curves(law, points, optima)) if law.fit else None
    return LawOfTokens(law.series, law.definition, law.fit.record() if law.fit else None, law.reason, behind)


def _joint(points: list[CriticalBatch], optima: Optima, delta: float) -> list[JointOfSeries]:
    """The joint model of each series that has `points`, or why not."""
    joint = []
    against = optima.reason_against("global_batch_tokens", "num_tokens", "num_params", "loss")
    for series in dict.fromkeys(point.series for point in points):
        if against:
            joint.append(JointOfSeries(series, None, against, None))
            continue
        try:
            law = fit_joint(optima.points, series, delta)
        except NotIdentified as error:
            joint.append(JointOfSeries(series, None, str(error), None))
        else:
            behind = optima.runs_behind(above_the_best_batch(optima.points[optima.points["series"] == series]))
            joint.append(JointOfSeries(series, law, None, behind))
    return joint


def fitted_curves(law: CriticalBatchLaw, points: list[CriticalBatch], optima: Optima) -> pd.DataFrame:
    """The losses against batch that a law's critical batches were read from."""
    mine = [p for p in points if p.series == law.series and value_of(p, law.definition) is not None]
    return optima.points[
        (optima.points["series"] == law.series)
        & optima.points["num_params"].isin([p.num_params for p in mine])
        & optima.points["tokens_per_parameter"].isin([p.tokens_per_parameter for p in mine])
    ]


def _critical_batch(report: dict[str, Any]) -> Table:
    return table(
        "critical_batch",
        "Critical batch sizes by definition",
        report["critical_batch"]["points"],
        SIZE,
        SERIES,
        (Column("tokens D", "count"), "num_tokens"),
        (Column("1% rule: between", "count", "tokens"), lambda p: [p["largest_good_batch"], p["next_batch"]]),
        (Column("by seeds: at least, below", "count", "tokens"), lambda p: [p["at_least"], p["below"]]),
        (Column("interpolated", "count", "tokens"), "interpolated"),
        (Column("20% overhead", "count", "tokens"), "overhead20"),
        (Column("censored"), or_dash("censored")),
        (Column("preconditions that fail"), or_dash("concerns", "; ")),
    )


def _critical_batch_laws(report: dict[str, Any]) -> Table:
    return table(
        "critical_batch_laws",
        "Growth of the critical batch with tokens, B = A D^alpha",
        report["critical_batch"]["laws"],
        SERIES,
        (Column("definition"), "definition"),
        *estimate(Column("alpha", "ratio"), "fit", "parameters", "alpha"),
        (Column("sizes", "integer"), inside("fit", "num_points")),
        *stands_on(),
        WHY_NOT,
    )


def _critical_batch_joint(report: dict[str, Any]) -> Table:
    """A row for the form in D of each series, and one for that in N and D where there is one."""
    entries = []
    for entry in report["critical_batch"]["joint"]:
        law = entry["law"]
        shared = {"series": entry["series"], "points": law and law["num_points"], "stands_on": entry["stands_on"]}
        alone = law and {
            "num_tokens": law["exponent"], "B_c": law["critical_batch_size"], "D": law["at_tokens"],
            "note": "one exponent for size and tokens" if law["tied"] else "–",
        }  # fmt: skip
        entries.append({**shared, "law": alone, "note": alone["note"] if alone else entry["reason"]})
        both = law and law["in_both"]
        if both:
            form = {**both["exponents"], "B_c": both["critical_batch_size"], "N": both["at"]["num_params"]}
            entries.append({**shared, "law": {**form, "D": both["at"]["num_tokens"]}, "note": "in N and D"})
        elif law and not law["tied"]:
            entries.append({**shared, "law": None, "note": f"in N and D: {law['in_both_reason']}"})

    def of_law(key: str, *more: str) -> Callable[[Entry], Any]:
        return lambda entry: inside(key, *more)({key: None, **(entry["law"] or {})})

    return table(
        "critical_batch_joint",
        "cbs_joint: one model of all sizes and batches, with D_eff = D / (1 + B/B_c) and B_c = c D^p or c N^q D^p",
        entries,
        SERIES,
        (Column("q", "ratio"), of_law("num_params", "value")),
        (Column("q 95% interval", "ratio", joint=" "), of_law("num_params", "ci")),
        (Column("p", "ratio"), of_law("num_tokens", "value")),
        (Column("p 95% interval", "ratio", joint=" "), of_law("num_tokens", "ci")),
        (Column("B_c", "count", "tokens"), of_law("B_c", "value")),
        (Column("B_c 95% interval", "count", joint=" "), of_law("B_c", "ci")),
        (Column("at N", "count", "parameters"), of_law("N")),
        (Column("at D", "count", "tokens"), of_law("D")),
        (Column("losses", "integer"), "points"),
        *stands_on(),
        (Column("note"), "note"),
    )


def plot_critical_batch(report: dict[str, Any], styles: Styles) -> list[Drawing]:
    """Critical batch against tokens under two definitions, with laws; arrows where a curve is censored."""
    points = report["critical_batch"]["points"]
    if len({p["num_params"] for p in points}) < 2:
        return []
    out = [_critical_batch_figure(report, styles, "cbs_1pct_interpolated", "interpolated", "Critical batch, 1% rule")]
    if any(p["overhead20"] for p in points):
        title = "Critical batch, 20% token overhead"
        out.append(_critical_batch_figure(report, styles, "cbs_overhead20", "overhead20", title))
    return out


def _critical_batch_figure(report: dict[str, Any], styles: Styles, definition: str, key: str, title: str) -> Drawing:
    points, published = report["critical_batch"]["points"], report["published"]
    names = [name for name in report["series"] if any(p["series"] == name for p in points)]
    x_label = axis_labels.across(report, "training tokens D", "num_tokens")
    y_label = axis_labels.upright(report, "critical batch", "global_batch_tokens", "tokens")
    figure, axes = panel(title, x_label, y_label)
    values: list[float] = []
    tokens: list[float] = []
    for i, name in enumerate(names):
        style = styles.points(name)
        axes.plot([], [], **style)
        for p in (p for p in points if p["series"] == name and (name in styles.named or not p["censored"])):
            x = p["num_tokens"] * 1.04 ** (i - (len(names) - 1) / 2)
            tokens.append(x)
            values += _critical_batch_point(axes, p, x, key, {**style, "label": None})
        law = next(
            law for law in report["critical_batch"]["laws"] if law["series"] == name and law["definition"] == definition
        )
        if law["fit"]:
            low, high = law["fit"]["inputs"]["num_tokens"]
            grid = np.geomspace(low, high, 20)
            parameters = law["fit"]["parameters"]
            axes.plot(grid, parameters["A"]["value"] * grid ** parameters["alpha"]["value"], **styles.curve(name))
    if published and definition != "cbs_overhead20":
        for p in published["critical_batch"]:
            tokens.append(p["num_tokens"])
            values.append(p["critical_batch_size"])
            axes.plot([p["num_tokens"]], [p["critical_batch_size"]], **styles.published(p["series"]))
    log_axis(axes.xaxis, tokens, count)
    axes.set_yscale("log", base=2)
    axes.yaxis.set_major_formatter(FuncFormatter(lambda v, _: count(v)))
    axes.set_ylim(min(values) / 1.5, max(values) * 1.5)
    finish(figure, axes)
    alt = f"{title} against training tokens; arrows are bounds where the batches tried do not hold it."
    return Drawing("critical_batch" if key == "interpolated" else f"critical_batch_{key}", title, alt, figure)


def _critical_batch_point(axes: Any, p: dict[str, Any], x: float, key: str, style: dict[str, Any]) -> list[float]:
    """A point with the tested batches around it, or arrows; returns the batches drawn."""
    censored, color = p["censored"] or "", style["color"]
    if not censored and p[key] is not None:
        if key == "interpolated":
            axes.plot([x, x], [p["largest_good_batch"], p["next_batch"]], color=color, linewidth=1, alpha=0.6)
        axes.plot([x], [p[key]], **style)
        return [p[key], *([p["largest_good_batch"], p["next_batch"]] if key == "interpolated" else [])]
    drawn = []
    if "right" in censored:
        drawn += [p["largest_good_batch"], p["largest_good_batch"] * 1.6]
        arrow(axes, (x, p["largest_good_batch"]), (x, p["largest_good_batch"] * 1.6), color)
        axes.plot([x], [p["largest_good_batch"]], marker="_", markersize=9, color=color)
    if "left" in censored:
        drawn += [p["largest_good_batch"], p["largest_good_batch"] / 1.6]
        arrow(axes, (x, p["largest_good_batch"]), (x, p["largest_good_batch"] / 1.6), color)
        axes.plot([x], [p["largest_good_batch"]], marker="_", markersize=9, color=color)
    return drawn


def section(report: dict[str, Any], drawn: bool) -> list[Block] | str:
    """Definitions, points, laws, and the joint models."""
    part = report["critical_batch"]
    if part["reason"]:
        return str(part["reason"])
    found = [law["fit"] for law in part["laws"]] + [joint["law"] for joint in part["joint"]]
    if not any(found) and all(point["censored"] for point in part["points"]):
        return "every curve of loss against batch has its best, or the end of its plateau, at an end of the batches"
    published = f" Grey: published points, {report['published']['source']}." if report["published"] else ""
    return [
        "The definition changes the exponent, so each stands with its own. By the first the critical batch lies "
        f"between two tested batches (thin bars). Arrows are bounds and take no part in a fit.{published}",
        Terms(part["definitions"]),
        Figures(),
        *_laws_or_none(any(found)),
    ]


def _laws_or_none(some: bool) -> list[Block]:
    """Tables of laws and of points; of points alone where there is no law."""
    if some:
        return [
            Shown("critical_batch_laws"), Shown("critical_batch_joint"), Shown("critical_batch", folded=True)
        ]  # fmt: skip
    why = "tables/critical_batch_laws.csv and critical_batch_joint.csv"
    return [f"How they grow with tokens is not identified; the reasons are in {why}.", Shown("critical_batch")]


PART = Part(
    "critical_batch",
    CriticalBatches,
    critical_batches,
    lambda report: [_critical_batch(report), _critical_batch_laws(report), _critical_batch_joint(report)],
    plot_critical_batch,
    "Critical batch against tokens",
    section,
)
