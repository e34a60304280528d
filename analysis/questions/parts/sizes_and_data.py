"""L(N, D) of each series, and sizes at equal compute."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from analysis.laws.fit import FitRecord
from analysis.optima import Optima, RunsBehind
from analysis.page.figures.compute import plot_isoflop
from analysis.page.page_table import Column, Table
from analysis.page.table_fields import COMPUTE, SERIES, WHY_NOT, estimate, inside, stands_on, table
from analysis.questions.isoflop import Budget, find_budgets, fit_size_and_data
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
    for law in fit_size_and_data(best, series, options.delta, options.bootstrap, options.seed):
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


PART = Part(
    "size_and_data",
    SizesAndData,
    sizes_and_data,
    lambda report: [_size_and_data(report), _isoflop(report)],
    (plot_isoflop,),
)
