"""Loss against the number of workers, relative to each series' partner, and the law L = A N^a K^b."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd

from analysis.laws.fit import FitRecord, NotIdentified
from analysis.laws.power_law import fit_power_product
from analysis.optima import RunsBehind
from analysis.page import axis_labels
from analysis.page.axes import error_bars, tried_axis
from analysis.page.drawing import INK, Drawing, finish, panel
from analysis.page.numbers import count
from analysis.page.page_table import Column, Table
from analysis.page.section import Block, Figures, Shown
from analysis.page.styles import Styles, legend_label
from analysis.page.table_fields import LOSS, LOSS_SE, SERIES, SIZE, WHY_NOT, against, estimate, stands_on, table
from analysis.questions.compared_pairs import partners
from analysis.questions.question import Inputs, Part
from analysis.seeds import Comparison, compare_seeds


@dataclass(frozen=True)
class WorkerPoint:
    """A series at one size, beside its partner."""

    series: str
    algorithm: str
    num_params: int
    num_workers: int
    loss: float
    """Mean over seeds: those that took no part in choosing the setting, where it has such seeds."""
    loss_se: float | None
    """Standard error of the mean over seeds; null for one seed."""
    seeds: int
    """Seeds behind the loss."""
    baseline: str
    """The partner: data parallel with the same inner optimizer, or what --style says."""
    baseline_loss: float
    against_baseline: Comparison
    pseudogradient_cosine: float | None
    """Mean over pairs of workers, last quarter of the run."""


@dataclass(frozen=True)
class WorkerLaw:
    """L = A N^a K^b of one algorithm."""

    algorithm: str
    fit: FitRecord | None
    reason: str | None
    stands_on: RunsBehind | None


@dataclass(frozen=True)
class WorkerCounts:
    """Points of every series with a partner, and the law of each algorithm."""

    points: list[WorkerPoint]
    laws: list[WorkerLaw]


def worker_counts(inputs: Inputs) -> WorkerCounts:
    """Loss against K over that of each series' partner (`partner_of`), and the law L = A N^a K^b."""
    best, partner = inputs.best, partners(inputs.best, inputs.options.style)
    points = [
        point
        for row in best.to_dict("records")
        if row["series"] in partner and (point := _point(row, best, partner[row["series"]])) is not None
    ]
    return WorkerCounts(points, [_law(name, points, inputs) for name in sorted({point.algorithm for point in points})])


def _point(row: Any, best: pd.DataFrame, partner: str) -> WorkerPoint | None:
    reference = best[(best["series"] == partner) & (best["num_params"] == row["num_params"])]
    if reference.empty:
        return None
    (other,) = reference.to_dict("records")
    names = ("series", "algorithm", "num_params", "num_workers", "loss", "loss_se", "seeds", "pseudogradient_cosine")
    return WorkerPoint(
        **{name: row[name] for name in names},
        baseline=partner,
        baseline_loss=other["loss"],
        against_baseline=compare_seeds(row["seed_losses"], other["seed_losses"]),
    )


def _law(algorithm: str, points: list[WorkerPoint], inputs: Inputs) -> WorkerLaw:
    if against := inputs.optima.reason_against("flops", "loss", "num_params", "num_tokens"):
        return WorkerLaw(algorithm, None, against, None)
    mine, options, best = [point for point in points if point.algorithm == algorithm], inputs.options, inputs.best
    try:
        fit = fit_power_product(
            {name: [float(getattr(point, name)) for point in mine] for name in ("num_params", "num_workers")},
            [point.loss for point in mine],
            name="loss",
            delta=options.delta,
            bootstrap=options.bootstrap,
            seed=options.seed,
        )
    except NotIdentified as error:
        return WorkerLaw(algorithm, None, str(error), None)
    keys = {(point.series, point.num_params) for point in mine}
    fitted = [key in keys for key in zip(best["series"], best["num_params"], strict=True)]
    return WorkerLaw(algorithm, fit.record(), None, inputs.optima.runs_behind(best[fitted]))


def _num_workers(report: dict[str, Any]) -> Table:
    return table(
        "num_workers",
        "Loss against the number of workers, relative to the partner: data parallel with the same inner "
        "optimizer, or what --style says",
        report["num_workers"]["points"],
        SIZE,
        SERIES,
        (Column("K", "integer"), "num_workers"),
        LOSS,
        LOSS_SE,
        (Column("partner"), "baseline"),
        (Column("its loss", "loss", "nats per token"), "baseline_loss"),
        *against(Column("relative", "percent")),
        (Column("pseudogradient cosine", "ratio"), "pseudogradient_cosine"),
    )


