"""Files of runs -> a table of cells: .csv .tsv .parquet .jsonl .ndjson .json, each also with .gz or in a .zip; .xlsx.

Every line of the file is a row of the table or stands in `dropped` with the reason.
"""

from __future__ import annotations

import csv
import io
import itertools
import json
import re
import zipfile
import zlib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, TextIO

import numpy as np
import pandas as pd

from analysis.input.columns import listed
from analysis.input.json_rows import batches, flat, nested_expanded, records
from analysis.input.table_source import TableSource, find_source, is_workbook
from analysis.input.workbook import read_sheet
from muloco_runner.config import ConfigError

SEPARATORS = {"comma": ",", "semicolon": ";", "tab": "\t", "pipe": "|"}
_BLOCK_BYTES = 1 << 24


@dataclass(frozen=True)
class FilePart:
    """The rows of one file in a table of several."""

    source: str
    headings: tuple[str, ...]
    num_rows: int


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
    files: tuple[FilePart, ...] = ()
    """Where the rows are from, in their order; empty for one file."""

    def row_name(self, row: int) -> str:
        """`row 1` for the first row, with its file where there are several."""
        for file in self.files:
            if row < file.num_rows:
                return f"{file.source} row {row + 1}"
            row -= file.num_rows
        return f"row {row + 1}"

    def as_text(self) -> Table:
        """Return the same table with every cell as it is written, where numbers were read on the way in."""
        return self if self.text is None else replace(self, frame=self.text.read(as_text=True), text=None)


def read_tables(paths: Sequence[Path], separator: str | None = None, part: str | None = None) -> Table:
    """The rows of several files as one table, file after file. Mistakes raise `ConfigError`."""
    tables = [read_table(path, separator, part) for path in paths]
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
        tuple(FilePart(one.source, tuple(map(str, one.frame.columns)), len(one.frame)) for one in tables),
    )


def read_table(path: Path, separator: str | None = None, part: str | None = None) -> Table:
    """The table in `path`; `separator` is a name of `SEPARATORS`, `part` that of a sheet, a member of a .zip or a list.

    Mistakes raise `ConfigError`.
    """
    kind = path.suffix.lower()
    try:
        if is_workbook(path):
            return _read_workbook(path, part)
        source = find_source(path, part)
        kind = str(source.suffix)
        if kind in (".csv", ".tsv"):
            return _read_text(source, separator)
        if kind == ".parquet":
            return Table(str(source), nested_expanded(_read_parquet(source)))
        return Table(str(source), nested_expanded(_read_json(source, part)))
    except FileNotFoundError:
        raise ConfigError(f"{path}: no such file") from None
    except ConfigError:
        raise
    except (
        OSError,
        EOFError,
        ValueError,
        ImportError,
        RuntimeError,
        csv.Error,
        zipfile.BadZipFile,
        zlib.error,
    ) as error:
        if "EOF inside string" in str(error):
            raise ConfigError(f"{path}: a quotation mark is opened and never closed") from None
        raise ConfigError(f"{path}: not readable as {kind} ({' '.join(str(error).split())[:300]})") from None


def _read_workbook(path: Path, part: str | None) -> Table:
    name, header, frame = read_sheet(path, part)
    _refuse_second_table(path, header, enumerate(frame.itertuples(index=False), start=2))
    frame.columns = pd.Index(_unique(tuple(header)))
    return Table(str(path), frame, (f"sheet: {name}",), ambiguous=_repeated(header))


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
    source: TableSource
    encoding: str
    separator: str
    header: tuple[str, ...]
    skipped_lines: int
    """Before the first row of data."""
    damaged: bool
    """Whether some lines have another number of cells than the header."""

    def read(self, as_text: bool) -> pd.DataFrame:
        with self.source.open_text(self.encoding) as file:
            for _ in range(self.skipped_lines):
                file.readline()
            source: Any = self._whole_rows(file) if self.damaged else file
            frame = pd.read_csv(
                source, sep=self.separator, header=None, names=range(len(self.header)), index_col=False,
                skipinitialspace=True, keep_default_na=False, na_values=[""], low_memory=False,
                dtype=str if as_text else None,
            )  # fmt: skip
        frame.columns = pd.Index(_unique(self.header))
        return nested_expanded(frame)

    def _whole_rows(self, file: TextIO) -> io.StringIO:
        out = io.StringIO()
        writer = csv.writer(out, delimiter=self.separator, lineterminator="\n")
        for row in csv.reader(file, delimiter=self.separator, skipinitialspace=True):
            if row and (cells := _fitted(row, len(self.header))) is not None:
                writer.writerow(cells)
        out.seek(0)
        return out


