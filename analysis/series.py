"""Names of series: an algorithm, K, and what else of the method differs within a study."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from typing import Any

_OF_THE_STUDY = ("init_from", "init_exclude", "model")
"""Parts of a method that are named where they differ within the study, not within an algorithm alone: runs that start
from other weights, or of another model, are compared with none that do not."""


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


def tell_classes_apart(rows: Sequence[dict[str, Any]]) -> None:
    """Name inner optimizers and models of one label and several classes by the class, as in `DDP-my_lab.Lion`.

    A sweep has one class of a label; several sweeps of one root may each have another.
    """
    optimizers: dict[str, set[str | None]] = {}
    models: dict[str | None, set[str | None]] = {}
    for row in rows:
        optimizers.setdefault(row["inner_label"], set()).add(row["inner_class"])
        models.setdefault(row["method"]["model"], set()).add(row["distinctions"]["model"]["_target_"])
    for row in rows:
        if len(optimizers[row["inner_label"]]) > 1:
            row["algorithm"] = row["algorithm_by_class"]
        if len(models[row["method"]["model"]]) > 1:
            row["method"]["model"] = row["distinctions"]["model"]["_target_"]


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


def content_of(row: Mapping[Any, Any]) -> str:
    """What tells the method of a row (`algorithm`, `method`, `distinctions`) from every other, as text."""
    return json.dumps([row["algorithm"], _parts(row)], sort_keys=True, default=str)


def _methods_of(labels: Sequence[str], records: Sequence[Mapping[Any, Any]]) -> dict[str, dict[str, Mapping[Any, Any]]]:
    """Of each label the different methods that bear it, by their content."""
    out: dict[str, dict[str, Mapping[Any, Any]]] = {}
    for label, row in zip(labels, records, strict=True):
        out.setdefault(label, {})[content_of(row)] = row
    return out


def _told_apart(labels: list[str], records: Sequence[Mapping[Any, Any]]) -> list[str]:
    """The labels, those of several algorithms or methods with the algorithm, and a number where that is the same."""
    for addition in ("algorithm", "number"):
        methods = _methods_of(labels, records)
        out = []
        for label, row in zip(labels, records, strict=True):
            place = sorted(methods[label]).index(content_of(row)) + 1
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


def sort_series(labels: Sequence[str]) -> list[str]:
    """By name, numbers as numbers."""

    def key(label: str) -> list[tuple[int, float, str]]:
        words = label.replace("=", " ").split()
        return [(0, float(w), "") if re.fullmatch(r"\d+\.?\d*", w, re.ASCII) else (1, 0.0, w) for w in words]

    return sorted(labels, key=key)
