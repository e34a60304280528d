"""Any table of runs -> the study that run folders give: columns by the vocabulary, a mapping file for other names.

Needed: algorithm, num_params, global_batch_tokens, loss, and num_tokens or tokens_per_parameter. Taken where they are
there: those of `_NUMBERS`, diverged and run_id. A row that cannot be used is named with its reason, like a run folder.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from analysis.runs import TUNED, Excluded, Study, label_runs
from muloco_runner.config import ConfigError

NEEDED = ("algorithm", "num_params", "global_batch_tokens", "loss")
_NUMBERS = {
    "num_workers": 1,
    "seed": 0,
    "num_steps": None,
    "flops": None,
    "train_seconds": math.nan,
    "wall_seconds": math.nan,
    "wait_seconds": math.nan,
    "bytes_sent": math.nan,
    "pseudogradient_cosine": math.nan,
    "sync_interval": None,
    "num_fragments": 1,
    "delay_steps": 0,
    "gathered_values": 0,
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
    names = renamed["run_id"].astype(str) if "run_id" in renamed else _row_names(len(renamed))
    runs, reasons = _checked(renamed)
    content = runs[reasons == ""].astype(object).where(lambda values: values.notna(), None)
    repeated = content.duplicated()
    if repeated.any():
        first = content.groupby(list(content.columns), dropna=False, sort=False).ngroup()
        origin = first.map(pd.Series(content.index, index=first).groupby(level=0).first())
        reasons[content.index[repeated]] = "duplicate of row " + (origin[repeated] + 1).astype(str)
    used = runs[reasons == ""].assign(run_id=names[reasons == ""])
    left_out = reasons[reasons != ""]
    excluded = [Excluded(name, reason) for name, reason in zip(names[left_out.index], left_out, strict=True)]
    if used.empty:
        reason = f"; the first: {excluded[0].reason}" if excluded else ""
        raise ConfigError(f"{source}: none of {len(renamed)} rows can be used{reason}")
    return Study(source, label_runs(_completed(used)), sorted(excluded, key=lambda e: (e.reason, e.run_id)))


def _row_names(count: int) -> pd.Series[str]:
    return "row " + pd.Series(range(1, count + 1)).astype(str)


def _checked(table: pd.DataFrame) -> tuple[pd.DataFrame, pd.Series[str]]:
    """The columns as numbers, and for each row why it cannot be used: an empty text where it can."""
    reasons = pd.Series("", index=table.index, dtype=object)

    def complain(bad: pd.Series[bool], texts: pd.Series[str]) -> None:
        here = bad & (reasons == "")
        reasons[here] = "damaged: " + texts[here]

    runs = pd.DataFrame(index=table.index)
    algorithm = table["algorithm"].fillna("").astype(str).str.strip()
    complain(algorithm == "", pd.Series("no algorithm", index=table.index))
    runs["algorithm"] = algorithm
    runs["diverged"] = _truth(table["diverged"]) if "diverged" in table else False
    positive = {"num_params", "global_batch_tokens", *_EITHER}
    for name in ("num_params", "global_batch_tokens", *_EITHER, *_NUMBERS, "loss"):
        if name not in table:
            runs[name] = _NUMBERS.get(name)
            continue
        given = table[name].mask(table[name].astype(str).str.strip() == "")
        numbers = pd.to_numeric(given, errors="coerce").astype(float)
        shown = f"{name}=" + table[name].astype(str)
        complain(given.notna() & numbers.isna(), shown + " is no number")
        complain(numbers.isin([np.inf, -np.inf]), shown + " must be a finite number")
        if name in positive or name == "loss":
            complain((numbers <= 0) & ~(runs["diverged"] & (name == "loss")), shown + " must be a positive number")
        default = _NUMBERS.get(name)
        runs[name] = numbers if default is None else numbers.fillna(default)
    for name in ("num_params", "global_batch_tokens"):
        complain(runs[name].isna(), pd.Series(f"no {name}", index=table.index))
    complain(runs["loss"].isna() & ~runs["diverged"], pd.Series("loss must be a finite number", index=table.index))
    without_tokens = runs["num_tokens"].isna() & runs["tokens_per_parameter"].isna()
    complain(without_tokens, pd.Series(f"neither {' nor '.join(_EITHER)}", index=table.index))
    runs["loss"] = runs["loss"].mask(runs["diverged"])
    return runs, reasons


def _completed(runs: pd.DataFrame) -> pd.DataFrame:
    """What follows from the columns that are there, and what a table never says."""
    tokens = runs["num_tokens"].astype(float).fillna((runs["tokens_per_parameter"] * runs["num_params"]).round())
    per_parameter = runs["tokens_per_parameter"].astype(float).fillna(tokens / runs["num_params"])
    # Rounded: budgets are planned as simple multiples, and scales are grouped by them.
    digits = 10 ** (np.floor(np.log10(per_parameter)) - 1)
    steps = (tokens / runs["global_batch_tokens"]).round().clip(lower=1)
    runs = runs.assign(
        num_tokens=tokens.astype("int64"),
        tokens_per_parameter=((per_parameter / digits).round() * digits).round(12),
        num_steps=runs["num_steps"].astype(float).fillna(steps).astype("int64"),
        flops=runs["flops"].astype(float).fillna(6.0 * runs["num_params"] * tokens),
        attempts=1, num_ranks=1, device="", corpus_hash="", setting="",
    )  # fmt: skip
    for name in ("num_params", "global_batch_tokens", "num_workers", "seed"):
        runs[name] = runs[name].astype("int64")
    intervals = runs["sync_interval"].astype(float).fillna(0).astype("int64")
    apart = runs["algorithm"].isin(["DiLoCo", "MuLoCo"]) | (runs["num_workers"] > 1)
    methods = [
        {**({"sync_interval": h} if h else {}), **({"num_workers": k} if named else {})}
        for h, k, named in zip(intervals.tolist(), runs["num_workers"].tolist(), apart, strict=True)
    ]
    runs["method"] = pd.Series(methods, index=runs.index, dtype=object)
    return runs


def _truth(column: pd.Series[Any]) -> pd.Series[bool]:
    return column.astype(str).str.strip().str.lower().isin(["true", "1", "1.0", "yes"])


def _columns(table: pd.DataFrame) -> str:
    return f"it has {', '.join(str(column) for column in table.columns)}"
