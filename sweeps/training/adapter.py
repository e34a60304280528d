"""What the engine must know of training runs, and how their progress is read from their folders."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from muloco_runner.record import AttemptTimes, RecordError, RunFolder, RunStatus
from sweeps.engine.outcome import Headway, Progress
from sweeps.engine.policy import Cause
from sweeps.engine.tuning.halving import END
from sweeps.engine.work import Adapter, Work
from sweeps.training import budget_branches

TRAINING = Adapter(
    reports="sweeps.training.adapter",
    group_labels=("algorithm", "num_params"),
    failure_label="algorithm",
    resumes=True,
    similarity_keys=(
        ("num_params", "algorithm", "num_workers", "global_batch_tokens"),
        ("num_params", "algorithm"),
        ("num_params",),
        (),
    ),
    # Half the micro-batch for each: less memory, the same result.
    adjustments={Cause.OUT_OF_MEMORY.value: "memory_halvings"},
    speaks_exit_codes=True,
)
_WINDOW = 0.05
"""Of the budget: a single batch's loss says little."""
_NOT_OF_SPEED = ("seed", "tokens_per_parameter", "lr", "weight_decay", "schedule", "gradient_clip_norm")
"""Settings that change no step's time."""


def read_progress(folder: Path) -> Progress | None:
    """Progress as the run's heartbeat reports it."""
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
        status.checkpoint_step,
        _minutes_left(status),
        _message(status),
        status.step / status.num_steps if status.num_steps else None,
        status.resumed_step / status.num_steps if status.resumed_step is not None and status.num_steps else None,
        {"loss": status.loss} if status.loss is not None else {},
        done=_tokens_since_resumed(status, status.step),
        kept=_tokens_since_resumed(status, status.checkpoint_step),
        unit="tokens",
        times=_times(status),
        # Its speed is the mean over all attempts, so this is their training time.
        headway=Headway(status.tokens, status.tokens / status.tokens_per_second) if status.tokens_per_second else None,
    )


def _message(status: RunStatus) -> str:
    """One line on how the attempt failed; on one that was only asked to stop, why it has saved nothing."""
    was_asked = status.state == "stopped"
    return (status.warning if was_asked else None) or status.exit_cause or status.warning or ""


def measured_minutes(folder: Path) -> float | None:
    """Training time, without start-up and evaluation."""
    try:
        result = RunFolder(folder).read_result()
    except RecordError:
        return None
    return result.train_seconds / 60 if result is not None else None


def final_loss(folder: Path) -> float | None:
    """Validation loss, infinite where the run diverged."""
    try:
        result = RunFolder(folder).read_result()
    except RecordError:
        return None
    if result is None:
        return None
    return math.inf if result.diverged or result.validation_loss is None else result.validation_loss


def losses_at(folder: Path, shares: Sequence[str]) -> dict[str, float]:
    """Mean training losses of the last steps, a twentieth of the budget, up to each share that the run has come to."""
    run = RunFolder(folder)
    try:
        status = run.read_status()
        is_there = [share for share in shares if status is not None and _has_come_to(float(share), status)]
        if status is None or not is_there:
            return {}
        steps, result = run.read_steps(), run.read_result()
    except (RecordError, OSError):
        return {}
    if not steps or (result is not None and result.diverged):
        return {}
    found = {}
    for share in is_there:
        end = float(share) * status.num_steps
        losses = [step.loss for step in steps if end - _WINDOW * status.num_steps < step.step <= end]
        losses = losses or [step.loss for step in steps if step.step <= end][-1:]
        known = [loss for loss in losses if loss is not None]
        is_logged = steps[-1].step >= end or (share == END and result is not None)
        if known and len(known) == len(losses) and is_logged:
            found[share] = sum(known) / len(known)
    return found


def _has_come_to(share: float, status: RunStatus) -> bool:
    return status.num_steps > 0 and status.step >= share * status.num_steps


def begin_branch(work: Work) -> bool:
    """Whether the branch's folder has its trunk's checkpoint, which is put there where the trunk has left it."""
    return budget_branches.begin_branch(work)


def _tokens_since_resumed(status: RunStatus, step: int) -> float:
    """Up to that step; 0 where the attempt does not say where it began."""
    if status.resumed_step is None or not status.step:
        return 0.0
    return status.tokens / status.step * max(0, step - status.resumed_step)


def _times(status: RunStatus) -> AttemptTimes | None:
    try:
        return AttemptTimes.from_dict(status.times) if status.times is not None else None
    except (TypeError, AttributeError):
        return None


def likeness(work: Work) -> str | None:
    """The run's config but for what changes no step's time."""
    try:
        return json.dumps(_of_speed(RunFolder(work.folder).read_config()), sort_keys=True)
    except (RecordError, OSError):
        return None


def _of_speed(values: Any) -> Any:
    if not isinstance(values, dict):
        return values
    return {key: _of_speed(value) for key, value in values.items() if key not in _NOT_OF_SPEED}


def _minutes_left(status: RunStatus) -> float | None:
    """Minutes from the last checkpoint to the end at the measured speed; None where that is not known."""
    if not status.tokens_per_second or not status.step or not status.tokens:
        return None
    tokens_per_step = status.tokens / status.step
    return (status.num_steps - status.checkpoint_step) * tokens_per_step / status.tokens_per_second / 60
