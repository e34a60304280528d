"""Run folders -> one tidy table, a row for each run, and a word on every run that is not used.

Columns bear the names of the vocabulary (`num_params`, `global_batch_tokens`, `loss`, ...). What decides which curve a
run belongs to is its `series`: algorithm, K and whatever else of the method differs within the study. What a sweep
tunes (learning rates, momentum, weight decay, ...) are `hyper_parameters`.
"""

from __future__ import annotations

import json
import os
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
from analysis.input.run_rows import Excluded, read_row
from analysis.series import content_of, series_labels, sort_series, tell_classes_apart
from muloco_runner.config import ConfigError
from muloco_runner.record import RunFolder

TUNED = ("lr", "outer_lr", "outer_momentum", "weight_decay")
"""Hyper-parameters with a column of their own; every other difference between configs is in `setting`."""

SCALE = ["num_params", "tokens_per_parameter"]
POINT = ["series", *SCALE, "global_batch_tokens"]
"""What runs share that differ in hyper-parameters and seed alone."""
SETTING = [*POINT, "hyper_parameters"]
"""What runs share that differ in their seed alone."""

_OF_READING = ["comparison", "versions", "baselines", "bytes_per_token"]
_OF_READING += ["inner_label", "inner_class", "algorithm_by_class"]
"""What a run's row holds beside its columns."""
_MANY_FOLDERS = 200
"""From here on a second process reads half of them."""


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
    earlier = beside(lambda: [read_row(folder) for folder in folders[:half]]) if half else list
    later = [read_row(folder) for folder in folders[half:]]
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
    tell_classes_apart(kept)
    first = kept[0]
    versions: dict[str, list[str]] = {}
    for row in kept:
        for name, version in row["versions"].items():
            if version not in versions.setdefault(name, []):
                versions[name].append(version)
    frame = pd.DataFrame(kept).drop(columns=_OF_READING)
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
    keys = [content_of(row) for row in frame[["algorithm", "method", "distinctions"]].to_dict("records")]
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


def _settings(found: Sequence[Mapping[str, Any]]) -> list[str]:
    """Each run's setting as text: of the model its shape, and whatever else differs within the study."""
    texts = [{name: _as_text(value) for name, value in sorted(setting.items())} for setting in found]
    names = {name for setting in texts for name in setting if name.startswith("model.")}
    alike = {name for name in names if len({setting.get(name) for setting in texts}) == 1}
    return [" ".join(f"{k}={v}" for k, v in setting.items() if k not in alike) for setting in texts]


def _as_text(value: Any) -> str:
    """The same of mappings whose keys were written in another order."""
    return json.dumps(value, sort_keys=True, default=str) if isinstance(value, Mapping) else str(value)


def _difference(one: tuple[str, ...], other: tuple[str, ...]) -> str:
    names = ("data", "", "")
    parts = [f"{n} {a[:12] if n else a}".strip() for n, a, b in zip(names, one, other, strict=True) if a != b]
    return "; ".join(parts)
