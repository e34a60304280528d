"""Files of runs -> a table of cells: .csv .tsv .parquet .jsonl .ndjson .json, each also with .gz.

Every line of the file is a row of the table or stands in `dropped` with the reason.
"""

from __future__ import annotations

import ast
import csv
import gzip
import io
import json
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, TextIO

import pandas as pd

from muloco_runner.config import ConfigError

SEPARATORS = {"comma": ",", "semicolon": ";", "tab": "\t", "pipe": "|"}
_SUFFIXES = (".csv", ".tsv", ".parquet", ".jsonl", ".ndjson", ".json")
_JSON_ROWS = 50_000
"""Rows that are held as Python objects at once."""


@dataclass(frozen=True)
class Table:
    """The cells of one file, or of several that were split, and what was decided while reading them."""

    source: str
    frame: pd.DataFrame
    notes: tuple[str, ...] = ()
    dropped: tuple[tuple[str, str], ...] = ()
    """(row, reason) of rows whose cells cannot be told apart."""
    ambiguous: frozenset[str] = frozenset()
    """Headings that the file has more than once."""
    text: _TextFile | _Parts | None = field(default=None, repr=False)

    def as_text(self) -> Table:
        """Return the same table with every cell as it is written, where numbers were read on the way in."""
        return self if self.text is None else replace(self, frame=self.text.read(as_text=True), text=None)


def read_tables(paths: Sequence[Path], separator: str | None = None) -> Table:
    """The rows of several files as one table, file after file. Mistakes raise `ConfigError`."""
    tables = [read_table(path, separator) for path in paths]
    if len(tables) == 1:
        return tables[0]
    parts = _Parts(tuple(tables))
    return Table(
        ", ".join(table.source for table in tables),
        parts.read(as_text=False),
        tuple(dict.fromkeys(note for table in tables for note in table.notes)),
        tuple((f"{table.source} {row}", reason) for table in tables for row, reason in table.dropped),
        frozenset().union(*(table.ambiguous for table in tables)),
        parts,
    )


def read_table(path: Path, separator: str | None = None) -> Table:
    """The table in `path`; `separator` is a name of `SEPARATORS`. Mistakes raise `ConfigError`."""
    name = path.name.lower().removesuffix(".gz")
    suffix = next((one for one in _SUFFIXES if name.endswith(one)), None)
    if suffix is None:
        raise ConfigError(f"{path}: a table ends in {', '.join(_SUFFIXES)}, and may be compressed (.gz)")
    try:
        if suffix in (".csv", ".tsv"):
            return _read_text(path, suffix, separator)
        if suffix == ".parquet":
            return Table(str(path), _nested_expanded(_read_parquet(path)))
        return Table(str(path), _nested_expanded(_read_json(path, by_line=suffix != ".json")))
    except FileNotFoundError:
        raise ConfigError(f"{path}: no such file") from None
    except ConfigError:
        raise
    except (OSError, EOFError, ValueError, ImportError, csv.Error, RecursionError) as error:
        if "EOF inside string" in str(error):
            raise ConfigError(f"{path}: a quotation mark is opened and never closed") from None
        raise ConfigError(f"{path}: not readable as {suffix} ({' '.join(str(error).split())[:300]})") from None


@dataclass(frozen=True)
class _Parts:
    """Tables whose rows follow each other."""

    tables: tuple[Table, ...]

    def read(self, as_text: bool) -> pd.DataFrame:
        """All rows; a column that is text in one file is read as text from all, as it would be from one file."""
        frames = [table.frame for table in self.tables]
        mixed = {
            name
            for name in dict.fromkeys(name for frame in frames for name in frame.columns)
            if len({frame[name].dtype.kind in "iuf" for frame in frames if name in frame}) > 1
        }
        if as_text:
            frames = [table.as_text().frame for table in self.tables]
        elif mixed:
            frames = [
                table.frame.assign(**{name: table.as_text().frame[name] for name in mixed if name in table.frame})
                for table in self.tables
            ]
        return pd.concat(frames, ignore_index=True)


# Text


@dataclass(frozen=True)
class _TextFile:
    path: Path
    encoding: str
    separator: str
    header: tuple[str, ...]
    skipped_lines: int
    """Before the first row of data."""
    damaged: bool
    """Whether some lines have another number of cells than the header."""

    def read(self, as_text: bool) -> pd.DataFrame:
        with _open_text(self.path, self.encoding) as file:
            for _ in range(self.skipped_lines):
                file.readline()
            source: Any = self._whole_rows(file) if self.damaged else file
            frame = pd.read_csv(
                source, sep=self.separator, header=None, names=range(len(self.header)), index_col=False,
                skipinitialspace=True, keep_default_na=False, na_values=[""], low_memory=False,
                dtype=str if as_text else None,
            )  # fmt: skip
        frame.columns = pd.Index(_unique(self.header))
        return frame

    def _whole_rows(self, file: TextIO) -> io.StringIO:
        out = io.StringIO()
        writer = csv.writer(out, delimiter=self.separator, lineterminator="\n")
        for row in csv.reader(file, delimiter=self.separator, skipinitialspace=True):
            if row and (cells := _fitted(row, len(self.header))) is not None:
                writer.writerow(cells)
        out.seek(0)
        return out