def _num_workers_laws(report: dict[str, Any]) -> Table:
    return table(
        "num_workers_laws",
        "Loss against size and workers, L = A N^a K^b",
        report["num_workers"]["laws"],
        (Column("algorithm"), "algorithm"),
        *estimate(Column("a", "ratio"), "fit", "parameters", "alpha[num_params]"),
        *estimate(Column("b", "ratio"), "fit", "parameters", "alpha[num_workers]"),
        *stands_on(),
        WHY_NOT,
    )


def plot_num_workers(report: dict[str, Any], styles: Styles) -> list[Drawing]:
    """Loss relative to the partner against K, one line an algorithm and size with several K; how alike the
    pseudogradients are.
    """
    points, published = report["num_workers"]["points"], report["published"]
    across = axis_labels.across(report, "workers K", "num_workers")
    sizes = sorted({r["num_params"] for r in points})
    lines = {key: mine for key, mine in _lines(points).items() if len({r["num_workers"] for r in mine}) > 1}
    out = []
    if lines:
        title = "Loss against the number of workers"
        figure, axes = panel(title, across, "loss over the partner's - 1 (%)")
        for (algorithm, n), mine in lines.items():
            style = {**styles.of_size(mine[0]["series"], sizes.index(n), len(sizes))}
            style["label"] = legend_label(f"{algorithm}, {count(n)}")
            workers, compared = [r["num_workers"] for r in mine], [r["against_baseline"] for r in mine]
            relative = [100 * c["relative"] for c in compared]
            axes.plot(workers, relative, **style)
            error_bars(axes, workers, relative, [c["se"] and 100 * c["se"] for c in compared], style["color"])
        if published:
            nearest = min((p["num_params"] for p in published["num_workers"]), key=lambda m: abs(np.log(m / sizes[-1])))
            for p in (p for p in published["num_workers"] if p["num_params"] == nearest):
                axes.plot([p["num_workers"]], [100 * p["relative"]], **styles.published(f"{p['algorithm']} K=1"))
        axes.axhline(0, color=INK, linewidth=0.8)
        tried_axis(axes.xaxis, [r["num_workers"] for mine in lines.values() for r in mine], _whole)
        finish(figure, axes)
        alt = "Loss relative to that of the partner against the number of workers, one line an algorithm and size."
        out.append(Drawing("num_workers", title, alt, figure))
    return out + _plot_cosines(points, styles, across)


def _lines(points: list[dict[str, Any]]) -> dict[tuple[str, int], list[dict[str, Any]]]:
    """The points of each algorithm and size by K, at each K the one with the lowest loss."""
    best: dict[tuple[str, int, int], dict[str, Any]] = {}
    for row in sorted(points, key=lambda r: r["against_baseline"]["relative"]):
        best.setdefault((row["algorithm"], row["num_params"], row["num_workers"]), row)
    out: dict[tuple[str, int], list[dict[str, Any]]] = {}
    for (algorithm, n, _), row in sorted(best.items()):
        out.setdefault((algorithm, n), []).append(row)
    return out


def _plot_cosines(points: list[dict[str, Any]], styles: Styles, across: str) -> list[Drawing]:
    known = [r for r in points if r["pseudogradient_cosine"] is not None]
    if not known:
        return []
    title = "Mean cosine between workers' pseudogradients"
    sizes, lines = sorted({r["num_params"] for r in known}), _lines(known)
    figure, axes = panel(title, across, "cosine, last quarter of the run")
    for (algorithm, n), mine in lines.items():
        style = styles.of_size(mine[0]["series"], sizes.index(n), len(sizes))
        style["label"] = legend_label(f"{algorithm}, {count(n)}")
        axes.plot([r["num_workers"] for r in mine], [r["pseudogradient_cosine"] for r in mine], **style)
    tried_axis(axes.xaxis, [r["num_workers"] for r in known], _whole)
    finish(figure, axes)
    alt = "Mean pairwise cosine between workers' pseudogradients against the number of workers."
    return [Drawing("pseudogradient_cosine", title, alt, figure)]


def _whole(value: float) -> str:
    return f"{value:g}"


def section(report: dict[str, Any], drawn: bool) -> list[Block] | str:
    """Losses over the partners', laws in K, and how alike pseudogradients are."""
    if not report["num_workers"]["points"]:
        return "no size has both a series and a partner to compare it with over K"
    fitted = any(law["fit"] for law in report["num_workers"]["laws"])
    return [
        "Relative to each series' partner (data parallel with the same inner optimizer, what --style names, or its own "
        "smallest K), each at its own best hyper-parameters; seed by seed where both have the same seeds.",
        Figures(),
        *([Shown("num_workers_laws")] if fitted else []),
        Shown("num_workers", folded=fitted),
    ]


PART = Part(
    "num_workers",
    WorkerCounts,
    worker_counts,
    lambda report: [_num_workers(report), _num_workers_laws(report)],
    plot_num_workers,
    "Loss against the number of workers",
    section,
)
