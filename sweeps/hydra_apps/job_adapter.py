"""What the engine must know of the jobs of a Hydra application: nothing but how they say why they failed."""

from __future__ import annotations

from pathlib import Path

from muloco_runner.record import RecordError, RunFolder
from sweeps.engine.outcome import Progress
from sweeps.engine.work import Adapter

HYDRA_JOB = Adapter(reports="sweeps.hydra_apps.job_adapter")


def read_progress(folder: Path) -> Progress | None:
    """What a failed attempt left (`sweeps.hydra_apps.program`); applications have no heartbeat."""
    try:
        status = RunFolder(folder).read_status()
    except RecordError:
        return None
    return Progress(status.attempt, message=status.exit_cause or "") if status is not None else None


def measured_minutes(folder: Path) -> float | None:
    """None: applications do not measure their time."""
    return None
