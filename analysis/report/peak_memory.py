"""Peak memory of the runs behind settings, as their own records have it."""

from __future__ import annotations

import math

import pandas as pd

from analysis.runs import Study
from analysis.seeds import run_folders
from muloco_runner.record import RecordError, RunFolder


def with_peak_memory(settings: pd.DataFrame, study: Study) -> pd.DataFrame:
    """`settings` with `memory_bytes`: of run folders that of the run behind each row, of a table what that says.

    Bytes of the main rank: of its device, or of its process where it has none. NaN where nothing is recorded.
    """
    if study.folder is None:
        return settings
    return settings.assign(memory_bytes=[_peak(folder) for folder in run_folders(study, settings)])


def _peak(folder: RunFolder) -> float:
    try:
        logged = [step.memory_bytes for step in folder.read_steps() if step.memory_bytes]
    except (RecordError, OSError):
        return math.nan
    return float(max(logged, default=math.nan))
