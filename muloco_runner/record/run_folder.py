"""The files of a run's folder, typed and versioned.

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
"""

from __future__ import annotations

import contextlib
import dataclasses
import errno
import json
import math
import os
import re
import shutil
import tempfile
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

from muloco_runner.config import ConfigError
from muloco_runner.record.config_text import config_text

FORMAT_VERSION = 1


class RecordError(ValueError):
    """A file of a run folder that is not what its format promises."""


@dataclass
class RecordHeader:
    """First line of `record.jsonl`: what was asked and on which data."""

    run_id: str
    algorithm: str
    config: dict[str, Any]
    corpus_hash: str
    """Content hash of the tokens; a run never resumes on, and an analysis never mixes, other data."""
    num_params: int
    num_steps: int
    num_tokens: int
    """Tokens planned: steps times batch."""
    bytes_per_token: float
    """Mean bytes of text in a token of the validation set; 1 for byte-level data."""
    baselines: dict[str, float] = field(default_factory=dict)
    """Validation loss, nats per token, of models that know nothing but frequencies of the same training text
    (`unigram`, `bigram`); empty where the vocabulary is too large to count pairs."""
    versions: dict[str, str] = field(default_factory=dict)
    created_at: float = 0.0
    """Unix seconds."""
    format_version: int = FORMAT_VERSION


@dataclass
class StepRecord:
    """One logged inner step. Absent quantities are None and are not written. Losses are nats per token."""

    step: int
    """Inner steps completed."""
    tokens: int
    """Tokens seen by all workers so far."""
    loss: float | None = None
    """Training loss of this step's global batch, averaged over workers, before the step."""
    scheduled_lr: float | None = None
    """Learning rate of this step: the peak, `inner_optimizer.lr`, times the schedule's fraction."""
    gradient_norm: float | None = None
    """Norm before clipping, averaged over workers."""
    tokens_per_second: float | None = None
    """Since the line before."""
    train_seconds: float | None = None
    """Training time of all attempts so far, without start-up, evaluation and checkpoints."""
    validation_loss: float | None = None
    """Loss of the synchronised model on the held-out set."""
    local_validation_loss: float | None = None
    """Mean over the K local models, where they differ from the synchronised one."""
    pseudogradient_norm: float | None = None
    pseudogradient_cosine: float | None = None
    """Mean pairwise cosine between workers' pseudogradients at the last outer step."""
    bytes_sent: int | None = None
    """Computed, not measured, and the same on any number of ranks: bytes of payloads that one worker has sent to the
    others so far, or of gradients that one replica has given to the average."""
    rank_bytes_sent: list[int] | None = None
    """Measured, by `collectives`' rule: all bytes that each rank has sent to others while training since the attempt
    began, what replicas share and bookkeeping included; absent on one rank."""
    rank_bytes_received: list[int] | None = None
    rank_wait_seconds: list[float] | None = None
    """Time in which each rank's training stood still for these, waiting for slower ranks included, since the attempt
    began. Absent on GPUs, whose hosts only queue exchanges and do not wait for them."""
    mfu: float | None = None
    """Model FLOPs utilisation: 6N flops a token over the peak of all devices; absent where that is not known."""
    hardware_mfu: float | None = None
    """The same of the flops that devices compute: 6 (N - V D) and attention, `ModelConfig.hardware_flops_per_token`."""
    update_rms: dict[str, float] | None = None
    """Root mean square of this inner step's update, by kind of module; every `log_interval_steps`. Means over workers,
    each from a sample of values."""
    update_ratio: dict[str, float] | None = None
    """The same over the root mean square of the weights before the step."""
    memory_bytes: int | None = None
    """Peak memory of this attempt on the main rank: of the device, or of the process where there is none."""
    attempt: int = 1


