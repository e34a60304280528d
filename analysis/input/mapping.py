"""Where each of our columns comes from: a column of the table, one value for all rows, or arithmetic on columns.

loss: eval/loss
algorithm: {value: AdamW}
num_tokens: {column: tokens_B, factor: 1e9}
flops: {column: gflops, unit: GFLOPs}
global_batch_tokens: batch_size * sequence_length
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import yaml

from analysis.input.cells import (
    MISSING,
    NOT_A_NUMBER,
    NOT_FINITE,
    OK,
    UNITS,
    Decimal,
    Numbers,
    decide_decimal,
    has_marks,
    to_numbers,
    written,
)
from analysis.input.columns import COLUMNS, FIT_COLUMNS, find_column, listed, nearest, usual_headings
from analysis.input.expression import Expression
from analysis.input.table_files import Table
from muloco_runner.config import ConfigError


@dataclass(frozen=True)
class Origin:
    """One of `column`, `value` and `expression` is given."""

    column: str | None = None
    value: Any = None
    expression: Expression | None = None
    factor: float = 1.0

    @property
    def columns(self) -> tuple[str, ...]:
        """Headings that it reads."""
        if self.column is not None:
            return (self.column,)
        return self.expression.columns if self.expression else ()

    @property
    def calculated(self) -> bool:
        """Whether its cells are worked out from others, and so are numbers."""
        return self.expression is not None or self.factor != 1

    def __str__(self) -> str:
        if self.column is not None:
            return self.column + (f" x {self.factor:,g}" if self.factor != 1 else "")
        return self.expression.text if self.expression else f"the value {self.value}"


class _Loader(yaml.SafeLoader):
    """YAML in which a name stands once: a second one is a mistake, not the last word."""


def _unique_names(loader: _Loader, node: yaml.MappingNode) -> dict[Any, Any]:
    names = [loader.construct_object(key) for key, _ in node.value]
    for name in names:
        if names.count(name) > 1:
            raise yaml.YAMLError(f"{name} stands twice")
    return {name: loader.construct_object(value, deep=True) for name, (_, value) in zip(names, node.value, strict=True)}


_Loader.add_constructor(yaml.resolver.BaseResolver.DEFAULT_MAPPING_TAG, _unique_names)


def read_mapping(path: Path | None) -> dict[str, Any]:
    """Our column names with what stands for them, from a JSON or YAML file. Mistakes raise `ConfigError`."""
    if path is None:
        return {}
    try:
        values = yaml.load(path.read_text(encoding="utf-8-sig"), Loader=_Loader)  # a SafeLoader
    except FileNotFoundError:
        raise ConfigError(f"{path}: no such file") from None
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path}: not readable ({error})") from None
    except (yaml.YAMLError, RecursionError, TypeError) as error:
        raise ConfigError(f"{path}: not YAML ({' '.join(str(error).split())})") from None
    if not isinstance(values, Mapping):
        raise ConfigError(f"{path}: write our column names with the table's, such as `loss: eval/loss`")
    for name in values:
        if name not in COLUMNS:
            raise ConfigError(
                f"{path}: {name} is no column of ours{nearest(str(name), [*COLUMNS])}; known: {', '.join(COLUMNS)}"
            )
    return {str(ours): given for ours, given in values.items()}


def origin(name: str, given: Any, table: Table) -> Origin:
    """What a mapping gives for `name`, checked against the table's headings. Mistakes raise `ConfigError`."""
    headings = [str(one) for one in table.frame.columns]
    if isinstance(given, Mapping):
        return _origin_of_object(name, given, table, headings)
    if isinstance(given, (list, bool)) or given is None:
        raise ConfigError(
            f"{table.source}: {name} is mapped to {given!r}: write a column, {{value: ...}} or arithmetic"
        )
    text = str(given)
    if text in headings:
        if text in table.ambiguous:
            raise ConfigError(f"{table.source}: the file has the column {text!r} more than once: rename one of them")
        return Origin(column=text)
    try:
        found = Expression(text)
    except ValueError:
        found = None
    if found is None or found.columns in ((), (text,)):
        raise ConfigError(
            f"{table.source}: the mapping names {text!r}, which is no column{nearest(text, headings)}; it has "
            f"{listed(headings)}"
        )
    return _checked_expression(name, found, table, headings)


