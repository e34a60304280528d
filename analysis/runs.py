"""Run folders -> one tidy table, a row for each run, and a word on every run that is not used.

Columns bear the names of the vocabulary (`num_params`, `global_batch_tokens`, `loss`, ...). What decides which curve a
run belongs to is its `series`: algorithm, K and whatever else of the method differs within the study. What a sweep
tunes (learning rates, momentum, weight decay, ...) are `hyper_parameters`.
"""

from __future__ import annotations

import json
import math
import os
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from analysis.beside import beside
from analysis.budgets import cluster_budgets
from analysis.input.cells import written
from muloco_runner.config import ConfigError, DiLoCoConfig, RunConfig, TargetCompressionConfig
from muloco_runner.config.plain import to_plain
from muloco_runner.record import RecordError, RunFolder, RunResult

TUNED = ("lr", "outer_lr", "outer_momentum", "weight_decay")
"""Hyper-parameters with a column of their own; every other difference between configs is in `setting`."""

SCALE = ["num_params", "tokens_per_parameter"]
POINT = ["series", *SCALE, "global_batch_tokens"]
"""What runs share that differ in hyper-parameters and seed alone."""

_MANY_FOLDERS = 200
"""From here on a second process reads half of them."""


@dataclass(frozen=True)
class Excluded:
    """A run that takes no part, and why."""

    run_id: str
    reason: str


@dataclass
class Study:
    """The runs that one report is about."""

    source: str
    runs: pd.DataFrame
    """Finished, comparable runs; diverged ones are marked, not dropped."""
    excluded: list[Excluded] = field(default_factory=list)
    corpus: str = ""
    bytes_per_token: float | None = None
    baselines: dict[str, float] = field(default_factory=dict)
    versions: dict[str, list[str]] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)
    """How the runs were read: columns, units, marks."""
    cautions: list[str] = field(default_factory=list)
    """What the runs do not agree about."""
    columns: dict[str, str] = field(default_factory=dict)
    """Our columns -> where a table has them; empty for run folders."""
    unused: list[str] = field(default_factory=list)
    """Columns of a table that nothing was read from."""
    withheld: str | None = None
    """Why nothing may be ranked: runs that may differ in more than their seed stand at one seed."""
    unusable: dict[str, str] = field(default_factory=dict)
    """Our columns from which no law may be fitted -> the reason and the remedy."""
    order: list[str] = field(default_factory=list)
    """Series in the order in which they are to be shown; empty: by name."""
    folder: Path | None = None
    """Where the run folders lie; None for tables."""

    @property
    def series(self) -> list[str]:
        """Curves in the order in which they are shown."""
        return self.order or sort_series(self.runs["series"].unique().tolist())


def sort_series(labels: Sequence[str]) -> list[str]:
    """By name, numbers as numbers."""

    def key(label: str) -> list[tuple[int, float, str]]:
        words = label.replace("=", " ").split()
        return [(0, float(w), "") if re.fullmatch(r"\d+\.?\d*", w, re.ASCII) else (1, 0.0, w) for w in words]

    return sorted(labels, key=key)


def load_study(root: str | os.PathLike[str], corpus: str | None = None) -> Study:
    """Read every run folder under `root` as one table; what is not used is named with its reason in `excluded`.

    root: the folder that holds runs/RUN_ID. corpus: first digits of the hash of the data to compare on; None for the
    commonest. Where there is nothing to read, `ConfigError` says what to give.
    """
    root = Path(root)
    folders = RunFolder.all_under(root)
    if not root.is_dir():
        raise ConfigError(f"{root}: no such folder; give the folder that holds runs/<run_id>, such as results")
    if not folders:
        raise ConfigError(f"{root}: no run folders; give the folder that holds runs/<run_id>, such as results")
    half = len(folders) // 2 if len(folders) >= _MANY_FOLDERS else 0
    earlier = beside(lambda: [_read_folder(folder) for folder in folders[:half]]) if half else list
    later = [_read_folder(folder) for folder in folders[half:]]
    found = [*earlier(), *later]
    rows = [row for row in found if not isinstance(row, Excluded)]
    excluded = [row for row in found if isinstance(row, Excluded)]
    if not rows:
        why = f"none of {len(folders)} runs is finished; the first: {excluded[0].reason}"
        raise ConfigError(f"{root}: {why}; a report needs one that is")
    return replace(build_study(str(root), rows, excluded, corpus), folder=folders[0].path.parent)