@dataclass
class RunStatus:
    """Heartbeat of a live run; the last state of a dead one."""

    run_id: str
    state: str
    """starting, running, finished, stopped (wants more time) or failed."""
    step: int = 0
    num_steps: int = 0
    tokens: int = 0
    checkpoint_step: int = 0
    """Last step that a resume would start from."""
    attempt: int = 1
    tokens_per_second: float | None = None
    loss: float | None = None
    exit_code: int | None = None
    exit_cause: str | None = None
    """One line, for people and for grouping equal failures."""
    warning: str | None = None
    """A problem that did not end the attempt: a checkpoint that could not be written."""
    resumed_step: int | None = None
    """The step that this attempt began from; absent before its first step."""
    times: dict[str, Any] | None = None
    """What this attempt has spent its time on (`AttemptTimes`); absent where nobody measures it."""
    host: str = ""
    pid: int = 0
    updated_at: float = 0.0
    """Unix seconds."""


@dataclass
class RunResult:
    """Written once, when a run has trained to the end of its budget or diverged."""

    run_id: str
    algorithm: str
    diverged: bool
    validation_loss: float | None
    """Loss of the synchronised model on the fixed held-out set, nats per token; None when not finite."""
    local_validation_loss: float | None
    train_loss: float | None
    """Mean over the last 5% of steps."""
    num_params: int
    num_steps: int
    num_tokens: int
    """Tokens really trained on."""
    flops: float
    """6 N times those tokens."""
    train_seconds: float
    """Training time of all attempts, without start-up, evaluation and checkpoints."""
    wall_seconds: float
    """Time from the first attempt's start to the end, queueing between attempts included."""
    bytes_sent: int
    """Computed, not measured: bytes that one worker sent to synchronise (see `StepRecord`)."""
    corpus_hash: str
    attempts: int = 1
    num_ranks: int = 1
    device: str = ""
    divergence: str | None = None
    """Why the run was called diverged."""
    hardware_flops: float | None = None
    """Flops that devices computed for them: 6 (N - V D) and attention; absent from older results."""
    validation_tokens: int | None = None
    """Held-out tokens that a loss is of: `data.validation_tokens` or fewer; absent from older results."""
    weight_decay_timescale: float | None = None
    """tau = B/(lr wd D): the share of the run over which weights are averages of updates; absent without decay."""
    versions: dict[str, str] = field(default_factory=dict)
    finished_at: float = 0.0
    """Unix seconds."""
    format_version: int = FORMAT_VERSION


def why_without_weights(result: RunResult | None) -> str:
    """Return why a run with this result, or none yet, has no checkpoint, and what one costs: the end of a sentence."""
    if result is None:
        return "has no checkpoint yet: let it train on"
    if result.diverged:
        return f"has no weights: it diverged ({result.divergence})"
    return (
        "is finished and its weights were not kept: training it again takes "
        f"{result.train_seconds / 60:,.1f} minutes on {result.num_ranks} rank(s) of {result.device or 'its device'}; "
        "give the command that trained it another root and execution.keep=final"
    )


CHECKPOINT_PREFIX = "step-"
WANDB_FAILURE = "wandb-failure.txt"
"""In an attempt's folder: one line on why Weights & Biases has not got its records."""
CHECKPOINTS_KEPT = 2
"""Checkpoints of a run that trains, besides one that is being written."""
_RENAMED = {"lr": "scheduled_lr"}
"""Quantities of a logged step: their names in older records -> their names now."""

Line = TypeVar("Line", RecordHeader, StepRecord, RunStatus, RunResult)

