"""Input files, the input chunks into which they are split, and the documents of each.

A chunk is a list of ranges of files in their order, about as many bytes as any other, so that the documents of all
chunks laid end to end are the same however large a chunk is.
"""

from __future__ import annotations

import gzip
import importlib
import io
import json
import sys
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any, cast

from muloco_runner.config import ConfigError

KINDS = ("jsonl", "parquet", "text")
_JSONL = (".jsonl", ".ndjson", ".json")
_COMPRESSED = (".gz", ".zst")


@dataclass(frozen=True)
class InputFile:
    name: str
    """Path below the one that was given."""
    path: str
    size: int
    """Bytes."""
    kind: str


@dataclass(frozen=True)
class FileRange:
    """A part of a file: bytes for text and jsonl (what starts in it belongs to it), row groups for parquet."""

    file: InputFile
    start: int
    end: int
    size: int
    """Bytes, for progress; an estimate for row groups."""


@dataclass(frozen=True)
class Document:
    """One document, or why it is none."""

    content: bytes
    """UTF-8."""
    consumed: int
    """Bytes of the input read since the document before."""
    problem: str | None = None


def find_files(paths: list[Path], kind: str | None) -> list[InputFile]:
    """Files at and below `paths`, hidden ones left out, in the order of the arguments and then of their names."""
    found = []
    for path in paths:
        if not path.exists():
            raise ConfigError(f"{path}: no such file or folder")
        files = [path] if path.is_file() else sorted(p for p in path.rglob("*") if p.is_file())
        base = path.parent if path.is_file() else path
        for file in files:
            name = file.relative_to(base).as_posix()
            if not any(part.startswith(".") for part in Path(name).parts):
                found.append(InputFile(name, str(file.resolve()), file.stat().st_size, kind or _kind_of(file)))
    if not found:
        raise ConfigError(f"{', '.join(map(str, paths))}: no files there")
    return found


def _kind_of(file: Path) -> str:
    name = file.name.removesuffix(".gz").removesuffix(".zst")
    if name.endswith(_JSONL):
        return "jsonl"
    return "parquet" if name.endswith(".parquet") else "text"


def plan_chunks(files: list[InputFile], chunk_bytes: int, by_file: bool) -> list[list[FileRange]]:
    """Ranges in order, gathered into chunks of at least `chunk_bytes`. `by_file`: a text file is one document."""
    chunks: list[list[FileRange]] = []
    gathered = chunk_bytes
    for file in files:
        for file_range in _ranges(file, chunk_bytes, by_file):
            if gathered >= chunk_bytes:
                chunks.append([])
                gathered = 0
            chunks[-1].append(file_range)
            gathered += file_range.size
    return chunks


def _ranges(file: InputFile, chunk_bytes: int, by_file: bool) -> list[FileRange]:
    if file.kind == "parquet":
        return _row_groups(file)
    if file.path.endswith(_COMPRESSED) or (file.kind == "text" and by_file):
        return [FileRange(file, 0, sys.maxsize, file.size)]
    starts = range(0, max(1, file.size), chunk_bytes)
    return [FileRange(file, s, min(s + chunk_bytes, file.size), min(chunk_bytes, file.size - s)) for s in starts]


