"""What an attempt leaves in the folder of its work: its ending, its result, its heartbeat."""

from __future__ import annotations

import json
import os
import re
from dataclasses import asdict
from pathlib import Path

from muloco_runner.record import ExitCode, write_atomically
from sweeps.engine.outcome import Ending, Outcome
from sweeps.engine.work import Attempt, Work
from sweeps.node.reports import read_progress

_PROBE_BYTES = 1 << 20
"""More than what an attempt says of itself; of random content, which no file system stores in less."""
SETUP_FAILURE = "setup_failed.txt"
"""Left by a job's script whose setup failed before the attempt: exit code, last line of output, command."""


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
    """Reads the files of the work's folder; what is not readable counts as not there."""
    progress = read_progress(attempt.work)
    finished, ending = is_finished(attempt.work), read_ending(attempt)
    if ending is None and (failure := _setup_failure(attempt)) is not None:
        ending, message = failure
        return Outcome(
            finished,
            ending,
            checkpoint_step=progress.checkpoint_step if progress else 0,
            minutes_left=progress.minutes_left if progress else None,
            message=message,
        )
    if progress is None:
        return Outcome(finished, ending)
    return Outcome(
        finished,
        ending,
        checkpoint_step=progress.checkpoint_step,
        minutes_left=progress.minutes_left,
        message=progress.message if progress.attempt == attempt.number else "",
        heartbeat_at=progress.heartbeat_at,
        report=progress if progress.attempt == attempt.number else None,
    )


def _setup_failure(attempt: Attempt) -> tuple[Ending, str] | None:
    """How the setup before the attempt failed, and one line of words; None where it did not."""
    path = attempt.folder / SETUP_FAILURE
    try:
        code, said, *command = path.read_text(errors="replace").splitlines()
        at = path.stat().st_mtime
    except (OSError, ValueError):
        return None
    # Without the script's name, which holds the job's number: the same failure has the same words.
    said = re.sub(r"^\S*slurm_script: (line \d+: )?", "", said.strip())
    words = f"`{' '.join(command).strip()}` ended with code {code}" + (f": {said}" if said else "")
    return Ending(int(ExitCode.SETUP_FAILED), "", at, at, by_watcher=True), words


def write_error_in_folder(attempt: Attempt) -> str:
    """Why an attempt can write nothing where it must, seen by trying; nothing where it can. Leaves nothing behind."""
    try:
        there = next(path for path in (attempt.folder, *attempt.folder.parents) if path.exists())
        probe = (there if there.is_dir() else attempt.folder) / ".probe"
        write_atomically(probe, os.urandom(_PROBE_BYTES))
        probe.unlink()
    except OSError as error:
        return f"{error.strerror}: {error.filename or attempt.folder}"
    return ""
