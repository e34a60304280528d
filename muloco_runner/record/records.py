"""What the files of a run's folder hold, typed and versioned: one dataclass a file or a line, and its JSON."""

from __future__ import annotations

import dataclasses
import json
import math
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

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
    """Learning rate of this step: the peak, `inner_optimizer.lr`, times the schedule's fraction; without factors on
    it by kind of parameter."""
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
    named_validation_losses: dict[str, float] | None = None
    """Loss of the synchronised model on each set of `data.validation`; one that is not finite is left out."""
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
    bits_per_byte: float | None = None
    """The validation loss in bits per byte of text; absent from older results."""
    named_validation: dict[str, dict[str, Any]] | None = None
    """Of each set of `data.validation` its `validation_loss`, `bits_per_byte` (both None when not finite),
    `validation_tokens` and `content_hash`; absent without such sets, and of a run that diverged."""
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


Line = TypeVar("Line", RecordHeader, StepRecord, RunStatus, RunResult)


def to_values(line: Any) -> dict[str, Any]:
    """Fields that are set; a float that JSON cannot hold becomes absent."""
    values = {}
    for f in dataclasses.fields(line):
        value = getattr(line, f.name)
        if isinstance(value, float) and not math.isfinite(value):
            value = None
        if value is not None or f.default is dataclasses.MISSING:
            values[f.name] = value
    return values


def to_line(line: Any) -> str:
    """One line of JSON, its end included."""
    return json.dumps(to_values(line), separators=(",", ":"), allow_nan=False) + "\n"


def from_values(cls: type[Line], values: dict[str, Any], path: Path) -> Line:
    """One of the file `path`. Unknown keys are dropped, so that an older reader can read a newer writer's additions."""
    version = values.get("format_version", FORMAT_VERSION)
    if version != FORMAT_VERSION:
        raise RecordError(f"{path}: format version {version}, this program reads {FORMAT_VERSION}")
    known = {f.name for f in dataclasses.fields(cls)}
    try:
        return cls(**{key: value for key, value in values.items() if key in known})
    except TypeError as error:
        raise RecordError(f"{path}: {error}") from error
