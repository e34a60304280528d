"""The files of a run's folder, by their names; what they hold is in `records`.

<root>/runs/<run_id>/
  config_sources.json  where it was composed from, if not from the package's files alone
  config.yaml      resolved RunConfig: YAML that is JSON as well, so that it needs no parser beyond the standard library
  target_code.json     of an optimizer from outside: hashes of its code, and the copy that jobs import
  record.jsonl     one header, then one line per logged step; append-only; a torn last line is tolerated
  parent.json      of a run that goes on from another's checkpoint: that run, and the step
  status.json      heartbeat, replaced atomically
  result.json      written once, at the end
  checkpoint/      step-<n>/: the newest two complete ones while it trains; of a finished run what was to be kept
  evaluations/     step-<n>/: losses and scores of that checkpoint (`muloco-model eval`)
  attempts/<n>/    what each attempt left: stdout, stderr, environment.json
  rendezvous-<job> where the ranks of a job meet; removed once they have
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import json
import os
import re
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from muloco_runner.config import ConfigError
from muloco_runner.record.atomic_files import write_atomically
from muloco_runner.record.config_text import config_text
from muloco_runner.record.records import (
    Line,
    RecordError,
    RecordHeader,
    RunResult,
    RunStatus,
    StepRecord,
    from_values,
    to_line,
    to_values,
)

CHECKPOINT_PREFIX = "step-"
WANDB_FAILURE = "wandb-failure.txt"
"""In an attempt's folder: one line on why Weights & Biases has not got its records."""
CHECKPOINTS_KEPT = 2
"""Checkpoints of a run that trains, besides one that is being written."""
PARENT = "parent.json"
_EARLY_STOP = "early_stop.json"
_RENAMED = {"lr": "scheduled_lr"}
"""Quantities of a logged step: their names in older records -> their names now."""

_RUN_ID = re.compile(r"[0-9a-f]{12}")


class AlreadyRunning(RuntimeError):
    """Another process works in this run's folder."""


