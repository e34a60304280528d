"""Loss against tokens of the run behind each best: read from run folders, thinned to what a figure can show."""

from __future__ import annotations

from itertools import pairwise
from typing import Any

import numpy as np
import pandas as pd

from analysis.runs import Study
from analysis.seeds import SETTING
from muloco_runner.record import RecordError, RunFolder

_MOST_POINTS = 120


def training_curves(best: pd.DataFrame, study: Study) -> list[dict[str, Any]]:
    """The curve of the best run (lowest loss among its setting's seeds) of each row; none for tables."""
    if study.folder is None:
        return []
    finished = study.runs[~study.runs["diverged"]].sort_values(["loss", "run_id"], kind="stable")
    runs = finished.drop_duplicates(SETTING).set_index(SETTING)["run_id"]
    out = []
    for row in best.to_dict("records"):
        run_id = str(runs[tuple(row[name] for name in SETTING)])
        points = _points(RunFolder(study.folder / run_id))
        out.append({"series": row["series"], "num_params": row["num_params"], "run_id": run_id, "points": points})
    return out


def _points(folder: RunFolder) -> list[dict[str, float]]:
    """Means of the logged training losses over at most `_MOST_POINTS` equal stretches of the run."""
    try:
        steps = [step for step in folder.read_steps() if step.loss is not None]
    except (RecordError, OSError):
        return []
    return [
        {"tokens": part[-1].tokens, "loss": float(np.mean([step.loss for step in part]))}
        for part in _stretches(steps, _MOST_POINTS)
    ]


def _stretches(steps: list[Any], most: int) -> list[list[Any]]:
    """The list cut into at most `most` parts of nearly equal length."""
    ends = np.linspace(0, len(steps), min(most, len(steps)) + 1).astype(int) if steps else np.zeros(1, int)
    return [steps[start:end] for start, end in pairwise(ends)]
