"""What the engine must know of the jobs of a Hydra application: what they say of themselves (`job_progress`)."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

from muloco_runner.record import RecordError, RunFolder
from sweeps.engine.outcome import Headway, Progress
from sweeps.engine.work import Adapter, Work

HYDRA_JOB = Adapter(reports="sweeps.hydra_apps.job_adapter")


def read_progress(folder: Path) -> Progress | None:
    """What the newest attempt has reported. How often an application does, `heartbeat_timeout_minutes` must say."""
    run = RunFolder(folder)
    try:
        status = run.read_status()
        heartbeat_at = run.status_file.stat().st_mtime
    except (RecordError, FileNotFoundError, NotADirectoryError):
        return None
    if status is None:
        return None
    return Progress(
        status.attempt,
        heartbeat_at,
        checkpoint_step=status.checkpoint_step,
        message=status.exit_cause or "",
        share=status.step / status.num_steps if status.num_steps else None,
        share_before=(status.resumed_step or 0) / status.num_steps if status.num_steps else None,
        done=max(0, status.step - (status.resumed_step or 0)),
        kept=max(0, status.checkpoint_step - (status.resumed_step or 0)),
        unit="steps",
        headway=Headway(status.step, heartbeat_at),
    )


def measured_minutes(folder: Path) -> float | None:
    """None: applications do not measure their time."""
    return None


def losses_at(folder: Path, shares: Sequence[str]) -> dict[str, float]:
    """Applications have no curve that is known here."""
    return {}


def final_loss(folder: Path) -> float | None:
    """None: what applications return is their own."""
    return None


def likeness(work: Work) -> str:
    """The job's overrides but for those that change no step's time in any application."""
    own = {key: value for key, value in work.labels.items() if key.rpartition(".")[2] not in _NOT_OF_SPEED}
    return json.dumps(own, sort_keys=True, default=str)


_NOT_OF_SPEED = ("seed", "lr", "learning_rate", "weight_decay")
"""Last parts of keys."""