_RUN_ID = re.compile(r"[0-9a-f]{12}")


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
        return self.checkpoint_dir / f"{CHECKPOINT_PREFIX}{step:08d}"

    def checkpoint_steps(self) -> list[int]:
        """Inner steps after which there is a complete checkpoint, ascending."""
        names = (
            path.name.removeprefix(CHECKPOINT_PREFIX) for path in self.checkpoint_dir.glob(f"{CHECKPOINT_PREFIX}*")
        )
        return sorted(int(name) for name in names if name.isdigit())

    def attempt_dir(self, attempt: int) -> Path:
        return self.path / "attempts" / str(attempt)

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

    def read_header(self) -> RecordHeader | None:
        """The header of the record, or None where no complete one was written."""
        for values in _complete_lines(self.record_file):
            return _from_values(RecordHeader, values, self.record_file)
        return None

    def read_steps(self) -> list[StepRecord]:
        """Logged steps in order. Where a resumed attempt logged a step again, its last line counts."""
        lines = _complete_lines(self.record_file)
        next(lines, None)
        steps: dict[int, StepRecord] = {}
        for values in lines:
            renamed = {_RENAMED.get(key, key): value for key, value in values.items()}
            step = _from_values(StepRecord, renamed, self.record_file)
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

    def write_status(self, status: RunStatus) -> None:
        status.updated_at = time.time()
        write_atomically(self.status_file, _to_json(status) + "\n")

    def write_result(self, result: RunResult) -> None:
        """Written once: a second, different result for the same run is a bug and raises."""
        if self.result_file.exists():
            raise FileExistsError(f"{self.result_file} exists: a run has one result")
        result.finished_at = time.time()
        write_atomically(self.result_file, json.dumps(_plain(result), indent=1, allow_nan=False) + "\n")

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


def _data_has_moved(before: dict[str, Any], now: dict[str, Any]) -> bool:
    there, here = before.get("data") or {}, now.get("data") or {}
    content = here.get("content_hash")
    return content is not None and there != here and there.get("content_hash") == content


@contextlib.contextmanager
def naming(path: Path) -> Iterator[None]:
    """Let errors within that name no file, as those of writing do, name this one."""
    try:
        yield
    except OSError as error:
        if error.filename is None:
            error.filename = str(path)
        raise


def write_atomically(path: Path, content: str | bytes) -> None:
    """Replaces `path` so that a reader, or a crash, sees the old content or the new, never a part."""
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    try:
        with naming(path), os.fdopen(handle, "wb") as file:
            file.write(content.encode() if isinstance(content, str) else content)
            file.flush()
            os.fsync(file.fileno())
        os.chmod(temporary, 0o644)
        os.replace(temporary, path)
    except BaseException:
        Path(temporary).unlink(missing_ok=True)
        raise


def write_folder(folder: Path, files: Mapping[str, bytes]) -> None:
    """Write a folder of these files, by their paths in it: complete once it has its name.

    Where another process was faster its folder stays. One that cannot be written raises `OSError` and leaves nothing.
    """
    folder.parent.mkdir(parents=True, exist_ok=True)
    draft = Path(tempfile.mkdtemp(dir=folder.parent, prefix=f".{folder.name}-"))
    try:
        for name, content in files.items():
            (draft / name).parent.mkdir(parents=True, exist_ok=True)
            with naming(draft / name):
                (draft / name).write_bytes(content)
        draft.chmod(0o755)
        with contextlib.suppress(OSError):
            draft.rename(folder)
    finally:
        shutil.rmtree(draft, ignore_errors=True)
    if not folder.is_dir():
        raise OSError(f"{folder}: the files could not be put there")


def _plain(line: Any) -> dict[str, Any]:
    """Fields that are set; a float that JSON cannot hold becomes absent."""
    values = {}
    for f in dataclasses.fields(line):
        value = getattr(line, f.name)
        if isinstance(value, float) and not math.isfinite(value):
            value = None
        if value is not None or f.default is dataclasses.MISSING:
            values[f.name] = value
    return values


def to_line(line: RecordHeader | StepRecord) -> str:
    """One line of `record.jsonl`."""
    return _to_json(line) + "\n"


def _to_json(line: Any) -> str:
    return json.dumps(_plain(line), separators=(",", ":"), allow_nan=False)


def _from_values(cls: type[Line], values: dict[str, Any], path: Path) -> Line:
    """Unknown keys are dropped, so that an older reader can read a newer writer's additions."""
    version = values.get("format_version", FORMAT_VERSION)
    if version != FORMAT_VERSION:
        raise RecordError(f"{path}: format version {version}, this program reads {FORMAT_VERSION}")
    known = {f.name for f in dataclasses.fields(cls)}
    try:
        return cls(**{key: value for key, value in values.items() if key in known})
    except TypeError as error:
        raise RecordError(f"{path}: {error}") from error


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
    return _from_values(cls, values, path)


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
