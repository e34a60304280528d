"""What a job says of itself while it runs: how far it is, what it could not do, why it failed.

An application that saves its work and is to go on later, in another attempt, ends with exit code 75. Said with
`report_progress`, a newer checkpoint each time, that may happen any number of times; without, the second such end in a
row holds the job.
"""

from __future__ import annotations

import os
from dataclasses import replace

from muloco_runner.record import RecordError, RunFolder, RunStatus
from sweeps.node.run_attempt import TASK_RANK

_FOLDER = "MULOCO_RUN_FOLDER"
_LONGEST_LINE = 300


def report_progress(step: int, num_steps: int = 0, checkpoint_step: int | None = None) -> bool:
    """Report how far the job has come, from its first task; anywhere else nothing happens.

    Args:
        step: steps done so far, by all attempts together; a step is whatever the application counts.
        num_steps: steps in all; 0 where that is not known.
        checkpoint_step: the step that another attempt would go on from; None for the one reported before.

    Returns:
        Whether it was written: False outside of the launcher's jobs and in their tasks after the first.
    """
    # Of numpy or torch too, and whole floats.
    step, num_steps = int(step), int(num_steps)
    checkpoint_step = None if checkpoint_step is None else int(checkpoint_step)
    for name, value in (("step", step), ("num_steps", num_steps), ("checkpoint_step", checkpoint_step or 0)):
        if value < 0:
            raise ValueError(f"{name}={value}: must be zero or more")
    if _FOLDER not in os.environ or os.environ.get(TASK_RANK) != "0":
        return False
    status = _status()
    saved = status.checkpoint_step if checkpoint_step is None else checkpoint_step
    _write(replace(status, step=step, num_steps=num_steps, checkpoint_step=saved))
    return True


def begin_reports(folder: str, attempt: int) -> None:
    """What earlier attempts have saved stays reported; what else they said is not this one's."""
    os.environ[_FOLDER] = folder
    before = _read(RunFolder(folder))
    saved = before.checkpoint_step if before is not None else 0
    run_id = RunFolder(folder).run_id
    _write(RunStatus(run_id, "running", step=saved, checkpoint_step=saved, attempt=attempt, resumed_step=saved))


def report_failure(cause: str) -> None:
    """Report why the attempt fails, in one line."""
    _write(replace(_status(), state="failed", exit_cause=" ".join(cause.split())[:_LONGEST_LINE]))


def report_warning(warning: str) -> None:
    """Report what went wrong without making the job fail, in one line."""
    _write(replace(_status(), warning=warning[:_LONGEST_LINE]))


def _status() -> RunStatus:
    folder = RunFolder(os.environ[_FOLDER])
    return _read(folder) or RunStatus(folder.run_id, "running")


def _read(folder: RunFolder) -> RunStatus | None:
    try:
        return folder.read_status()
    except RecordError:
        return None


def _write(status: RunStatus) -> None:
    RunFolder(os.environ[_FOLDER]).write_status(status)