class RunFolder:
    """The paths of one run and the only code that reads or writes its JSON files."""

    def __init__(self, path: str | os.PathLike[str]) -> None:
        self.path = Path(path)

    @classmethod
    def of(cls, root: str | os.PathLike[str], run_id: str) -> RunFolder:
        return cls(Path(root) / "runs" / run_id)

    @staticmethod
    def all_under(root: str | os.PathLike[str]) -> list[RunFolder]:
        """Every run folder below `root` or `root`/runs, sorted by run_id."""
        base = Path(root)
        base = base / "runs" if (base / "runs").is_dir() else base
        if not base.is_dir():
            return []
        with os.scandir(base) as entries:
            names = sorted(e.name for e in entries if _RUN_ID.fullmatch(e.name) and e.is_dir())
        return [RunFolder(base / name) for name in names]

    @property
    def run_id(self) -> str:
        return self.path.name

    @property
    def config_file(self) -> Path:
        return self.path / "config.yaml"

    @property
    def record_file(self) -> Path:
        return self.path / "record.jsonl"

    @property
    def status_file(self) -> Path:
        return self.path / "status.json"

    @property
    def result_file(self) -> Path:
        return self.path / "result.json"

    @property
    def checkpoint_dir(self) -> Path:
        return self.path / "checkpoint"

    def checkpoint_at(self, step: int) -> Path:
        """The folder of the checkpoint after `step` inner steps."""
        return self.checkpoint_dir / checkpoint_name(step)

    def evaluations_at(self, step: int) -> Path:
        """The folder of the evaluations of that checkpoint."""
        return self.path / "evaluations" / checkpoint_name(step)

    def checkpoint_steps(self) -> list[int]:
        """Inner steps after which there is a complete checkpoint, ascending."""
        return checkpoint_steps_in(self.checkpoint_dir)

    def attempt_dir(self, attempt: int) -> Path:
        return self.path / "attempts" / str(attempt)

    @contextlib.contextmanager
    def exclusive_use(self) -> Iterator[None]:
        """Holds the folder's lock, which the kernel releases when the process dies; where another process holds it,
        raises `AlreadyRunning`."""
        with open(self.path / ".lock", "a") as file:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                raise AlreadyRunning(f"{self.path}: another process is training this run") from None
            yield

    # Reading

    def read_config(self) -> dict[str, Any]:
        """The argument of `RunConfig.from_dict`. A missing or damaged file raises `RecordError`."""
        try:
            values = json.loads(self.config_file.read_text())
        except FileNotFoundError:
            raise RecordError(f"{self.config_file}: no such file, so {self.path} is no run folder") from None
        except ValueError as error:
            raise RecordError(f"{self.config_file}: not JSON ({error})") from error
        if not isinstance(values, dict):
            raise RecordError(f"{self.config_file}: not a JSON object")
        return values

    def read_status(self) -> RunStatus | None:
        return _read_json(self.status_file, RunStatus)

    def read_result(self) -> RunResult | None:
        return _read_json(self.result_file, RunResult)

    def read_parent(self) -> tuple[str, int] | None:
        """The id of the run whose checkpoint it began from, and the step of that; None of a run that began by itself,
        or where the file is damaged."""
        try:
            values = json.loads((self.path / PARENT).read_text())
            return str(values["run_id"]), int(values["step"])
        except (OSError, ValueError, KeyError, TypeError):
            return None

    def read_early_stop(self) -> tuple[int, str] | None:
        """Return the attempt in which a sweep has stopped the run early, and why; None where none has."""
        try:
            values = json.loads((self.path / _EARLY_STOP).read_text(encoding="utf-8"))
            return int(values["attempt"]), str(values["why"])
        except (OSError, ValueError, KeyError, TypeError):
            return None

    def read_header(self) -> RecordHeader | None:
        """The header of the record, or None where no complete one was written."""
        for values in _complete_lines(self.record_file):
            return from_values(RecordHeader, values, self.record_file)
        return None

    def read_steps(self) -> list[StepRecord]:
        """Logged steps in order. Where a resumed attempt logged a step again, its last line counts."""
        lines = _complete_lines(self.record_file)
        next(lines, None)
        steps: dict[int, StepRecord] = {}
        for values in lines:
            renamed = {_RENAMED.get(key, key): value for key, value in values.items()}
            step = from_values(StepRecord, renamed, self.record_file)
            steps[step.step] = step
        return [steps[number] for number in sorted(steps)]

    # Writing

    def write_config(self, values: dict[str, Any]) -> None:
        """Makes the folder and says which run it is for. Written again only with the same values, or where data that is
        known by its content lies elsewhere now.

        A folder that cannot be written raises `ConfigError`.
        """
        try:
            if not self.config_file.exists() or _data_has_moved(self.read_config(), values):
                write_atomically(self.config_file, config_text(values))
        except OSError as error:
            remedy = "make room there, or choose" if error.errno in (errno.ENOSPC, errno.EDQUOT) else "choose"
            raise ConfigError(f"{self.path}: {error.strerror}: {remedy} another root") from None

    def write_config_sources(self, sources: Mapping[str, Any]) -> None:
        """Writes which folders the config was composed from last, and which built-in files were shadowed."""
        write_atomically(self.path / "config_sources.json", json.dumps(sources, indent=1) + "\n")

    def write_parent(self, run_id: str, step: int) -> None:
        """Says from which run's checkpoint this one begins."""
        write_atomically(self.path / PARENT, json.dumps({"run_id": run_id, "step": step}) + "\n")

    def write_early_stop(self, attempt: int, why: str) -> None:
        """Says that a sweep has stopped the run early in that attempt; another one may take it to its end."""
        write_atomically(self.path / _EARLY_STOP, json.dumps({"attempt": attempt, "why": why}) + "\n")

    def write_status(self, status: RunStatus) -> None:
        status.updated_at = time.time()
        write_atomically(self.status_file, to_line(status))

    def write_result(self, result: RunResult) -> None:
        """Written once: a second, different result for the same run is a bug and raises."""
        if self.result_file.exists():
            raise FileExistsError(f"{self.result_file} exists: a run has one result")
        result.finished_at = time.time()
        write_atomically(self.result_file, json.dumps(to_values(result), indent=1, allow_nan=False) + "\n")

    def write_environment(self, attempt: int, values: dict[str, Any]) -> None:
        """Write what an attempt runs with, unless whoever started it has written that already."""
        file = self.attempt_dir(attempt) / "environment.json"
        if not file.exists():
            write_atomically(file, json.dumps(values, indent=1) + "\n")

    def append_record(self, line: RecordHeader | StepRecord) -> None:
        """Appends one line. A torn line left by a killed writer is closed first, so that it stays alone."""
        text = to_line(line)
        with open(self.record_file, "ab+") as file:
            if file.tell() > 0:
                file.seek(-1, os.SEEK_END)
                if file.read(1) != b"\n":
                    text = "\n" + text
            file.write(text.encode())


def checkpoint_name(step: int) -> str:
    """Name of the folder of the checkpoint after `step` inner steps."""
    return f"{CHECKPOINT_PREFIX}{step:08d}"


def checkpoint_step(folder: Path) -> int | None:
    """The step in a checkpoint's name; None of any other folder."""
    before, _, number = folder.name.partition(CHECKPOINT_PREFIX)
    return int(number) if not before and number.isdigit() else None


def checkpoint_steps_in(folder: Path) -> list[int]:
    """Inner steps of the checkpoints in a folder, ascending."""
    steps = map(checkpoint_step, folder.glob(f"{CHECKPOINT_PREFIX}*"))
    return sorted(step for step in steps if step is not None)


def _data_has_moved(before: dict[str, Any], now: dict[str, Any]) -> bool:
    there, here = before.get("data") or {}, now.get("data") or {}
    hashes = [key for key in ("content_hash", "validation_hash") if here.get(key) is not None]
    return bool(hashes) and there != here and all(there.get(key) == here[key] for key in hashes)


def _read_json(path: Path, cls: type[Line]) -> Line | None:
    try:
        text = path.read_text()
    except (FileNotFoundError, NotADirectoryError):
        return None
    except PermissionError as error:
        raise RecordError(f"{path}: {error.strerror}") from error
    try:
        values = json.loads(text)
    except ValueError as error:
        raise RecordError(f"{path}: not JSON ({error})") from error
    if not isinstance(values, dict):
        raise RecordError(f"{path}: not a JSON object")
    return from_values(cls, values, path)


def _complete_lines(path: Path) -> Iterator[dict[str, Any]]:
    """Lines that are complete JSON objects. A torn line can only be one that a killed writer left; it is skipped."""
    if not path.exists():
        return
    with open(path, encoding="utf-8", errors="replace") as file:
        for line in file:
            try:
                values = json.loads(line)
            except ValueError:
                continue
            if isinstance(values, dict):
                yield values
