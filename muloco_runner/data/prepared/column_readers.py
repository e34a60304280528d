"""Documents in the cells of one column: parquet, arrow and csv files."""

from __future__ import annotations

import contextlib
import csv
import importlib
import io
import sys
from collections.abc import Iterator
from typing import Any

from muloco_runner.config import ConfigError
from muloco_runner.data.prepared.documents import (
    Document,
    FileRange,
    InputFile,
    document_of,
    open_input,
    require_package,
    said,
)

_ROWS_AT_A_TIME = 1024
_DELIMITERS = {"csv": ",", "tsv": "\t"}


def row_groups(file: InputFile) -> list[FileRange]:
    """One range a row group; one with its problem where the file has no readable footer."""
    try:
        with _parquet_file(file) as parquet:
            count = parquet.metadata.num_row_groups
    except DamagedError as error:
        return [FileRange(file, 0, 1, file.size, f"{file.name}: not a parquet file ({error})")]
    return [FileRange(file, group, group + 1, file.size // count) for group in range(count)]


def from_parquet(file_range: FileRange, column: str) -> Iterator[Document]:
    """Documents of the range's row groups. What follows the damage in a row group counts as one."""
    file = file_range.file
    for group in range(file_range.start, file_range.end):
        where = f"{file.name}, row group {group}"
        try:
            with _parquet_file(file) as parquet:
                _check_column(file, parquet.schema_arrow, column)
                with _damage():
                    batches = parquet.iter_batches(_ROWS_AT_A_TIME, row_groups=[group], columns=[column])
                yield from _cells(batches, where)
        except DamagedError as error:
            yield Document(b"", 0, f"{where}: damaged ({error})")
    yield Document(b"", file_range.size)


def from_arrow(file_range: FileRange, column: str) -> Iterator[Document]:
    """Documents of an IPC file or stream, as the datasets and polars libraries write them."""
    file = file_range.file
    pyarrow = require_package("pyarrow", file.name)
    try:
        with pyarrow.memory_map(file.path) as source:
            with _damage():
                schema, batches = _record_batches(source)
            _check_column(file, schema, column)
            yield from _cells((batch.select([column]) for batch in batches), file.name)
    except DamagedError as error:
        yield Document(b"", 0, f"{file.name}: damaged, or not an arrow file ({error})")
    yield Document(b"", file_range.size)


def _record_batches(source: Any) -> tuple[Any, Iterator[Any]]:
    """Schema and record batches of either form."""
    ipc = importlib.import_module("pyarrow.ipc")
    if source.read(6) == b"ARROW1":
        file = ipc.open_file(source)
        return file.schema, (file.get_batch(number) for number in range(file.num_record_batches))
    source.seek(0)
    stream = ipc.open_stream(source)
    return stream.schema, stream


class DamagedError(Exception):
    """A library cannot read a file; says what it said."""


@contextlib.contextmanager
def _damage() -> Iterator[None]:
    """Turns what pyarrow raises on damaged files into `DamagedError`; a disk that fails is not meant."""
    try:
        yield
    except Exception as error:  # Arrow has a class for nearly every builtin one
        if getattr(error, "errno", None) is not None:
            raise
        raise DamagedError(said(error)) from None


@contextlib.contextmanager
def _parquet_file(file: InputFile) -> Iterator[Any]:
    require_package("pyarrow", file.name)
    parquet = importlib.import_module("pyarrow.parquet")
    with _damage():
        opened = parquet.ParquetFile(file.path, page_checksum_verification=True)
    with opened:
        yield opened


def _check_column(file: InputFile, schema: Any, column: str) -> None:
    with _damage():
        fields = {field.name: field.type for field in schema}
    if column not in fields or not _holds_text(fields[column]):
        there = ", ".join(f"{name} ({kind})" for name, kind in fields.items())
        raise ConfigError(f"{file.name}: no column of text {column!r} (there is: {there}): give --column")
    _check_only(file, schema.names, column)


def _check_only(file: InputFile, names: list[str], column: str) -> None:
    """Refuse a file that has several columns of that name: either may be meant."""
    if names.count(column) > 1:
        raise ConfigError(
            f"{file.name}: {names.count(column)} columns are named {column!r}: rename all but one, "
            "or give another with --column"
        )


def _holds_text(kind: Any) -> bool:
    """Strings, bytes that should be UTF-8, categories of either, and a column of nothing but nulls."""
    types = importlib.import_module("pyarrow").types
    if types.is_dictionary(kind):
        return _holds_text(kind.value_type)
    name = str(kind)
    return name in ("string", "large_string", "string_view", "binary", "large_binary", "binary_view", "null")


def _cells(batches: Iterator[Any], where: str) -> Iterator[Document]:
    """The cells of the only column."""
    row = 0
    while True:
        with _damage():
            batch = next(batches, None)
            values = None if batch is None else _bytes_of(batch.column(0))
        if values is None:
            return
        for value in values:
            place = f"{where}, row {row}"
            row += 1
            yield Document(b"", 0, f"{place}: the text is null") if value is None else document_of(value, 0, place)


def _bytes_of(cells: Any) -> list[bytes | None]:
    """Cells as they are stored: Arrow takes strings on trust, and a bad one is found out as a document."""
    pyarrow = importlib.import_module("pyarrow")
    try:
        cells.validate(full=True)
    except pyarrow.ArrowInvalid as error:
        # The last thing that is looked at, so all offsets are right.
        if "UTF8" not in str(error):
            raise
    if pyarrow.types.is_dictionary(cells.type):
        cells = cells.dictionary_decode()
    values: list[bytes | None] = cells.cast(pyarrow.large_binary()).to_pylist()
    return values


def from_csv(file_range: FileRange, column: str) -> Iterator[Document]:
    """Documents of a table with a header line. After a quote that is not closed nothing is known: it counts as one."""
    file = file_range.file
    csv.field_size_limit(sys.maxsize)
    # Bytes that are no UTF-8 pass the parser as they are, and are found out cell by cell.
    with io.TextIOWrapper(open_input(file), "utf-8-sig", "surrogateescape", newline="") as text:
        rows = csv.reader(text, delimiter=_DELIMITERS[file.kind], strict=True)
        number = 0
        try:
            header = next(rows, None)
            if header is None:
                return
            if column not in header:
                there = ", ".join(header)
                raise ConfigError(f"{file.name}: no column {column!r} (there is: {there}): give --column")
            _check_only(file, header, column)
            index = header.index(column)
            for number, row in enumerate(rows, start=1):
                if row:
                    yield _csv_cell(row, index, len(header), f"{file.name}, row {number}")
        except csv.Error as error:
            yield Document(b"", 0, f"{file.name}, row {number + 1}: not {file.kind} ({said(error)})")
    yield Document(b"", file_range.size)


def _csv_cell(row: list[str], index: int, width: int, where: str) -> Document:
    if len(row) != width:
        return Document(b"", 0, f"{where}: {len(row)} cells under a header of {width}")
    return document_of(row[index].encode("utf-8", "surrogateescape"), 0, where)
