"""The headline figures when one choice of the analysis is made otherwise."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, Literal

from analysis.laws.fit import DEFAULT_DELTA
from analysis.optima import RunsBehind
from analysis.page.drawing import INK, Drawing, finish, panel
from analysis.page.numbers import flops
from analysis.page.page_table import Column, Table
from analysis.page.section import Block, Figures, Shown
from analysis.page.styles import Styles
from analysis.page.table_fields import SERIES, WHY_NOT, stands_on, table
from analysis.questions.critical_batch_size import fit_laws
from analysis.questions.parts.critical_batches import fitted_curves
from analysis.questions.question import Inputs, Part
from analysis.questions.sensitivity import loss_variants


@dataclass(frozen=True)
class LossChoice:
    """The laws of loss under one choice made otherwise."""

    name: str
    """The choice made otherwise."""
    series: str
    irreducible_loss: float | None
    exponent: float | None
    ratio: float | None
    flops: float
    reason: str | None
    stands_on: RunsBehind | None


@dataclass(frozen=True)
class BatchChoice:
    """An exponent of the critical batch by another loss function."""

    series: str
    definition: str
    exponent: float
    ci: tuple[float | None, float | None] | None
    """95% interval, low and high; null where none was asked for or none exists."""
    other_exponent: float
    """Under the other loss function."""
    stands_on: RunsBehind


@dataclass(frozen=True)
class Choices:
    """Every choice; none where no law may rest on the columns."""

    loss: list[LossChoice]
    critical_batch: list[BatchChoice]
    other_delta: float | Literal["inf"]


def choices_otherwise(inputs: Inputs) -> Choices:
    """Laws of loss against compute and of the critical batch under other choices."""
    if inputs.optima.reason_against("flops", "loss", "num_params", "num_tokens"):
        return Choices([], [], "inf")
    other = math.inf if math.isfinite(inputs.options.delta) else DEFAULT_DELTA
    return Choices(_loss(inputs), _critical_batch(inputs, other), other if math.isfinite(other) else "inf")


def _loss(inputs: Inputs) -> list[LossChoice]:
    runs = inputs.best.set_index(["series", "num_params"])["runs"]
    of = inputs.optima.settings.groupby("series", observed=True)["runs"].sum()
    out = []
    for one in loss_variants(inputs.best, inputs.study.series, inputs.baseline, inputs.options.delta):
        behind = [runs[one.series, size] for size in one.sizes]
        stands = RunsBehind(sum(behind), of[one.series]) if behind else None
        out.append(
            LossChoice(
                one.name, one.series, one.irreducible_loss, one.exponent, one.ratio, one.flops, one.reason, stands
            )
        )
    return out


def _critical_batch(inputs: Inputs, other: float) -> list[BatchChoice]:
    points, optima = inputs.critical_batches, inputs.optima
    refitted = fit_laws(points, optima, other, 0, inputs.options.seed)
    return [
        BatchChoice(
            series=law.series,
            definition=law.definition,
            exponent=law.fit.value("alpha"),
            ci=law.fit.parameters["alpha"].ci,
            other_exponent=again.fit.value("alpha"),
            stands_on=optima.runs_behind(fitted_curves(law, points, optima)),
        )
        for law, again in zip(inputs.critical_batch_laws, refitted, strict=True)
        if law.fit and again.fit
    ]


def _sensitivity_loss(report: dict[str, Any]) -> Table:
    return table(
        "sensitivity_loss",
        "Laws of loss against compute under other choices; the ratio stands at the largest compute of the data",
        report["sensitivity"]["loss"],
        (Column("choice"), "name"),
        SERIES,
        (Column("irreducible loss", "loss"), "irreducible_loss"),
        (Column("exponent", "ratio"), "exponent"),
        (Column("compute ratio", "ratio"), "ratio"),
        *stands_on(),
        WHY_NOT,
    )


def _sensitivity_critical_batch(report: dict[str, Any]) -> Table:
    part = report["sensitivity"]
    other = "least squares" if part["other_delta"] == "inf" else f"Huber {part['other_delta']:g}"
    return table(
        "sensitivity_critical_batch",
        "Exponent of the critical batch by definition and loss function",
        part["critical_batch"],
        SERIES,
        (Column("definition"), "definition"),
        (Column("exponent", "ratio"), "exponent"),
        (Column("95% interval", "ratio"), "ci"),
        (Column(f"by {other}", "ratio"), "other_exponent"),
        *stands_on(),
    )


def plot_sensitivity(report: dict[str, Any], styles: Styles) -> list[Drawing]:
    """The compute ratio of each series under every choice, one row a choice."""
    rows = [v for v in report["sensitivity"]["loss"] if v["ratio"] is not None]
    if not rows:
        return []
    choices = list(dict.fromkeys(v["name"] for v in rows))
    names = [name for name in report["series"] if any(v["series"] == name for v in rows)]
    title = f"Compute ratio at {flops(rows[0]['flops'])} flops under other choices"
    x = f"compute of {report['settings']['baseline']} / series"
    figure, axes = panel(title, x, "choice", height=0.3 + 0.3 * len(choices))
    for i, name in enumerate(names):
        shift = 0.5 * ((i + 0.5) / len(names) - 0.5)
        mine = [v for v in rows if v["series"] == name]
        axes.plot([v["ratio"] for v in mine], [choices.index(v["name"]) + shift for v in mine], **styles.points(name))
    axes.axvline(1, color=INK, linewidth=0.8)
    axes.set_yticks(range(len(choices)), [_wrapped(c) for c in choices], fontsize=8)
    axes.set_ylim(len(choices) - 0.5, -0.5)
    finish(figure, axes)
    alt = "The compute ratio of each series under other loss functions, irreducible losses and subsets of the data."
    return [Drawing("sensitivity", title, alt, figure)]


def _wrapped(text: str) -> str:
    return text.replace(" (", "\n(")


def section(report: dict[str, Any], drawn: bool) -> list[Block] | str:
    """The ratios and exponents under each choice."""
    part = report["sensitivity"]
    if not part["critical_batch"] and all(row["ratio"] is None for row in part["loss"]):
        return "no law was fitted that another choice could move"
    return [
        "The same figures when one choice of the analysis is made otherwise. Where they move more than the intervals "
        "are wide, the choice decides and not the data.",
        Figures(),
        Shown("sensitivity_loss"),
        Shown("sensitivity_critical_batch"),
    ]


PART = Part(
    "sensitivity",
    Choices,
    choices_otherwise,
    lambda report: [_sensitivity_loss(report), _sensitivity_critical_batch(report)],
    plot_sensitivity,
    "Sensitivity",
    section,
)
