"""Any table of runs -> the study that run folders give: columns by the vocabulary, a mapping file for other names.

Needed: algorithm, num_params, global_batch_tokens, loss, and num_tokens or tokens_per_parameter. Taken where they are
there: num_workers, seed, lr, outer_lr, outer_momentum, weight_decay, sync_interval, diverged, flops, train_seconds,
bytes_sent, run_id. A row that cannot be used is named with its reason, like a run folder.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from analysis.records import TUNED, Excluded, Study, build_study
from muloco_runner.config import ConfigError

if TYPE_CHECKING:
    import pandas as pd

NEEDED = ("algorithm", "num_params", "global_batch_tokens", "loss")
_NUMBERS = {
    "num_workers": 1,
    "seed": 0,
    "num_steps": None,
    "flops": None,
    "train_seconds": math.nan,
    "wall_seconds": math.nan,
    "bytes_sent": math.nan,
    "pseudogradient_cosine": math.nan,
    "sync_interval": None,
    "bits_per_value": math.nan,
    **dict.fromkeys(TUNED),
}
"""Columns that may be missing, and what stands for them."""
_EITHER = ("num_tokens", "tokens_per_parameter")


def read_mapping(path: Path | None) -> dict[str, str]:
    """Our column names to the table's, from a JSON or YAML file. Mistakes raise `ConfigError`."""
    if path is None:
        return {}
    import yaml

    try:
        values = yaml.safe_load(path.read_text())
    except FileNotFoundError:
        raise ConfigError(f"{path}: no such file") from None
    except yaml.YAMLError as error:
        raise ConfigError(f"{path}: not YAML ({' '.join(str(error).split())})") from None
    if not isinstance(values, Mapping):
        raise ConfigError(f"{path}: write our column names with the table's, such as `loss: eval/loss`")
    known = {*NEEDED, *_EITHER, *_NUMBERS, "diverged", "run_id"}
    for name in values:
        if name not in known:
            raise ConfigError(f"{path}: {name} is no column of ours; known: {', '.join(sorted(known))}")
    return {str(ours): str(theirs) for ours, theirs in values.items()}


def study_of_table(source: str, table: pd.DataFrame, mapping: Mapping[str, str]) -> Study:
    """The table as a study. Missing columns raise `ConfigError`; rows that cannot be used are excluded by name."""
    missing = [theirs for theirs in mapping.values() if theirs not in table]
    if missing:
        raise ConfigError(f"{source}: the mapping names {missing[0]!r}, which is no column; {_columns(table)}")
    renamed = table.rename(columns={theirs: ours for ours, theirs in mapping.items()})
    for name in NEEDED:
        if name not in renamed:
            raise ConfigError(f"{source}: no column {name}; {_columns(table)}; name it in a --mapping file")
    if not any(name in renamed for name in _EITHER):
        raise ConfigError(f"{source}: needs a column {' or '.join(_EITHER)}; {_columns(table)}")
    rows: list[dict[str, Any]] = []
    excluded: list[Excluded] = []
    seen: dict[str, int] = {}
    for number, values in enumerate(renamed.to_dict("records"), start=1):
        name = str(values.get("run_id", f"row {number}"))
        try:
            row = _row(name, {str(key): value for key, value in values.items()})
        except ValueError as error:
            excluded.append(Excluded(name, f"damaged: {error}"))
            continue
        identity = json.dumps({k: v for k, v in row.items() if k not in ("run_id", "comparison")}, default=str)
        if identity in seen:
            excluded.append(Excluded(name, f"duplicate of row {seen[identity]}"))
            continue
        seen[identity] = number
        rows.append(row)
    if not rows:
        reason = f"; the first: {excluded[0].reason}" if excluded else ""
        raise ConfigError(f"{source}: none of {len(renamed)} rows can be used{reason}")
    return build_study(source, rows, excluded)


def _row(name: str, values: Mapping[str, Any]) -> dict[str, Any]:
    diverged = _truth(values.get("diverged", False))
    num_params = int(_positive(values, "num_params"))
    budget = values.get("tokens_per_parameter")
    num_tokens = int(_positive(values, "num_tokens")) if not _absent(values.get("num_tokens")) else None
    if num_tokens is None:
        num_tokens = round(_positive(values, "tokens_per_parameter") * num_params)
    per_parameter = _positive(values, "tokens_per_parameter") if not _absent(budget) else num_tokens / num_params
    batch = int(_positive(values, "global_batch_tokens"))
    numbers = {key: _number(values, key, default) for key, default in _NUMBERS.items()}
    workers = int(numbers["num_workers"])
    algorithm = str(values["algorithm"]).strip()
    if not algorithm or algorithm == "nan":
        raise ValueError("no algorithm")
    method: dict[str, Any] = {}
    if numbers["sync_interval"] is not None:
        method["sync_interval"] = int(numbers["sync_interval"])
    if algorithm in ("DiLoCo", "MuLoCo") or workers > 1:
        method["num_workers"] = workers
    return {
        **numbers,
        "run_id": name,
        "algorithm": algorithm,
        "num_workers": workers,
        "seed": int(numbers["seed"]),
        "num_params": num_params,
        "num_tokens": num_tokens,
        # Rounded: budgets are planned as simple multiples, and scales are grouped by them.
        "tokens_per_parameter": float(f"{per_parameter:.2g}"),
        "global_batch_tokens": batch,
        "num_steps": int(numbers["num_steps"] or max(1, round(num_tokens / batch))),
        "flops": numbers["flops"] or 6.0 * num_params * num_tokens,
        "loss": math.nan if diverged else _positive(values, "loss"),
        "diverged": diverged,
        "attempts": 1,
        "num_ranks": 1,
        "device": "",
        "corpus_hash": "",
        "setting": "",
        "method": method,
        "versions": {},
        "baselines": {},
        "bytes_per_token": None,
        "comparison": ("", "", ""),
    }


def _absent(value: Any) -> bool:
    return value is None or (isinstance(value, float) and math.isnan(value))


def _number(values: Mapping[str, Any], name: str, default: float | None) -> Any:
    value = values.get(name)
    return default if _absent(value) else _finite(name, value)


def _positive(values: Mapping[str, Any], name: str) -> float:
    number = _finite(name, values[name])
    if number <= 0:
        raise ValueError(f"{name}={number:g} must be a positive number")
    return number


def _finite(name: str, value: Any) -> float:
    try:
        number = float(value)
    except (TypeError, ValueError):
        raise ValueError(f"{name}={value!r} is no number") from None
    if not math.isfinite(number):
        raise ValueError(f"{name}={value} must be a finite number")
    return number


def _truth(value: Any) -> bool:
    if isinstance(value, str):
        return value.strip().lower() in ("true", "1", "yes")
    return not _absent(value) and bool(value)


def _columns(table: pd.DataFrame) -> str:
    return f"it has {', '.join(str(column) for column in table.columns)}"
