"""Loss against training tokens: the best of every series and size at every token budget that was tried.

All else of the report compares sizes at one budget in tokens per parameter; this is where the others are seen. Their
points are what `size_and_data` is fitted to.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from analysis.optima import Optima
from analysis.page.axes import error_bars, log_axis, loss_axis
from analysis.page.drawing import Drawing, finish, panel, size_slug
from analysis.page.numbers import count, number
from analysis.page.page_table import Column, Table
from analysis.page.styles import Styles
from analysis.questions.question import NOT_IDENTIFIED, Inputs, Question
from analysis.seeds import Comparison, compare_seeds


@dataclass(frozen=True)
class BudgetPoint:
    """The best setting of one series at one size and budget."""

    series: str
    num_params: int
    tokens_per_parameter: float
    num_tokens: float
    loss: float
    """Mean over seeds: those that took no part in choosing the setting, where it has such seeds."""
    loss_se: float | None
    """Standard error of the mean over seeds; null for one seed."""
    seeds: int
    global_batch_tokens: int
    lr: float | None
    settings: int
    """That were tried at this batch."""
    against_baseline: Comparison | None
    """Loss over the baseline's at the same size and budget, minus one; null for the baseline, and where it has none."""


@dataclass(frozen=True)
class TokenBudgets:
    """Every size with two budgets or more, or why there is none."""

    baseline: str
    points: list[BudgetPoint]
    reason: str | None


def compute(inputs: Inputs) -> TokenBudgets:
    """Points by size, budget and series."""
    if against := inputs.optima.reason_against("num_tokens", "loss"):
        return TokenBudgets(inputs.baseline, [], against)
    points = budget_points(inputs.optima, inputs.baseline)
    return TokenBudgets(inputs.baseline, points, None if points else "no size was trained at two token budgets")


def budget_points(optima: Optima, baseline: str) -> list[BudgetPoint]:
    """Every series at every size that has two budgets or more."""
    best = optima.best
    several = best.groupby("num_params")["tokens_per_parameter"].transform("nunique") > 1
    rows = best[several].sort_values(["num_params", "tokens_per_parameter", "series"]).to_dict("records")
    reference = {_scale(row): row["seed_losses"] for row in rows if row["series"] == baseline}
    out = []
    for row in rows:
        other = None if row["series"] == baseline else reference.get(_scale(row))
        out.append(
            BudgetPoint(
                series=row["series"],
                num_params=row["num_params"],
                tokens_per_parameter=row["tokens_per_parameter"],
                num_tokens=row["num_tokens"],
                loss=row["loss"],
                loss_se=row["loss_se"],
                seeds=row["seeds"],
                global_batch_tokens=row["global_batch_tokens"],
                lr=row["lr"],
                settings=row["settings"],
                against_baseline=None if other is None else compare_seeds(row["seed_losses"], other),
            )
        )
    return out


def _scale(row: Mapping[Any, Any]) -> tuple[Any, Any]:
    return row["num_params"], row["tokens_per_parameter"]


def section(result: TokenBudgets) -> list[str]:
    """What is shown, and why there may be nothing."""
    if result.reason:
        return [f"{NOT_IDENTIFIED}{result.reason}."]
    return [
        "Sizes with runs at several token budgets: the best setting of each series at each, whatever its schedule. "
        "Bars are standard errors over seeds."
    ]


def rows(result: TokenBudgets) -> list[Table]:
    """One row a size, budget and series."""
    table = Table(
        "token_budgets",
        "Best loss at every token budget",
        [
            Column("size", "count", "parameters"), Column("tokens per parameter", "number"),
            Column("tokens D", "count"), Column("series"), Column("loss", "loss", "nats per token"),
            Column("standard error of the loss", "standard_error", joint=" ± "), Column("seeds", "integer"),
            Column(f"loss against {result.baseline}", "percent"),
            Column(f"loss against {result.baseline}, standard error", "spread", joint=" ± "),
            Column("batch", "count", "tokens"), Column("lr", "number"), Column("settings", "integer"),
        ],
        [
            [
                p.num_params, p.tokens_per_parameter, p.num_tokens, p.series, p.loss, p.loss_se, p.seeds,
                p.against_baseline and p.against_baseline.relative, p.against_baseline and p.against_baseline.se,
                p.global_batch_tokens, p.lr, p.settings,
            ]
            for p in result.points
        ],
    )  # fmt: skip
    return [table] if table.rows else []


def plot(result: TokenBudgets, styles: Styles) -> list[Drawing]:
    """Loss against tokens, a figure a size."""
    out = []
    for n in dict.fromkeys(p.num_params for p in result.points):
        mine = [p for p in result.points if p.num_params == n]
        title = f"{count(n)} parameters: loss against tokens"
        figure, axes = panel(title, "training tokens D", "validation loss (nats per token)")
        for name in dict.fromkeys(p.series for p in mine):
            own = [p for p in mine if p.series == name]
            tokens = [p.num_tokens for p in own]
            axes.plot(tokens, [p.loss for p in own], **styles.line(name))
            error_bars(axes, tokens, [p.loss for p in own], [p.loss_se for p in own], styles.line(name)["color"])
        log_axis(axes.xaxis, [p.num_tokens for p in mine], count)
        loss_axis(axes)
        finish(figure, axes)
        budgets = ", ".join(number(one) for one in dict.fromkeys(p.tokens_per_parameter for p in mine))
        alt = (
            f"Validation loss against training tokens, models of {count(n)} parameters, {budgets} tokens per parameter."
        )
        out.append(Drawing(f"loss_vs_tokens_{size_slug(n)}", title, alt, figure))
    return out


QUESTION = Question(
    name="token_budgets",
    title="Loss against training tokens",
    result=TokenBudgets,
    compute=compute,
    section=section,
    rows=rows,
    plot=plot,
)
