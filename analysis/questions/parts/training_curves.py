"""Loss against tokens of the run behind each best: read from run folders, thinned to what a figure can show."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import numpy as np
import pandas as pd

from analysis.page import axis_labels
from analysis.page.axes import loss_axis, upper_end
from analysis.page.drawing import Drawing, finish, panel, size_slug
from analysis.page.numbers import count
from analysis.page.section import Block, Figures
from analysis.page.styles import Styles
from analysis.questions.question import Part
from analysis.runs import Study
from analysis.seeds import run_folders
from muloco_runner.record import RecordError, RunFolder

_MOST_POINTS = 120


_FIRST_SHARE = 0.1
"""Of a run: its steep beginning, which is not what curves are compared by."""
_MEAN_OVER = 1 / 12
"""Of a run: a logged loss is that of few sequences where batches are small, and curves of those hide one another."""


@dataclass(frozen=True)
class CurvePoint:
    """A stretch of a run."""

    tokens: float
    loss: float
    """Mean of the logged training losses since the point before."""


@dataclass(frozen=True)
class TrainingCurve:
    """Training loss of the best run of a series and size."""

    series: str
    num_params: int
    run_id: str
    points: list[CurvePoint]


def training_curves(best: pd.DataFrame, study: Study) -> list[TrainingCurve]:
    """The curve of the best run (lowest loss among its setting's seeds) of each row; none for tables."""
    if study.folder is None:
        return []
    return [
        TrainingCurve(series, n, folder.run_id, _points(folder))
        for series, n, folder in zip(best["series"], best["num_params"], run_folders(study, best), strict=True)
    ]


def _points(folder: RunFolder) -> list[CurvePoint]:
    """Means of the logged training losses over at most `_MOST_POINTS` equal stretches of the run."""
    try:
        steps = [step for step in folder.read_steps() if step.loss is not None]
    except (RecordError, OSError):
        return []
    return [
        CurvePoint(part[-1].tokens, float(np.mean([step.loss for step in part])))
        for part in _stretches(steps, _MOST_POINTS)
    ]


def _stretches(steps: list[Any], most: int) -> list[list[Any]]:
    """The list cut into at most `most` parts of nearly equal length."""
    ends = np.linspace(0, len(steps), min(most, len(steps)) + 1).astype(int) if steps else np.zeros(1, int)
    return [steps[start:end] for start, end in pairwise(ends)]


def plot_training_curves(report: dict[str, Any], styles: Styles) -> list[Drawing]:
    """Training loss against tokens of the best run of each series, a panel a size; the steep beginning leaves it."""
    out = []
    for n in sorted({curve["num_params"] for curve in report["training_curves"]}):
        curves = [c for c in report["training_curves"] if c["num_params"] == n and len(c["points"]) > 1]
        if not curves:
            continue
        title = f"{count(n)} parameters"
        across = axis_labels.across(report, "training tokens", "num_tokens")
        figure, axes = panel(title, across, "training loss (nats per token)")
        late: list[float] = []
        for curve in curves:
            tokens = [p["tokens"] for p in curve["points"]]
            losses = _running_mean([p["loss"] for p in curve["points"]])
            axes.plot(tokens, losses, **{**styles.line(curve["series"]), "markevery": 0.2, "linewidth": 1.0})
            steep = (_FIRST_SHARE + _MEAN_OVER / 2) * tokens[-1]
            late += [loss for at, loss in zip(tokens, losses, strict=True) if at >= steep]
        upper_end(axes, late)
        axes.xaxis.set_major_formatter(lambda value, _: count(value))
        loss_axis(axes)
        finish(figure, axes)
        alt = f"Training loss against tokens of the best run of each series, models of {count(n)} parameters."
        out.append(Drawing(f"training_curves_{size_slug(n)}", title, alt, figure))
    return out


def _running_mean(losses: list[float]) -> list[float]:
    width = max(1, round(_MEAN_OVER * len(losses)))
    means: list[float] = pd.Series(losses).rolling(width, center=True, min_periods=1).mean().tolist()
    return means


def section(report: dict[str, Any], drawn: bool) -> list[Block] | str:
    """The curves, a panel a size."""
    if not drawn:
        return "no run has logged two training losses" if report["training_curves"] else "a table has no steps"
    return [
        "Training loss of the best run of each series, a running mean over a twelfth of the run; its steep beginning "
        "may leave the panel.",
        Figures(),
    ]


PART = Part(
    "training_curves",
    list[TrainingCurve],
    lambda inputs: training_curves(inputs.best, inputs.study),
    plot=plot_training_curves,
    title="Training curves",
    section=section,
)