def _read_text(path: TableSource, separator: str | None) -> Table:
    notes: list[str] = []
    usual = "\t" if path.suffix == ".tsv" else ","
    encoding = _encoding(path, notes)
    with path.open_text(encoding) as file:
        lines = [file.readline() for _ in range(200)]
    first = next((i for i, line in enumerate(lines) if line.strip() and not line.startswith("#")), None)
    if first is None:
        raise ConfigError(f"{path}: not readable as {path.suffix} (it has no header)")
    sample = [line for line in lines[first:] if line.strip()][:50]
    delimiter = SEPARATORS[separator] if separator else _separator(sample, usual)
    commented = next((line for line in reversed(lines[:first]) if line.strip()), "")
    header, used = _header(commented, sample[0], delimiter)
    if delimiter != usual:
        notes.append(f"separator: {next(n for n, s in SEPARATORS.items() if s == delimiter)}")
    skipped = first + used
    dropped = _ragged_rows(path, encoding, delimiter, header, skipped)
    text = _TextFile(path, encoding, delimiter, header, skipped, bool(dropped))
    named = [(name, reason) for name, reason in dropped if reason]
    return Table(str(path), text.read(as_text=False), tuple(notes), tuple(named), _repeated(header), text)


def _encoding(path: TableSource, notes: list[str]) -> str:
    with path.open() as file:
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
                sample = file.read(_BLOCK_BYTES)
        except UnicodeDecodeError:
            notes.append("encoding: not UTF-8, read as Windows-1252")
            return "cp1252"
    return "utf-8-sig"


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


def _repeated(header: Sequence[str]) -> frozenset[str]:
    return frozenset(name for name in header if name and header.count(name) > 1)


def _refuse_second_table(path: object, header: Sequence[str], rows: Iterable[tuple[int, Sequence[Any]]]) -> None:
    """Raise `ConfigError` where other headings follow an empty row: the cells below them would be read as ours."""
    empty = False
    for number, row in rows:
        cells = ["" if pd.isna(cell) else str(cell).strip() for cell in row]
        filled = [cell for cell in cells if cell]
        if empty and len(filled) > 1 and filled != [*header] and not any(re.match(r"[+-]?[.,]?\d", c) for c in filled):
            raise ConfigError(
                f"{path}: row {number} begins a second table ({listed(filled, 8)}): write one table a file"
            )
        empty = not filled


def _ragged_rows(
    path: TableSource, encoding: str, delimiter: str, header: tuple[str, ...], skipped: int
) -> list[tuple[str, str]]:
    """(row, reason) of each row with another number of cells; without a reason where only empty cells are too many."""
    width = len(header)
    if encoding == "utf-8-sig" and _is_even(path, delimiter, width, skipped):
        return []
    with path.open_text(encoding) as file:
        rows = csv.reader(file, delimiter=delimiter, skipinitialspace=True)
        _refuse_second_table(path, header, itertools.islice(enumerate(rows, start=1), skipped, None))
    out = []
    with path.open_text(encoding) as file:
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


def _is_even(path: TableSource, delimiter: str, width: int, skipped: int) -> bool:
    """Whether each line of a UTF-8 file has as many cells as the header; False where quotation marks may hide some."""
    with path.open() as file:
        for _ in range(skipped):
            file.readline()
        while block := file.read(_BLOCK_BYTES):
            block += file.readline()
            if b'"' in block:
                return False
            characters = np.frombuffer(block if block.endswith(b"\n") else block + b"\n", dtype=np.uint8)
            ends = np.flatnonzero(characters == ord("\n"))
            before = np.searchsorted(np.flatnonzero(characters == ord(delimiter)), ends)
            # A line without a cell may part two tables.
            if (np.diff(before, prepend=0) != width - 1).any() or (np.diff(ends, prepend=-1) <= width + 1).any():
                return False
    return True


def _fitted(row: list[str], width: int) -> list[str] | None:
    if len(row) < width or any(cell.strip() for cell in row[width:]):
        return None
    return row[:width]


# Parquet and JSON


def _read_parquet(path: TableSource) -> pd.DataFrame:
    """Read with nulls missing and NaN written out: one is a number that was never logged, the other a lost run."""
    import pyarrow.compute as pc
    import pyarrow.parquet as pq
    from pyarrow import types

    with path.open() as file:
        table = pq.read_table(path.path if isinstance(file, io.BufferedReader) else io.BytesIO(file.read()))
    frame = table.to_pandas(ignore_metadata=False)
    if frame.index.name is not None or frame.index.nlevels > 1:
        frame = frame.reset_index()
    for name in table.column_names:
        if types.is_floating(table.schema.field(name).type) and name in frame:
            lost = pc.is_nan(table.column(name)).to_pandas().fillna(False).astype(bool).to_numpy()
            if lost.any():
                frame[name] = frame[name].astype(object).mask(lost, "NaN")
    return pd.DataFrame(frame.reset_index(drop=True))


def _read_json(path: TableSource, part: str | None) -> pd.DataFrame:
    with path.open_text(_encoding(path, [])) as file:
        if path.suffix == ".json":
            # A member of an archive was named by `part` already.
            return flat(records(json.load(file, parse_constant=str), path.path, None if path.member else part))
        parts = [flat(rows) for rows in batches(file)]
    return pd.concat(parts, ignore_index=True) if parts else pd.DataFrame()
