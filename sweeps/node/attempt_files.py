"""What an attempt leaves in the folder of its work: its ending, its result, its heartbeat."""

from __future__ import annotations

import json
import os
from dataclasses import asdict
from pathlib import Path

from muloco_runner.record import RecordError, RunFolder, RunStatus, write_atomically
from sweeps.engine.outcome import Ending, Outcome
from sweeps.engine.work import Attempt, Work

_PROBE_BYTES = 4096


def is_finished(work: Work) -> bool:
    """Whether the work's folder holds its result."""
    return os.path.exists(Path(work.folder, work.result))  # also where the folder may not be read


def write_ending(attempt: Attempt, ending: Ending) -> None:
    write_atomically(attempt.folder / "ending.json", json.dumps(asdict(ending)) + "\n")


def read_ending(attempt: Attempt) -> Ending | None:
    """What the attempt left, or None where it has not ended, was killed, or could leave nothing in its folder."""
    try:
        return Ending(**json.loads((attempt.folder / "ending.json").read_text()))
    except (FileNotFoundError, NotADirectoryError, PermissionError, ValueError, TypeError):
        return None


def read_outcome(attempt: Attempt) -> Outcome:
    """From the files of the work's folder; what is not readable counts as not there."""
    folder = RunFolder(attempt.work.folder)
    heartbeat_at = None
    try:
        status = folder.read_status()
        heartbeat_at = folder.status_file.stat().st_mtime
    except (RecordError, FileNotFoundError, NotADirectoryError):
        status = None
    said = status.exit_cause if status is not None and status.attempt == attempt.number else None
    checkpoint_step = status.checkpoint_step if status is not None else 0
    return Outcome(
        finished=is_finished(attempt.work),
        ending=read_ending(attempt),
        checkpoint_step=checkpoint_step,
        minutes_left=_minutes_left(status) if status is not None else None,
        said=said or "",
        heartbeat_at=heartbeat_at,
    )


def write_error_in_folder(attempt: Attempt) -> str:
    """Why an attempt can write nothing where it must, seen by trying; nothing where it can."""
    probe = attempt.folder / ".probe"
    try:
        write_atomically(probe, bytes(_PROBE_BYTES))
        probe.unlink()
    except OSError as error:
        return f"{error.strerror}: {error.filename or attempt.folder}"
    return ""


def _minutes_left(status: RunStatus) -> float | None:
    if not status.tokens_per_second or not status.step or not status.tokens:
        return None
    tokens_per_step = status.tokens / status.step
    return (status.num_steps - status.checkpoint_step) * tokens_per_step / status.tokens_per_second / 60


def measured_minutes(work: Work) -> float | None:
    """Training time of a finished run, all attempts together; None where there is no result."""
    try:
        result = RunFolder(work.folder).read_result()
    except RecordError:
        return None
    return result.train_seconds / 60 if result is not None else None
