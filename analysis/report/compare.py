"""Two reports side by side: what moved from one study to the other, and whether the intervals allow to say so."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from analysis.page.page_table import Column, Table
from analysis.report.content import SCHEMA_VERSION, json_values
from muloco_runner.config import ConfigError


def read_report(path: Path) -> dict[str, Any]:
    """A report.json, or the one of a report's or a study's folder. Mistakes raise `ConfigError`."""
    candidates = [path] if path.suffix == ".json" else [path / "report.json", path / "report" / "report.json"]
    file = next((candidate for candidate in candidates if candidate.is_file()), None)
    if file is None:
        raise ConfigError(f"{path}: no report.json in this folder; write one with muloco-report {path}")
    try:
        report = json.loads(file.read_text())
    except ValueError as error:
        raise ConfigError(f"{file}: not JSON ({error})") from None
    version = report.get("schema_version") if isinstance(report, dict) else None
    if version != SCHEMA_VERSION:
        raise ConfigError(f"{file}: schema version {version}, this program reads {SCHEMA_VERSION}: write it again")
    found: dict[str, Any] = json_values(report)
    return found


def compare_reports(first: dict[str, Any], second: dict[str, Any]) -> tuple[list[Table], list[str]]:
    """Tables of losses and of fitted figures that both have, and notes on what makes them hard to compare."""
    return [_losses(first, second), _fitted(first, second)], list(_notes(first, second))


def _losses(first: dict[str, Any], second: dict[str, Any]) -> Table:
    other = {(row["series"], row["num_params"]): row for row in second["best"]}
    rows = []
    for row in first["best"]:
        match = other.get((row["series"], row["num_params"]))
        if match:
            change = match["loss"] / row["loss"] - 1
            rows.append([row["num_params"], row["series"], row["loss"], match["loss"], change])
    return Table(
        "losses",
        "Best loss of every series and size that both studies have",
        [
            Column("size", "count", "parameters"),
            Column("series"),
            Column("first", "loss", "nats per token"),
            Column("second", "loss", "nats per token"),
            Column("second over first", "percent"),
        ],
        rows,
    )


def _fitted(first: dict[str, Any], second: dict[str, Any]) -> Table:
    mine, theirs = dict(_estimates(first)), dict(_estimates(second))
    rows = []
    for name, one in mine.items():
        other = theirs.get(name)
        if other is not None:
            rows.append(
                [name, one["value"], one["ci"], other["value"], other["ci"], _intervals_overlap(one["ci"], other["ci"])]
            )
    return Table(
        "fitted",
        "Fitted figures that both studies have",
        [
            Column("figure"),
            Column("first", "number"),
            Column("95% interval", "number"),
            Column("second", "number"),
            Column("95% interval", "number"),
            Column("intervals"),
        ],
        rows,
    )


def _estimates(report: dict[str, Any]) -> Iterator[tuple[str, dict[str, Any]]]:
    if report["iso_loss"].get("fit"):
        for name, estimate in report["iso_loss"]["fit"]["parameters"].items():
            if not name.startswith("A"):
                yield f"loss against compute: {name}", estimate
    for law in report["critical_batch"]["laws"]:
        if law["fit"]:
            yield f"{law['definition']} exponent, {law['series']}", law["fit"]["parameters"]["alpha"]
    for entry in report["critical_batch"]["joint"]:
        if entry["law"]:
            yield f"cbs_joint exponent, {entry['series']}", entry["law"]["exponent"]
    largest = max((row["num_params"] for row in report["best"]), default=0)
    for row in report["best"]:
        for kind in ("compute_ratio", "time_ratio"):
            if row["num_params"] == largest and row[kind]:
                yield f"{kind.replace('_', ' ')} at the largest size, {row['series']}", row[kind]


def _intervals_overlap(one: list[float | None] | None, other: list[float | None] | None) -> str:
    bounds = [*(one or [None]), *(other or [None])]
    if None in bounds or one is None or other is None:
        return "–"
    low, high, other_low, other_high = (float(b) for b in bounds if b is not None)
    return "disjoint" if low > other_high or other_low > high else "overlap"


def _notes(first: dict[str, Any], second: dict[str, Any]) -> Iterator[str]:
    if first["audit"]["corpus"] != second["audit"]["corpus"]:
        yield "The two studies used other data: their losses cannot be compared, only ratios and exponents."
    for key, label in (("baseline", "baseline"), ("tokens_per_parameter", "tokens per parameter")):
        if first["settings"][key] != second["settings"][key]:
            yield f"They differ in {label}: {first['settings'][key]} and {second['settings'][key]}."
    if first["provenance"]["data_hash"] == second["provenance"]["data_hash"]:
        yield "Both rest on the same runs."
    for label, missing in (
        ("first", set(first["series"]) - set(second["series"])),
        ("second", set(second["series"]) - set(first["series"])),
    ):
        if missing:
            yield f"Only the {label} has: {', '.join(sorted(missing))}."
