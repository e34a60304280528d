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
from muloco_runner.config import ConfigError, DiLoCoConfig, RunConfig
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
    """The rows by run_id, each with its `series` and its `hyper_parameters`, in place of `method`."""
    frame = frame.sort_values("run_id", ignore_index=True)
    keys = [f"{a}|{json.dumps(m, sort_keys=True)}" for a, m in zip(frame["algorithm"], frame["method"], strict=True)]
    kinds, first = np.unique(keys, return_index=True)
    labels = dict(zip(kinds, series_labels(frame.iloc[first].to_dict("records")), strict=True))
    frame["series"] = [labels[key] for key in keys]
    frame["hyper_parameters"] = hyper_parameters_of(frame)
    return frame.drop(columns="method")


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
    return {
        **_row_of_config(config),
        "run_id": folder.run_id,
        "parent": parent[0] if (parent := folder.read_parent()) is not None else None,
        "algorithm": result.algorithm,
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
        "comparison": (
            result.corpus_hash,
            f"sequences of {config.model.sequence_length} tokens",
            f"validation on {config.data.validation_tokens} tokens",
        ),
    }


def _row_of_config(config: RunConfig) -> dict[str, Any]:
    values = config.to_dict()
    method = dict(values["method"])
    streaming = method.get("streaming") or {}
    outer = method.pop("outer_optimizer", None) or {}
    method.pop("name")
    method.update(config.method.choices)
    # None of the built-in one: beside it, a model from outside is named in its series.
    method["model"] = config.model.label or None
    if isinstance(config.method, DiLoCoConfig):
        # At their defaults they are in no file, and a series without them must be told from one with others.
        method |= {part: to_plain(getattr(config.method, part)) for part in ("compression", "streaming")}
    compression = method.get("compression") or {}
    if "_target_" in compression:
        method["compression"] = {**compression, "name": compression["label"], "label": None, "bits_per_value": None}
    inner = dict(values["inner_optimizer"])
    inner.pop("name")
    rest = {
        **{f"inner_optimizer.{k}": v for k, v in inner.items() if k not in ("lr", "weight_decay")},
        **{f"outer_optimizer.{k}": v for k, v in outer.items() if k not in ("lr", "momentum")},
        **{f"schedule.{k}": v for k, v in values["schedule"].items()},
        "gradient_clip_norm": values["gradient_clip_norm"],
        "precision": values["precision"],
        **config.model.setting,
    }
    return {
        "num_workers": config.num_workers,
        "sync_interval": method.get("sync_interval"),
        "num_fragments": streaming.get("num_fragments", 1),
        "delay_steps": streaming.get("delay_steps", 0),
        "gathered_values": _gathered_values(config),
        "bits_per_value": config.method.bits_per_value,
        "method": method,
        "tokens_per_parameter": config.tokens_per_parameter,
        "global_batch_tokens": config.global_batch_tokens,
        "seed": config.seed,
        "lr": config.inner_optimizer.lr,
        "outer_lr": outer.get("lr"),
        "outer_momentum": outer.get("momentum"),
        "weight_decay": config.inner_optimizer.weight_decay,
        "setting": " ".join(f"{k}={v}" for k, v in sorted(rest.items())),
    }


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


def series_labels(records: Sequence[Mapping[Any, Any]]) -> list[str]:
    """`DDP-AdamW`, `MuLoCo K=4`, and what else of the method differs among runs of the same algorithm.

    Methods that differ never share a label: an algorithm called `MuLoCo K=4` is named as one.
    """
    seen: dict[str, dict[str, set[str]]] = {}
    for row in records:
        values = seen.setdefault(row["algorithm"], {})
        for key, value in _flat(row["method"]).items():
            values.setdefault(key, set()).add(str(value))
    labels = []
    for row in records:
        words = [row["algorithm"]]
        flat = _flat(row["method"])
        if "num_workers" in flat:
            words.append(f"K={flat.pop('num_workers')}")
        for key, value in sorted(flat.items()):
            if value is not None and len(seen[row["algorithm"]][key]) > 1:
                words.append(f"{'H' if key == 'sync_interval' else key}={value}")
        labels.append(" ".join(words))
    return _told_apart(labels, records)


def _told_apart(labels: list[str], records: Sequence[Mapping[Any, Any]]) -> list[str]:
    """The labels, those of several algorithms or methods with the algorithm, and a number where that is the same."""
    for addition in ("algorithm", "number"):
        methods: dict[str, list[str]] = {}
        for label, row in zip(labels, records, strict=True):
            content = json.dumps([row["algorithm"], _flat(row["method"])], sort_keys=True, default=str)
            known = methods.setdefault(label, [])
            known += [] if content in known else [content]
        out = []
        for label, row in zip(labels, records, strict=True):
            content = json.dumps([row["algorithm"], _flat(row["method"])], sort_keys=True, default=str)
            place = sorted(methods[label]).index(content) + 1
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
