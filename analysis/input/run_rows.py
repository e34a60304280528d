"""One run's folder -> a row of a study: what it was asked for, what it reached, what its steps alone hold."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from muloco_runner.config import ConfigError, DiLoCoConfig, FromOutside, RunConfig, TargetCompressionConfig
from muloco_runner.config.plain import to_plain
from muloco_runner.record import RecordError, RunFolder, RunResult


@dataclass(frozen=True)
class Excluded:
    """A run that takes no part, and why."""

    run_id: str
    reason: str


def read_row(folder: RunFolder) -> dict[str, Any] | Excluded:
    """A row of a study, or why the run takes no part."""
    try:
        row = _read_run(folder)
    except (RecordError, ConfigError, OSError) as error:
        return Excluded(folder.run_id, f"damaged: {_one_line(error)}")
    return Excluded(folder.run_id, row) if isinstance(row, str) else row


def _read_run(folder: RunFolder) -> dict[str, Any] | str:
    """A row, or the reason why there is none."""
    result = folder.read_result()
    if result is None:
        status = folder.read_status()
        if status is None:
            return "not started: no status and no result"
        stop = folder.read_early_stop()
        if stop is not None and status.attempt <= stop[0]:
            return f"stopped early: {stop[1]}"
        cause = f" ({status.exit_cause})" if status.exit_cause else ""
        return f"unfinished: {status.state} at step {status.step} of {status.num_steps}{cause}"
    config = RunConfig.from_dict(folder.read_config())
    header = folder.read_header()
    if header is not None and header.corpus_hash != result.corpus_hash:
        return "damaged: record and result name different data"
    if not result.diverged and not (result.validation_loss and result.validation_loss > 0):
        return "damaged: finished without a validation loss"
    row = _row_of_config(config)
    return {
        **row,
        "run_id": folder.run_id,
        "parent": parent[0] if (parent := folder.read_parent()) is not None else None,
        "num_params": result.num_params,
        "num_steps": result.num_steps,
        "num_tokens": result.num_tokens,
        "flops": result.flops,
        "hardware_flops": float(config.model.hardware_flops_per_token * result.num_tokens),
        "loss": math.nan if result.validation_loss is None else result.validation_loss,
        "diverged": result.diverged,
        "train_seconds": result.train_seconds,
        "wall_seconds": result.wall_seconds,
        "bytes_sent": result.bytes_sent,
        "attempts": result.attempts,
        "num_ranks": result.num_ranks,
        "memory_bytes": math.nan,
        "device": result.device,
        "corpus_hash": result.corpus_hash,
        **_from_steps(folder, config, result),
        "versions": result.versions or (header.versions if header else {}),
        "baselines": header.baselines if header else {},
        "bytes_per_token": header.bytes_per_token if header else None,
        "comparison": (result.corpus_hash, *row["comparison"]),
    }


_NOT_IN_SETTING = {
    "inner_optimizer": ("name", "lr", "weight_decay"),
    "outer_optimizer": ("lr", "momentum"),
    "model": ("_target_", "sequence_length"),
}
"""Fields that the algorithm, a column, the series or the comparison has. Every other one of these parts that may change
a result is in the setting, also one that is added later."""
_SHAPE = ("width", "num_layers")
"""Fields of the model that every setting names; the others are named where they differ within the study."""


def _row_of_config(config: RunConfig) -> dict[str, Any]:
    """What tells runs apart by what they were asked for: algorithm and series, comparison, columns and setting."""
    values = _deciding(config)
    outer = values["method"].get("outer_optimizer") or {}
    streaming = values["method"].get("streaming") or {}
    parts = {"inner_optimizer": values["inner_optimizer"], "outer_optimizer": outer, "schedule": values["schedule"]}
    setting = {f"{part}.{key}": value for part, content in parts.items() for key, value in content.items()}
    setting |= {key if key in _SHAPE else f"model.{key}": value for key, value in values["model"].items()}
    for part, names in _NOT_IN_SETTING.items():
        for name in names:
            setting.pop(f"{part}.{name}", None)
    return {
        "algorithm": config.algorithm,
        "inner_label": config.inner_optimizer.label,
        "inner_class": (inner_class := _class_of(config.inner_optimizer)),
        "algorithm_by_class": config.method.algorithm(inner_class or config.inner_optimizer.label),
        "comparison": (
            f"sequences of {config.model.sequence_length} tokens",
            f"validation on {config.data.validation_tokens} tokens",
        ),
        "num_workers": config.num_workers,
        "sync_interval": values["method"].get("sync_interval"),
        "num_fragments": streaming.get("num_fragments", 1),
        "delay_steps": streaming.get("delay_steps", 0),
        "gathered_values": _gathered_values(config),
        "bits_per_value": config.method.bits_per_value,
        "method": _method_of(config, values),
        "distinctions": _distinctions(config),
        "schedule": _class_of(config.schedule) or config.schedule.name,
        "tokens_per_parameter": config.tokens_per_parameter,
        "global_batch_tokens": config.global_batch_tokens,
        "seed": config.seed,
        "lr": config.inner_optimizer.lr,
        "outer_lr": outer.get("lr"),
        "outer_momentum": outer.get("momentum"),
        "weight_decay": config.inner_optimizer.weight_decay,
        "setting": {
            **setting,
            "gradient_clip_norm": values["gradient_clip_norm"],
            "precision": values["precision"],
        },
    }


def _deciding(config: RunConfig) -> dict[str, Any]:
    """The config's plain values without those that change no result, such as a label."""
    values = config.to_dict()
    for path, outside in config.from_outside.items():
        part: Any = values
        for name in path.split("."):
            part = part[name]
        for name in outside.not_in_hash:
            part.pop(name, None)
    return values


