"""JSON in the layouts in which labs and trackers write it -> rows, and objects within cells -> columns."""

from __future__ import annotations

import ast
import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any, TextIO

import pandas as pd

from analysis.input.table_source import chosen
from muloco_runner.config import ConfigError

_ROWS = 50_000
"""Rows that are held as Python objects at once."""


def batches(file: TextIO) -> Iterator[list[Any]]:
    rows: list[Any] = []
    for number, line in enumerate(file, start=1):
        if line.strip():
            try:
                rows.append(json.loads(line, parse_constant=str))
            except ValueError as error:
                raise ValueError(f"line {number}: {error}") from None
        if len(rows) == _ROWS:
            yield rows
            rows = []
    if rows:
        yield rows


def records(content: Any, path: Path, part: str | None) -> list[Any]:
    """Rows of the usual layouts: a list of rows, {name: [...]}, {columns, data}, {name: {row: cell}}, {runs: [...]}."""
    if isinstance(content, list) and part is None:
        return content
    if not isinstance(content, dict) or not content:
        raise ValueError("neither a list of rows nor columns by name")
    if isinstance(content.get("columns"), list) and isinstance(content.get("data"), list):
        return [dict(zip(content["columns"], row, strict=True)) for row in content["data"]]
    lists = {str(name): value for name, value in content.items() if isinstance(value, list)}
    tables = [name for name, value in lists.items() if value and all(isinstance(row, dict) for row in value)]
    if tables and len(tables) == len(lists):
        return lists[chosen(path, tables, part)]
    if part is not None:
        raise ConfigError(f"{path}: --part {part}: the file holds one table; drop --part")
    if len(lists) == len(content) and len({len(value) for value in lists.values()}) == 1:
        return [dict(zip(content, row, strict=True)) for row in zip(*lists.values(), strict=True)]
    if all(isinstance(value, dict) for value in content.values()):
        keys = list(dict.fromkeys(key for value in content.values() for key in value))
        # {name: {row: cell}} as pandas writes it has rows by number, {row: {name: cell}} has not.
        if all(key.isdigit() for key in keys):
            return [{name: cells.get(key) for name, cells in content.items()} for key in keys]
        return list(content.values())
    raise ValueError("neither a list of rows nor columns by name")


def flat(rows: list[Any]) -> pd.DataFrame:
    if not all(isinstance(row, dict) for row in rows):
        raise ValueError("a row is no object with names")
    rows = [_pairs_named(row) for row in rows]
    return pd.DataFrame(pd.json_normalize(rows)) if any(_is_nested(row) for row in rows) else pd.DataFrame(rows)


def _is_nested(row: dict[str, Any]) -> bool:
    return any(isinstance(value, dict) for value in row.values())


def _pairs_named(value: Any) -> Any:
    """Lists of {key, value}, as MLflow writes parameters and metrics, as one object."""
    if isinstance(value, dict):
        return {str(key): _pairs_named(one) if isinstance(one, (dict, list)) else one for key, one in value.items()}
    if isinstance(value, list) and value and all(isinstance(one, dict) and {"key", "value"} <= {*one} for one in value):
        return {str(one["key"]): one["value"] for one in value}
    return value


def nested_expanded(frame: pd.DataFrame) -> pd.DataFrame:
    """Columns that hold whole objects (`config` of a table of Weights & Biases) become a column for each entry."""
    out = frame
    for name in frame.columns:
        cells = frame[name]
        if pd.api.types.is_numeric_dtype(cells.dtype) or pd.api.types.is_bool_dtype(cells.dtype):
            continue
        known = cells.dropna()
        if known.empty or not str(known.iloc[0]).lstrip().startswith("{"):
            continue
        objects = [_object(cell) for cell in cells]
        if all(one is not None for one in objects):
            parts = pd.json_normalize([one or {} for one in objects]).set_axis(frame.index)
            out = out.drop(columns=name).join(parts.add_prefix(f"{name}."))
    return out


def _object(cell: Any) -> dict[str, Any] | None:
    if isinstance(cell, dict):
        return cell
    if not isinstance(cell, str):
        return {}
    try:
        found = json.loads(cell, parse_constant=str)
    except ValueError:
        try:
            found = ast.literal_eval(re.sub(r"(?<=[:,\[\s])(-?(?:nan|inf))(?=\s*[,}\]])", r"'\1'", cell.strip()))
        except (ValueError, SyntaxError, MemoryError, RecursionError):
            return None
    return found if isinstance(found, dict) else None
