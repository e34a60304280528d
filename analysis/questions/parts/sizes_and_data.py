"""L(N, D) of each series, and sizes at equal compute."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from matplotlib.ticker import MaxNLocator

from analysis.laws.fit import FitRecord
from analysis.optima import Optima, RunsBehind
from analysis.page import axis_labels
from analysis.page.axes import error_bars, log_axis
from analysis.page.drawing import Drawing, finish, panel, series_slug
from analysis.page.numbers import count, flops
from analysis.page.page_table import Column, Table
from analysis.page.section import Block, Figures, Shown
from analysis.page.styles import Styles
from analysis.page.table_fields import COMPUTE, SERIES, WHY_NOT, estimate, inside, stands_on, table
from analysis.questions.isoflop import Budget, find_budgets, fit_size_and_data, trunks_of
from analysis.questions.question import Inputs, Part


@dataclass(frozen=True)
class LawOfSizeAndData:
    """L = E + A N^-alpha + B D^-beta of one series."""

    series: str
    fit: FitRecord | None
    reason: str | None
    allocation: float | None
    """a of N_opt ~ C^a."""
    stands_on: RunsBehind | None


@dataclass(frozen=True)
class EqualCompute(Budget):
    """A budget with the standard errors of its losses, and the runs behind them."""

    loss_se: list[float | None]
    """Standard errors of the losses of points."""
    stands_on: RunsBehind


@dataclass(frozen=True)
class SizesAndData:
    """Laws, and parabolas at equal compute."""

    laws: list[LawOfSizeAndData]
    budgets: list[EqualCompute]
    """Sizes at equal compute."""


def sizes_and_data(inputs: Inputs) -> SizesAndData:
    """L(N, D) of each series, or why not, and parabolas at equal compute."""
    optima, options, series = inputs.optima, inputs.options, inputs.study.series
    if against := optima.reason_against("flops", "loss", "num_params", "num_tokens"):
        return SizesAndData([LawOfSizeAndData(name, None, against, None, None) for name in series], [])
    best = optima.best
    laws = []
    trunks = trunks_of(best, inputs.study.runs)
    for law in fit_size_and_data(best, series, options.delta, options.bootstrap, options.seed, trunks):
        behind = optima.runs_behind(best[best["series"] == law.series]) if law.fit else None
        fit = law.fit.record() if law.fit else None
        laws.append(LawOfSizeAndData(law.series, fit, law.reason, law.allocation, behind))
    return SizesAndData(laws, [_at_equal_compute(budget, optima) for budget in find_budgets(best, series)])


def _at_equal_compute(budget: Budget, optima: Optima) -> EqualCompute:
    rows = optima.best[optima.best["series"] == budget.series].set_index(["num_params", "loss"], drop=False)
    rows = rows.loc[[*budget.points]]
    behind = optima.runs_behind(rows.reset_index(drop=True))
    return EqualCompute(**vars(budget), loss_se=rows["loss_se"].tolist(), stands_on=behind)


def _size_and_data(report: dict[str, Any]) -> Table:
    return table(
        "size_and_data",
        "L = E + A N^-alpha + B D^-beta, and the exponent of the best size for a compute, N ~ C^a",
        report["size_and_data"]["laws"],
        SERIES,
        *estimate(Column("E", "ratio"), "fit", "parameters", "E"),
        *estimate(Column("alpha", "ratio"), "fit", "parameters", "alpha"),
        *estimate(Column("beta", "ratio"), "fit", "parameters", "beta"),
        (Column("A", "number"), inside("fit", "parameters", "A", "value")),
        (Column("B", "number"), inside("fit", "parameters", "B", "value")),
        (Column("a", "ratio"), "allocation"),
        *stands_on(),
        WHY_NOT,
    )


def _isoflop(report: dict[str, Any]) -> Table:
    return table(
        "isoflop",
        "Best size at equal compute, by parabola",
        report["size_and_data"]["budgets"],
        SERIES,
        COMPUTE,
        (Column("sizes", "integer"), lambda budget: len(budget["points"])),
        (Column("best size", "count", "parameters"), "best_num_params"),
        *stands_on(),
    )


def plot_isoflop(report: dict[str, Any], styles: Styles) -> list[Drawing]:
    """Loss against size at equal compute, with parabolas; a ring at a minimum inside the sizes tried."""
    budgets = report["size_and_data"]["budgets"]
    out = []
    for name in styles.named:
        mine = [b for b in budgets if b["series"] == name]
        if not mine:
            continue
        across = axis_labels.across(report, "parameters N", "num_params")
        upright = axis_labels.upright(report, "validation loss", "loss", "nats per token")
        figure, axes = panel(f"{name} at equal compute", across, upright)
        for i, b in enumerate(mine):
            sizes, losses = zip(*b["points"], strict=True)
            style = {**styles.nth(i), "label": f"{flops(b['flops'])} flops"}
            axes.plot(sizes, losses, **{**style, "linestyle": "none"})
            error_bars(axes, sizes, losses, b["loss_se"], style["color"])
            if b["parabola"]:
                grid = np.geomspace(min(sizes), max(sizes), 40)
                x = np.log(grid) - b["centre"]
                c0, c1, c2 = b["parabola"]
                axes.plot(grid, np.exp(c0 + c1 * x + c2 * x**2), **{**style, "marker": "none", "label": None})
                if b["best_num_params"]:
                    x = np.log(b["best_num_params"]) - b["centre"]
                    axes.plot([b["best_num_params"]], [np.exp(c0 + c1 * x + c2 * x**2)], marker="o", markersize=11,
                              fillstyle="none", color=style["color"])  # fmt: skip
        log_axis(axes.xaxis, [float(n) for b in mine for n, _ in b["points"]], count)
        axes.yaxis.set_major_locator(MaxNLocator(6))
        finish(figure, axes)
        alt = (
            f"Loss of {name} against size at equal compute; rings mark the minima of parabolas inside the sizes tried."
        )
        out.append(Drawing(f"isoflop_{series_slug(name)}", f"{name} at equal compute", alt, figure))
    return out


def section(report: dict[str, Any], drawn: bool) -> list[Block] | str:
    """L(N, D), and parabolas where sizes were trained at equal compute."""
    laws = report["size_and_data"]["laws"]
    if not drawn and not any(law["fit"] for law in laws):
        return str(laws[0]["reason"]) if laws else "no series has a loss"
    blocks: list[Block] = [
        "L = E + A N^−α + B D^−β, where a series has runs at several token budgets a size; else the reason why it is "
        "not identified. Runs that branch from one run's checkpoints are resampled together.",
        Shown("size_and_data"),
    ]
    if drawn:
        blocks += [
            "At equal compute: parabolas in log N. A ring marks a minimum inside the sizes tried; minima at the edge "
            "are dropped. Parabolas are biased where the two exponents differ; the law's own allocation stands in the "
            "table above.",
            Figures(),
            Shown("isoflop", folded=True),
        ]
    return blocks


PART = Part(
    "size_and_data",
    SizesAndData,
    sizes_and_data,
    lambda report: [_size_and_data(report), _isoflop(report)],
    plot_isoflop,
    "Size and data",
    section,
)
