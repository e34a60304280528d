"""What an attempt itself has left behind, whatever the scheduler says of its job."""

from __future__ import annotations

from dataclasses import dataclass

from muloco_runner.record import RecordError, RunFolder, RunStatus, write_atomically
from sweeps.engine.work import Attempt, Ending, read_ending

_PROBE_BYTES = 4096


@dataclass(frozen=True)
class Outcome:
    finished: bool
    """The work has its result: by this attempt or another."""
    ending: Ending | None = None
    """None where the attempt has not ended, or was killed."""
    checkpoint_step: int = 0
    """Last step that a resume would start from; 0 for work that has no checkpoints."""
    minutes_left: float | None = None
    """From the last checkpoint to the end at the speed it was measured; None where that is not known."""
    said: str = ""
    """The attempt's one line on how it failed."""
    heartbeat_at: float | None = None
    """Unix seconds by the file system's clock; None for work that has no heartbeat."""


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
        finished=attempt.work.is_finished,
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
