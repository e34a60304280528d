"""Loss against tokens of the run behind each best: read from run folders, thinned to what a figure can show."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import numpy as np
import pandas as pd

from analysis.page.figures.overview import plot_training_curves
from analysis.questions.question import Part
from analysis.runs import Study
from analysis.seeds import run_folders
from muloco_runner.record import RecordError, RunFolder

_MOST_POINTS = 120


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


PART = Part(
    "training_curves",
    list[TrainingCurve],
    lambda inputs: training_curves(inputs.best, inputs.study),
    lambda report: [],
    (plot_training_curves,),
)