def build_study(source: str, rows: list[dict[str, Any]], excluded: list[Excluded], corpus: str | None = None) -> Study:
    """Keeps what can be compared: one corpus, one evaluation, one sequence length; gives each run its series."""
    kinds = Counter(row["comparison"] for row in rows)
    wanted = [kind for kind in kinds if corpus is None or kind[0].startswith(corpus)]
    if not wanted:
        raise ConfigError(f"corpus {corpus!r}: no run used it; used here: {', '.join(sorted({k[0] for k in kinds}))}")
    chosen = max(wanted, key=lambda kind: (kinds[kind], kind))
    kept = []
    for row in rows:
        if row["comparison"] == chosen:
            kept.append(row)
        else:
            excluded.append(Excluded(row["run_id"], f"not comparable: {_difference(row['comparison'], chosen)}"))
    first = kept[0]
    versions: dict[str, list[str]] = {}
    for row in kept:
        for name, version in row["versions"].items():
            if version not in versions.setdefault(name, []):
                versions[name].append(version)
    frame = pd.DataFrame(kept).drop(columns=["comparison", "versions", "baselines", "bytes_per_token"])
    # Published budgets differ a little from size to size, since they are numbers of steps.
    own = frame["tokens_per_parameter"].to_numpy(float)
    budgets = cluster_budgets(own, frame["num_params"].to_numpy(float))
    frame["tokens_per_parameter"] = np.where(np.isclose(budgets, own, rtol=1e-9), own, budgets)
    return Study(
        source=source,
        runs=label_runs(frame),
        excluded=sorted(excluded, key=lambda e: (e.reason, e.run_id)),
        corpus=chosen[0],
        bytes_per_token=first["bytes_per_token"],
        baselines=first["baselines"],
        versions={name: sorted(values) for name, values in sorted(versions.items())},
    )


def label_runs(frame: pd.DataFrame) -> pd.DataFrame:
    """The rows by run_id, each with its `series`, in place of `method` and `distinctions`, and its
    `hyper_parameters`."""
    frame = frame.sort_values("run_id", ignore_index=True)
    frame["setting"] = _settings(frame["setting"].tolist())
    keys = [_content(row) for row in frame[["algorithm", "method", "distinctions"]].to_dict("records")]
    kinds, first = np.unique(keys, return_index=True)
    labels = dict(zip(kinds, series_labels(frame.iloc[first].to_dict("records")), strict=True))
    frame["series"] = [labels[key] for key in keys]
    frame["hyper_parameters"] = hyper_parameters_of(frame)
    return frame.drop(columns=["method", "distinctions"])


def hyper_parameters_of(frame: pd.DataFrame) -> pd.Series[str]:
    """Everything tuned, as one text: runs that agree on it differ by seed alone."""
    codes = frame.groupby([*TUNED, "setting"], dropna=False, sort=False).ngroup().to_numpy()
    kinds, first = np.unique(codes, return_index=True)
    texts = np.empty(len(kinds), dtype=object)
    for kind, row in zip(kinds, frame[[*TUNED, "setting"]].iloc[first].to_dict("records"), strict=True):
        tuned = "".join(f"{name}={written(float(row[name]))} " for name in TUNED if not pd.isna(row[name]))
        texts[kind] = tuned + str(row["setting"])
    return pd.Series(texts[codes], index=frame.index, dtype=object)


def _read_folder(folder: RunFolder) -> dict[str, Any] | Excluded:
    """A row, or why the run takes no part."""
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
    if isinstance(config.method, DiLoCoConfig) and isinstance(config.method.compression, TargetCompressionConfig):
        method["compression"] = {**method["compression"], "name": config.method.compression.label}
    # None of the built-in one: beside it, a model from outside is named in its series.
    method["model"] = config.model.label or None
    method["init_from"] = config.init_hash or config.init_from
    method["init_exclude"] = ",".join(sorted(config.init_exclude)) or None
    return method


def _distinctions(config: RunConfig) -> dict[str, Any]:
    """What a series is named by only where two would have one name: what is in no file at its default, and classes."""
    out: dict[str, Any] = {"model": {"_target_": ",".join(getattr(config.model, "targets", [])) or None}}
    if isinstance(config.method, DiLoCoConfig):
        out |= {part: to_plain(getattr(config.method, part)) for part in ("compression", "streaming")}
    return out