def _origin_of_object(name: str, given: Mapping[Any, Any], table: Table, headings: list[str]) -> Origin:
    keys = {str(key) for key in given}
    if keys == {"value"} and isinstance(given["value"], (str, int, float)):
        return Origin(value=given["value"])
    if keys == {"expression"}:
        try:
            return _checked_expression(name, Expression(str(given["expression"])), table, headings)
        except ValueError as error:
            raise ConfigError(f"{table.source}: {name}: {given['expression']!r}: {error}") from None
    if ("column" in keys and keys <= {"column", "factor"}) or keys == {"column", "unit"}:
        column = str(given["column"])
        if column not in headings:
            raise ConfigError(
                f"{table.source}: the mapping names {column!r}, which is no column; it has {listed(headings)}"
            )
        return Origin(column=column, factor=_factor(name, given, table.source))
    raise ConfigError(
        f"{table.source}: {name}: {dict(given)}: write {{value: ...}}, {{column: ..., factor: ...}}, "
        "{column: ..., unit: ...} or {expression: ...}"
    )


def _factor(name: str, given: Mapping[Any, Any], source: str) -> float:
    if "unit" in given:
        units = UNITS[FIT_COLUMNS[name].kind or "number"]
        factor = units.get(str(given["unit"]).lower().replace(" ", ""))
        if factor is None:
            raise ConfigError(f"{source}: {name}: unit {given['unit']!r} is none of {', '.join(u for u in units if u)}")
        return factor
    try:
        factor = float(given.get("factor", 1.0))
    except (TypeError, ValueError):
        factor = np.nan
    if not (np.isfinite(factor) and factor > 0):
        raise ConfigError(f"{source}: {name}: factor {given['factor']!r} must be a positive number")
    return factor


def _checked_expression(name: str, expression: Expression, table: Table, headings: list[str]) -> Origin:
    for column in expression.columns:
        if column not in headings:
            raise ConfigError(
                f"{table.source}: {name}: {expression.text!r} names {column!r}, which is no column"
                f"{nearest(column, headings)}; it has {listed(headings)}"
            )
    return Origin(expression=expression)