def _method_of(config: RunConfig, values: Mapping[str, Any]) -> dict[str, Any]:
    """What a series is named by where the runs of its algorithm differ in it; None where there is nothing to name."""
    method = {name: value for name, value in values["method"].items() if name not in ("name", "outer_optimizer")}
    method.update(config.method.choices)
    compression = getattr(config.method, "compression", None)
    if isinstance(compression, TargetCompressionConfig):
        method["compression"] = {**method["compression"], "name": compression.label}
    # None of the built-in one: beside it, a model from outside is named in its series.
    method["model"] = config.model.label or None
    method["init_from"] = config.init_hash or config.init_from
    method["init_exclude"] = ",".join(sorted(config.init_exclude)) or None
    return method


def _distinctions(config: RunConfig) -> dict[str, Any]:
    """What a series is named by only where two would have one name: what is in no file at its default, and classes."""
    out: dict[str, Any] = {"model": {"_target_": _class_of(config.model)}}
    if isinstance(config.method, DiLoCoConfig):
        out["outer_optimizer"] = {"_target_": _class_of(config.method.outer_optimizer)}
    unnamed = [part for part in ("compression", "streaming") if hasattr(config.method, part)]
    out |= {part: to_plain(getattr(config.method, part)) for part in unnamed}
    return out


def _class_of(part: object) -> str | None:
    """The class from outside that a part of a run names; None of a built-in one."""
    return part.targets[0] if isinstance(part, FromOutside) else None


def _gathered_values(config: RunConfig) -> int:
    """Values of the matrices whose gradients replicas of a single worker send to their owners alone."""
    shares = config.num_workers == 1 and config.inner_optimizer.shares_matrices
    return config.model.num_hidden_params if shares else 0


def _from_steps(folder: RunFolder, config: RunConfig, result: RunResult) -> dict[str, float]:
    """What only the steps hold: NaN where nothing was recorded, or there was nobody to exchange with.

    The cosine is a mean over the last quarter of the steps. Waiting is counted since an attempt began, so it is known
    for runs of one attempt.
    """
    out = {"pseudogradient_cosine": math.nan, "wait_seconds": math.nan}
    if config.num_workers == 1 and result.num_ranks == 1:
        return out
    steps = folder.read_steps()
    late = [
        step.pseudogradient_cosine
        for step in steps
        if step.pseudogradient_cosine is not None and step.step > 0.75 * result.num_steps
    ]
    if late:
        out["pseudogradient_cosine"] = sum(late) / len(late)
    waits = [step.rank_wait_seconds for step in steps if step.rank_wait_seconds]
    if waits and result.attempts == 1:
        out["wait_seconds"] = sum(waits[-1]) / len(waits[-1])
    return out


def _one_line(error: BaseException) -> str:
    return " ".join(str(error).split())