def _read_text(path: Path, suffix: str, separator: str | None) -> Table:
    notes: list[str] = []
    encoding = _encoding(path, notes)
    with _open_text(path, encoding) as file:
        lines = [file.readline() for _ in range(200)]
    first = next((i for i, line in enumerate(lines) if line.strip() and not line.startswith("#")), None)
    if first is None:
        raise ConfigError(f"{path}: not readable as {suffix} (it has no header)")
    sample = [line for line in lines[first:] if line.strip()][:50]
    delimiter = SEPARATORS[separator] if separator else _separator(sample, "\t" if suffix == ".tsv" else ",")
    commented = next((line for line in reversed(lines[:first]) if line.strip()), "")
    header, used = _header(commented, sample[0], delimiter)
    if delimiter != ("\t" if suffix == ".tsv" else ","):
        notes.append(f"separator: {next(n for n, s in SEPARATORS.items() if s == delimiter)}")
    skipped = first + used
    dropped = _ragged_rows(path, encoding, delimiter, len(header), skipped)
    text = _TextFile(path, encoding, delimiter, header, skipped, bool(dropped))
    named = [(name, reason) for name, reason in dropped if reason]
    twice = frozenset(name for name in header if name and header.count(name) > 1)
    return Table(str(path), _nested_expanded(text.read(as_text=False)), tuple(notes), tuple(named), twice, text)


def _encoding(path: Path, notes: list[str]) -> str:
    with _open_bytes(path) as file:
        sample = file.read(65536)
        if sample.startswith((b"\xff\xfe", b"\xfe\xff")):
            return "utf-16"
        if b"\0" in sample:
            return "utf-16-le" if sample[1:2] == b"\0" else "utf-16-be"
        try:
            while sample:
                # A character may lie across the end of a block: what follows it is read to its line's end.
                sample += file.readline()
                sample.decode("utf-8-sig")
                sample = file.read(1 << 24)
        except UnicodeDecodeError:
            notes.append("encoding: not UTF-8, read as Windows-1252")
            return "cp1252"
    return "utf-8-sig"


def _open_bytes(path: Path) -> Any:
    with path.open("rb") as file:
        compressed = file.read(2) == b"\x1f\x8b"
    return gzip.open(path, "rb") if compressed else path.open("rb")


def _open_text(path: Path, encoding: str) -> TextIO:
    return io.TextIOWrapper(_open_bytes(path), encoding=encoding, newline="")


def _separator(sample: list[str], usual: str) -> str:
    """The separator that gives the header and most lines the same number of cells, more than one."""
    found: dict[str, tuple[float, int]] = {}
    for delimiter in dict.fromkeys([usual, *SEPARATORS.values()]):
        widths = [len(row) for row in csv.reader(sample, delimiter=delimiter) if row]
        if widths and widths[0] > 1:
            found[delimiter] = (sum(width == widths[0] for width in widths) / len(widths), widths[0])
    if not found:
        return usual
    fitting = {delimiter: width for delimiter, (share, width) in found.items() if share == 1.0}
    if usual not in fitting and len(fitting) > 1:
        names = " or ".join(name for name, one in SEPARATORS.items() if one in fitting)
        raise ConfigError(f"cells may be separated by {names}: say --separator")
    if usual in fitting and len(sample) > 1:
        return usual
    return max(found, key=lambda one: (found[one][0], one == usual, found[one][1]))


def _header(commented: str, line: str, delimiter: str) -> tuple[tuple[str, ...], int]:
    """Headings, and the lines that they take: none where a comment just before the numbers holds them."""
    (cells,) = csv.reader([line.rstrip("\r\n")], delimiter=delimiter, skipinitialspace=True)
    (above,) = csv.reader([commented.lstrip("# ").rstrip("\r\n")], delimiter=delimiter, skipinitialspace=True) or [[]]
    if len(above) == len(cells) > 1 and any(re.fullmatch(r"[+-]?[\d.]+(e[+-]?\d+)?", one.strip()) for one in cells):
        return tuple(one.strip() for one in above), 0
    return tuple(one.strip() for one in cells), 1