class Reader:
    """Reads our columns from a table by their origins, with one decimal mark for the whole file."""

    def __init__(self, table: Table, origins: Mapping[str, Origin], said: Decimal | None = None) -> None:
        """Raises `ConfigError` where the decimal mark is ambiguous."""
        self.origins = dict(origins)
        self.notes = list(table.notes)
        self._decimal: Decimal = said or "point"
        self._cache: dict[tuple[str, str], Numbers] = {}
        numeric = {
            heading
            for name, one in origins.items()
            if FIT_COLUMNS[name].kind is not None or one.calculated
            for heading in one.columns
        }
        if said == "comma" or any(has_marks(_texts(table.frame[name])) for name in numeric):
            table = table.as_text()
            texts = (text for name in sorted(numeric) for text in _texts(table.frame[name]))
            self._decimal, note = decide_decimal(texts, said)
            self.notes += [note] if note else []
        self.table = table

    @property
    def frame(self) -> pd.DataFrame:
        return self.table.frame

    def numbers(self, name: str) -> Numbers:
        """The column `name` of ours; a row without all that it needs is missing."""
        one, kind = self.origins[name], FIT_COLUMNS[name].kind or "number"
        if one.value is not None:
            return to_numbers(pd.Series([one.value] * len(self.frame), dtype=object), kind, "point")
        # `124M` in a column that the mapping says is in millions would be scaled twice: it is no number there.
        kind = "number" if one.factor != 1 and kind != "loss" else kind
        parts = {heading: self._numbers_of(heading, kind) for heading in one.columns}
        if one.expression is None:
            (only,) = parts.values()
            return Numbers(only.values * one.factor, only.states)
        worst = np.zeros(len(self.frame), dtype=np.int8)
        for part in parts.values():
            worst = np.where(worst == OK, part.states, worst).astype(np.int8)
        values = np.broadcast_to(
            one.expression.value({heading: part.values for heading, part in parts.items()}), worst.shape
        )
        states = np.where((worst == OK) & ~np.isfinite(values), NOT_A_NUMBER, worst).astype(np.int8)
        return Numbers(np.where(states == OK, values, np.nan), states)

    def _numbers_of(self, heading: str, kind: Any) -> Numbers:
        key = (heading, kind)
        if key not in self._cache:
            self._cache[key] = to_numbers(self.frame[heading], kind, self._decimal)
        return self._cache[key]

    def texts(self, name: str) -> pd.Series[Any]:
        """The column `name` of ours as stripped text; empty where nothing stands.

        Arithmetic on cells that are no numbers raises `ConfigError`.
        """
        one = self.origins[name]
        if one.calculated:
            return self._calculated_texts(name)
        if one.column is None:
            return pd.Series([str(one.value)] * len(self.frame), index=self.frame.index, dtype=object)
        cells = self.frame[one.column]
        codes, unique = pd.factorize(cells.astype(object), use_na_sentinel=True)
        words = np.array([*(str(cell).strip() for cell in unique), ""], dtype=object)
        return pd.Series(words[codes], index=self.frame.index, dtype=object)

    def _calculated_texts(self, name: str) -> pd.Series[Any]:
        found = self.numbers(name)
        bad = np.flatnonzero((found.states == NOT_A_NUMBER) | (found.states == NOT_FINITE))
        if len(bad):
            row = int(bad[0])
            raise ConfigError(
                f"{self.table.source}: {name} is mapped to {self.origins[name]}, which calculates, and "
                f"{self.table.row_name(row)} gives no number ({self.shown(name, row)}): map {name} to a column"
            )
        words = [written(value) if state == OK else "" for value, state in zip(found.values, found.states, strict=True)]
        return pd.Series(words, index=self.frame.index, dtype=object)

    def shown(self, name: str, row: int) -> str:
        """What stands in a row for `name`, for a message."""
        one = self.origins[name]
        cells = [str(self.frame[heading].iloc[row]) for heading in one.columns]
        return f"{name}={', '.join(cells) or one.value}"


def find_origins(
    table: Table, mapping: Mapping[str, Any], wanted: Sequence[str], needed: Sequence[str]
) -> dict[str, Origin]:
    """The origin of each wanted column that the table has, those of the mapping first.

    A needed column that several headings could be raises `ConfigError`; one that can be done without is left unused.
    """
    out = {name: origin(name, given, table) for name, given in mapping.items()}
    taken = {heading for one in out.values() for heading in one.columns}
    whole = {one.column for one in out.values() if one.column is not None}
    headings = [str(one) for one in table.frame.columns]
    for name in wanted:
        if name in out:
            continue
        # A heading that is mapped elsewhere, or stands in arithmetic, is free for its own name alone.
        free = [one for one in headings if one not in taken or one == name]
        try:
            found = find_column(free, name, table.ambiguous, "say which in a --mapping file")
        except ConfigError as error:
            if name in needed:
                raise ConfigError(f"{table.source}: {error}") from None
            continue
        if found is not None and found not in whole:
            out[name] = Origin(column=found)
            taken.add(found)
            whole.add(found)
    _refuse_other_names(table, out)
    return out


def _refuse_other_names(table: Table, origins: Mapping[str, Origin]) -> None:
    """Raise `ConfigError` where one of several files has a column under another name: its rows would be without it."""
    taken = {heading for one in origins.values() for heading in one.columns}
    for name, one in origins.items():
        for file in table.files:
            if one.column is None or one.column in file.headings:
                continue
            usual = [name] if name in file.headings else usual_headings(file.headings, name)
            if others := [heading for heading in usual if heading not in taken]:
                having = next(part.source for part in table.files if one.column in part.headings)
                raise ConfigError(
                    f"{name} is the column {one.column} in {having} and {' or '.join(others)} in {file.source}: give "
                    "it one name in all files"
                )


def _texts(cells: pd.Series[Any]) -> Sequence[Any]:
    if pd.api.types.is_numeric_dtype(cells.dtype):
        return ()
    return [one for one in pd.unique(cells.astype(object)) if isinstance(one, str)]


__all__ = ["MISSING", "NOT_FINITE", "Origin", "Reader", "find_origins", "origin", "read_mapping"]