def _settings(found: Sequence[Mapping[str, Any]]) -> list[str]:
    """Each run's setting as text: of the model its shape, and whatever else differs within the study."""
    texts = [{name: _as_text(value) for name, value in sorted(setting.items())} for setting in found]
    names = {name for setting in texts for name in setting if name.startswith("model.")}
    alike = {name for name in names if len({setting.get(name) for setting in texts}) == 1}
    return [" ".join(f"{k}={v}" for k, v in setting.items() if k not in alike) for setting in texts]


def _as_text(value: Any) -> str:
    """The same of mappings whose keys were written in another order."""
    return json.dumps(value, sort_keys=True, default=str) if isinstance(value, Mapping) else str(value)


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


_OF_THE_STUDY = ("init_from", "init_exclude")
"""Parts of a method that are named where they differ within the study, not within an algorithm alone: runs that start
from other weights are compared with none that do not."""


def series_labels(records: Sequence[Mapping[Any, Any]]) -> list[str]:
    """`DDP-AdamW`, `MuLoCo K=4`, and what else of the `method` differs among runs of the same algorithm.

    Methods that differ never share a label: where two would, they are told apart by their `distinctions`, then by the
    algorithm (one called `MuLoCo K=4` is named as one), then by a number.
    """
    seen: dict[tuple[str, str], set[str]] = {}
    for row in records:
        for key, value in _flat(row["method"]).items():
            seen.setdefault((_named_within(row, key), key), set()).add(str(value))
    named = {where for where, values in seen.items() if len(values) > 1}
    labels = [_label(row, named) for row in records]
    for alike in _methods_of(labels, records).values():
        for row in alike.values():
            for key, value in _parts(row).items():
                if any(_parts(other).get(key) != value for other in alike.values()):
                    named.add((_named_within(row, key), key))
    return _told_apart([_label(row, named) for row in records], records)


def _named_within(row: Mapping[Any, Any], key: str) -> str:
    """The algorithm among whose runs a part of the method is named; empty for all of them."""
    return "" if key in _OF_THE_STUDY else str(row["algorithm"])


def _parts(row: Mapping[Any, Any]) -> dict[str, Any]:
    """All that tells a row's method from another of the same algorithm."""
    return {**_flat(row.get("distinctions") or {}), **_flat(row["method"])}


def _label(row: Mapping[Any, Any], named: set[tuple[str, str]]) -> str:
    words, parts = [row["algorithm"]], _parts(row)
    if "num_workers" in parts:
        words.append(f"K={parts.pop('num_workers')}")
    for key, value in sorted(parts.items()):
        if value is not None and (_named_within(row, key), key) in named:
            words.append(f"{'H' if key == 'sync_interval' else key}={value}")
    return " ".join(words)


def _content(row: Mapping[Any, Any]) -> str:
    return json.dumps([row["algorithm"], _parts(row)], sort_keys=True, default=str)


def _methods_of(labels: Sequence[str], records: Sequence[Mapping[Any, Any]]) -> dict[str, dict[str, Mapping[Any, Any]]]:
    """Of each label the different methods that bear it, by their content."""
    out: dict[str, dict[str, Mapping[Any, Any]]] = {}
    for label, row in zip(labels, records, strict=True):
        out.setdefault(label, {})[_content(row)] = row
    return out


def _told_apart(labels: list[str], records: Sequence[Mapping[Any, Any]]) -> list[str]:
    """The labels, those of several algorithms or methods with the algorithm, and a number where that is the same."""
    for addition in ("algorithm", "number"):
        methods = _methods_of(labels, records)
        out = []
        for label, row in zip(labels, records, strict=True):
            place = sorted(methods[label]).index(_content(row)) + 1
            more = f" (algorithm {row['algorithm']})" if addition == "algorithm" else f" ({place})"
            out.append(label + more if len(methods[label]) > 1 else label)
        labels = out
    return labels


def _flat(values: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    out: dict[str, Any] = {}
    for key, value in values.items():
        if isinstance(value, Mapping):
            out.update(_flat(value, f"{prefix}{key}."))
        else:
            out[f"{prefix}{key}"] = value
    return out


def _difference(one: tuple[str, ...], other: tuple[str, ...]) -> str:
    names = ("data", "", "")
    parts = [f"{n} {a[:12] if n else a}".strip() for n, a, b in zip(names, one, other, strict=True) if a != b]
    return "; ".join(parts)


def _one_line(error: BaseException) -> str:
    return " ".join(str(error).split())