def _unique(header: tuple[str, ...]) -> list[str]:
    seen: dict[str, int] = {}
    out = []
    for position, name in enumerate(header):
        seen[name] = seen.get(name, 0) + 1
        out.append(f"Unnamed: {position}" if not name else name if seen[name] == 1 else f"{name}.{seen[name] - 1}")
    return out


def _ragged_rows(path: Path, encoding: str, delimiter: str, width: int, skipped: int) -> list[tuple[str, str]]:
    """(row, reason) of each row with another number of cells; without a reason where only empty cells are too many."""
    with _open_text(path, encoding) as file:
        if all(
            ('"' not in line and line.count(delimiter) == width - 1) or not line.strip()
            for number, line in enumerate(file)
            if number >= skipped
        ):
            return []
    out = []
    with _open_text(path, encoding) as file:
        for _ in range(skipped):
            file.readline()
        position = 0
        for row in csv.reader(file, delimiter=delimiter, skipinitialspace=True):
            if not row:
                continue
            position += 1
            if len(row) == width:
                continue
            if any("\n" in cell for cell in row):
                raise ConfigError(f"{path}: row {position}: a quotation mark is opened and never closed")
            fits = _fitted(row, width) is not None
            cells = f"damaged: {len(row)} cells where the header has {width}"
            out.append((f"line {position + skipped}", "" if fits else cells))
    return out


def _fitted(row: list[str], width: int) -> list[str] | None:
    if len(row) < width or any(cell.strip() for cell in row[width:]):
        return None
    return row[:width]


# Parquet and JSON


def _read_parquet(path: Path) -> pd.DataFrame:
    """Read with nulls missing and NaN written out: one is a number that was never logged, the other a lost run."""
    import pyarrow.compute as pc
    import pyarrow.parquet as pq
    from pyarrow import types

    with _open_bytes(path) as file:
        table = pq.read_table(io.BytesIO(file.read()) if isinstance(file, gzip.GzipFile) else path)
    frame = table.to_pandas(ignore_metadata=False)
    if frame.index.name is not None or frame.index.nlevels > 1:
        frame = frame.reset_index()
    for name in table.column_names:
        if types.is_floating(table.schema.field(name).type) and name in frame:
            lost = pc.is_nan(table.column(name)).to_pandas().fillna(False).astype(bool).to_numpy()
            if lost.any():
                frame[name] = frame[name].astype(object).mask(lost, "NaN")
    return pd.DataFrame(frame.reset_index(drop=True))


def _read_json(path: Path, by_line: bool) -> pd.DataFrame:
    with _open_text(path, _encoding(path, [])) as file:
        if not by_line:
            return _flat(_records(json.load(file, parse_constant=str)))
        parts = [_flat(rows) for rows in _batches(file)]
    return pd.concat(parts, ignore_index=True) if parts else pd.DataFrame()


def _batches(file: TextIO) -> Iterator[list[Any]]:
    rows: list[Any] = []
    for number, line in enumerate(file, start=1):
        if line.strip():
            try:
                rows.append(json.loads(line, parse_constant=str))
            except ValueError as error:
                raise ValueError(f"line {number}: {error}") from None
        if len(rows) == _JSON_ROWS:
            yield rows
            rows = []
    if rows:
        yield rows


def _records(content: Any) -> list[Any]:
    """Rows of the usual layouts: a list of rows, {name: [...]}, {columns, data}, {name: {row: cell}}, {runs: [...]}."""
    if isinstance(content, list):
        return content
    if not isinstance(content, dict) or not content:
        raise ValueError("neither a list of rows nor columns by name")
    if isinstance(content.get("columns"), list) and isinstance(content.get("data"), list):
        return [dict(zip(content["columns"], row, strict=True)) for row in content["data"]]
    lists = [value for value in content.values() if isinstance(value, list)]
    if len(lists) == 1 and all(isinstance(row, dict) for row in lists[0]):
        return lists[0]
    if len(lists) == len(content) and len({len(value) for value in lists}) == 1:
        return [dict(zip(content, row, strict=True)) for row in zip(*lists, strict=True)]
    if all(isinstance(value, dict) for value in content.values()):
        keys = list(dict.fromkeys(key for value in content.values() for key in value))
        # {name: {row: cell}} as pandas writes it has rows by number, {row: {name: cell}} has not.
        if all(key.isdigit() for key in keys):
            return [{name: cells.get(key) for name, cells in content.items()} for key in keys]
        return list(content.values())
    raise ValueError("neither a list of rows nor columns by name")


def _flat(rows: list[Any]) -> pd.DataFrame:
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


def _nested_expanded(frame: pd.DataFrame) -> pd.DataFrame:
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