def _row_groups(file: InputFile) -> list[FileRange]:
    metadata = _open_parquet(file).metadata
    count = metadata.num_row_groups
    return [FileRange(file, group, group + 1, file.size // count) for group in range(count)]


def documents_of(file_range: FileRange, column: str, by_file: bool) -> Iterator[Document]:
    """Yields the documents that start in `file_range`, empty ones left out. Unreadable ones come with their problem;
    what follows the damage in a compressed file counts as one."""
    try:
        yield from _documents_of(file_range, column, by_file)
    except (EOFError, zlib.error, OSError) as error:
        # Decompressors raise OSError for damage too, but without an errno: with one it is the disk that fails.
        if getattr(error, "errno", None) is not None or not file_range.file.path.endswith(_COMPRESSED):
            raise
        yield Document(b"", 0, f"{file_range.file.name}: damaged, or not compressed as its name says ({error})")


def _documents_of(file_range: FileRange, column: str, by_file: bool) -> Iterator[Document]:
    if file_range.file.size == 0:
        yield Document(b"", 0, f"{file_range.file.name}: the file is empty")
    elif file_range.file.kind == "jsonl":
        yield from _from_jsonl(file_range, column)
    elif file_range.file.kind == "parquet":
        yield from _from_parquet(file_range, column)
    elif by_file:
        with _open(file_range.file) as file:
            yield _checked(file.read(), file_range.size, file_range.file.name)
    else:
        yield from _from_paragraphs(file_range)


def _from_jsonl(file_range: FileRange, column: str) -> Iterator[Document]:
    with _open(file_range.file) as file:
        for position, line in _lines_from(file, file_range.start):
            if position >= file_range.end:
                return
            if line.strip():
                yield _from_json(line, column, f"{file_range.file.name}, at byte {position}")


def _from_json(line: bytes, column: str, where: str) -> Document:
    try:
        values = json.loads(line)
    except UnicodeDecodeError as error:
        return Document(b"", len(line), f"{where}: not UTF-8 ({error.reason})")
    except (ValueError, RecursionError) as error:
        return Document(b"", len(line), f"{where}: not JSON ({error})")
    text = values.get(column) if isinstance(values, dict) else None
    if isinstance(text, str):
        return _encoded(text, len(line), where)
    there = ", ".join(values) if isinstance(values, dict) else f"a {type(values).__name__}"
    return Document(b"", len(line), f"{where}: no text under {column!r} (there is: {there}): give --column")


def _from_parquet(file_range: FileRange, column: str) -> Iterator[Document]:
    file = _open_parquet(file_range.file)
    fields = {field.name: str(field.type) for field in file.schema_arrow}
    if fields.get(column) not in ("string", "large_string", "string_view"):
        there = ", ".join(f"{name} ({kind})" for name, kind in fields.items())
        raise ConfigError(f"{file_range.file.name}: no column of text {column!r} (there is: {there}): give --column")
    row = 0
    for batch in file.iter_batches(1024, row_groups=range(file_range.start, file_range.end), columns=[column]):
        for value in batch.column(0):
            where = f"{file_range.file.name}, row {row} of group {file_range.start}"
            row += 1
            text = value.as_py()
            yield Document(b"", 0, f"{where}: null") if text is None else _encoded(text, 0, where)
    yield Document(b"", file_range.size)


def _from_paragraphs(file_range: FileRange) -> Iterator[Document]:
    """Text between blank lines. A paragraph belongs to the range in which the blank line before it starts."""
    lines: list[bytes] = []
    began = 0
    ours = file_range.start == 0
    with _open(file_range.file) as file:
        for position, line in _lines_from(file, file_range.start):
            if line.strip():
                if ours:
                    began = began if lines else position
                    lines.append(line)
                continue
            if lines:
                yield _paragraph(lines, file_range, began)
                lines = []
            if position >= file_range.end:
                return
            ours = True
    if lines:
        yield _paragraph(lines, file_range, began)


def _paragraph(lines: list[bytes], file_range: FileRange, began: int) -> Document:
    content = b"".join(lines)
    return _checked(content.rstrip(b"\r\n") + b"\n\n", len(content), f"{file_range.file.name}, at byte {began}")


def _lines_from(file: IO[bytes], start: int) -> Iterator[tuple[int, bytes]]:
    """Every line that starts at byte `start` or after it, with its offset."""
    position = 0
    if start > 0:
        file.seek(start - 1)
        position = start - 1 + len(file.readline())
    for line in file:
        yield position, line
        position += len(line)


def _encoded(text: str, consumed: int, where: str) -> Document:
    try:
        return Document(text.encode(), consumed)
    except UnicodeEncodeError as error:
        return Document(b"", consumed, f"{where}: not Unicode text ({error.reason})")


def _checked(content: bytes, consumed: int, where: str) -> Document:
    try:
        content.decode()
    except UnicodeDecodeError as error:
        return Document(b"", consumed, f"{where}: not UTF-8 ({error.reason} at byte {error.start} of the document)")
    return Document(content, consumed)


def _open(file: InputFile) -> IO[bytes]:
    if file.path.endswith(".gz"):
        return cast(IO[bytes], gzip.open(file.path))
    if file.path.endswith(".zst"):
        pyarrow = _require("pyarrow", file)
        return io.BufferedReader(pyarrow.CompressedInputStream(file.path, "zstd"))
    return open(file.path, "rb")


def _open_parquet(file: InputFile) -> Any:
    pyarrow = _require("pyarrow", file)
    parquet = importlib.import_module("pyarrow.parquet")
    try:
        return parquet.ParquetFile(file.path)
    except (OSError, pyarrow.ArrowException) as error:
        raise ConfigError(f"{file.name}: not a parquet file ({' '.join(str(error).split())})") from None


def _require(package: str, file: InputFile) -> Any:
    try:
        return importlib.import_module(package)
    except ImportError:
        raise ConfigError(f"{file.name}: reading it needs {package}: pip install 'muloco-sweeps[data]'") from None
