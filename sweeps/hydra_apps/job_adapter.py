"""What the engine must know of the jobs of a Hydra application: what they say of themselves (`job_progress`)."""

from __future__ import annotations

from pathlib import Path

from muloco_runner.record import RecordError, RunFolder
from sweeps.engine.outcome import Progress
from sweeps.engine.work import Adapter

HYDRA_JOB = Adapter(reports="sweeps.hydra_apps.job_adapter")


def read_progress(folder: Path) -> Progress | None:
    """What the newest attempt has reported. Nobody knows how often an application reports: silence means nothing."""
    try:
        status = RunFolder(folder).read_status()
    except RecordError:
        return None
    if status is None:
        return None
    return Progress(
        status.attempt,
        checkpoint_step=status.checkpoint_step,
        message=status.exit_cause or "",
        share=status.step / status.num_steps if status.num_steps else None,
    )


def measured_minutes(folder: Path) -> float | None:
    """None: applications do not measure their time."""
    return None
