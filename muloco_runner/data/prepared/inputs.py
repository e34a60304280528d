"""Input files, the input chunks into which they are split, and the documents of each.

A chunk is a list of ranges of files in their order, about as many bytes as any other, so that the documents of all
chunks laid end to end are the same however large a chunk is.
"""

from __future__ import annotations

import json
import os
import sys
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import IO

from muloco_runner.config import ConfigError
from muloco_runner.data.prepared.column_readers import from_arrow, from_csv, from_parquet, row_groups
from muloco_runner.data.prepared.documents import (
    Document,
    FileRange,
    InputFile,
    document_of,
    document_of_text,
    open_input,
    said,
    without_bom,
)
from muloco_runner.data.prepared.file_kinds import HEAD_BYTES, kind_of_content, kind_of_name, why_no_text
from muloco_runner.data.prepared.named_datasets import KIND, dataset_ranges, from_dataset

_WHOLE = sys.maxsize


def find_files(paths: list[Path], kind: str | None) -> list[InputFile]:
    """Files at and below `paths`, hidden ones and what lies in hidden folders left out, in the order of the arguments
    and then of their names. Links are followed, to folders too.

    `kind` is one of `KINDS`, or None for what each file is by its name or, without one, its content. A file that cannot
    be read by it comes with its problem.
    """
    return [_input_file(name, path, kind) for name, path in named_files(paths)]


def named_files(paths: list[Path]) -> list[tuple[str, str]]:
    """Name and link's target of each file that `find_files` finds; only folders are read."""
    found = []
    for path in paths:
        if not path.exists():
            raise ConfigError(f"{path}: no such file or folder")
        if (path / "blobs").is_dir() and (path / "snapshots").is_dir():
            raise ConfigError(f"{path} is a cache of Hugging Face's: name one of its snapshots/REVISION")
        names = [Path(path.name)] if path.is_file() else sorted(_names_below(path, path, set()))
        if (path / "state.json").exists() and (path / "dataset_info.json").exists():
            # Written by the datasets library: what else is there describes the tables.
            names = [name for name in names if name.suffix == ".arrow"]
        base = path.parent if path.is_file() else path
        found += [(name.as_posix(), os.path.realpath(base / name)) for name in names if not name.name.startswith(".")]
    if not found:
        raise ConfigError(f"{', '.join(map(str, paths))}: no files there")
    return found


def _names_below(folder: Path, base: Path, above: set[str]) -> Iterator[Path]:
    """Names of files, relative to `base`; a folder that is linked below itself is entered once."""
    real = os.path.realpath(folder)
    if real in above:
        return
    with os.scandir(folder) as entries:
        for entry in entries:
            if entry.name.startswith("."):
                continue
            if entry.is_dir():
                yield from _names_below(folder / entry.name, base, above | {real})
            elif entry.is_file() or entry.is_symlink():
                yield (folder / entry.name).relative_to(base)


def _input_file(name: str, real: str, kind: str | None) -> InputFile:
    """`real` is a link's target, `name` the link's own: in caches the target's name says nothing."""
    if not os.path.exists(real):
        return InputFile(name, real, 0, kind or "text", f"{name}: a link to nothing ({real})")
    file = InputFile(name, real, os.stat(real).st_size, kind or kind_of_name(name) or "text")
    if file.kind != "text" or kind is not None:
        return file
    try:
        with open_input(file) as opened:
            head = opened.read(HEAD_BYTES)
    except (EOFError, zlib.error, OSError) as error:
        if getattr(error, "errno", None) is not None:
            raise
        return file  # named as damaged when it is read
    found = kind_of_content(name, head)
    problem = None if found else f"{name}: {why_no_text(name, head)}"
    return InputFile(name, real, file.size, found or "text", problem)


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
    whole = FileRange(file, 0, _WHOLE, file.size, file.problem)
    if file.problem is not None or file.size == 0:
        return [whole]
    if file.kind == KIND:
        return dataset_ranges(file)
    if file.kind in ("parquet", "arrow") and file.compression is not None:
        return [FileRange(file, 0, _WHOLE, file.size, f"{file.name}: compressed again as a file: decompress it first")]
    if file.kind == "parquet":
        return row_groups(file)
    if file.kind in ("arrow", "csv", "tsv") or (file.kind == "text" and by_file) or file.compression is not None:
        return [whole]
    starts = range(0, file.size, chunk_bytes)
    return [FileRange(file, s, min(s + chunk_bytes, file.size), min(chunk_bytes, file.size - s)) for s in starts]


def documents_of(file_range: FileRange, column: str, by_file: bool) -> Iterator[Document]:
    """Yields the documents that start in `file_range`, some of them empty. Unreadable ones come with their problem;
    what follows the damage in a compressed file counts as one. An empty file holds no document."""
    file = file_range.file
    if file_range.problem is not None:
        yield Document(b"", file_range.size, file_range.problem)
        return
    if file.size == 0:
        return
    try:
        if file.kind == "text":
            yield from _from_text(file_range, by_file)
        else:
            yield from _READERS[file.kind](file_range, column)
    except (EOFError, zlib.error, OSError) as error:
        # Decompressors raise OSError for damage too, but without an errno: with one it is the disk that fails.
        if getattr(error, "errno", None) is not None or file.compression is None:
            raise
        yield Document(b"", 0, f"{file.name}: damaged, or not compressed as its name says ({said(error)})")


def _from_jsonl(file_range: FileRange, column: str) -> Iterator[Document]:
    with open_input(file_range.file) as file:
        for position, line in _lines_from(file, file_range.start):
            if position >= file_range.end:
                return
            if line.strip():
                yield _from_json(line, column, f"{file_range.file.name}, at byte {position}")


def _from_json(line: bytes, column: str, where: str) -> Document:
    try:
        values = json.loads(line.decode())
    except UnicodeDecodeError as error:
        return Document(b"", len(line), f"{where}: not UTF-8 ({error.reason})")
    except (ValueError, RecursionError) as error:
        hint = _ARRAY if line.lstrip().startswith(b"[") else ""
        return Document(b"", len(line), f"{where}: not JSON, one object a line ({said(error)}){hint}")
    if isinstance(values, dict) and isinstance(text := values.get(column), str):
        return document_of_text(text, len(line), where)
    return Document(b"", len(line), f"{where}: {_why_no_text(values, column)}")


def _why_no_text(values: object, column: str) -> str:
    if isinstance(values, list):
        return f"a JSON array, not an object{_ARRAY}"
    if not isinstance(values, dict):
        return f"a JSON {type(values).__name__}, not an object with {column!r}"
    if column not in values:
        return f"no text under {column!r} (there is: {_some(values)}): give --column"
    value = values[column]
    return f"{column!r} is null" if value is None else f"{column!r} is no text but a JSON {type(value).__name__}"


_ARRAY = "; of an array make one object a line, with jq -c '.[]'"


def _some(values: dict[str, object]) -> str:
    names = [name if len(name) <= 40 else f"{name[:40]}..." for name in list(values)[:20]]
    return " ".join(", ".join(names).split()) or "nothing"


def _from_text(file_range: FileRange, by_file: bool) -> Iterator[Document]:
    if not by_file:
        yield from _from_paragraphs(file_range)
        return
    with open_input(file_range.file) as file:
        yield document_of(file.read(), file_range.size, file_range.file.name)


def _from_paragraphs(file_range: FileRange) -> Iterator[Document]:
    """Text between blank lines. A paragraph belongs to the range in which the blank line before it starts."""
    lines: list[bytes] = []
    began = 0
    ours = file_range.start == 0
    with open_input(file_range.file) as file:
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
    return document_of(content.rstrip(b"\r\n") + b"\n\n", len(content), f"{file_range.file.name}, at byte {began}")


def _lines_from(file: IO[bytes], start: int) -> Iterator[tuple[int, bytes]]:
    """Every line that starts at byte `start` or after it, with its offset; the first of a file without a BOM."""
    position = 0
    if start > 0:
        file.seek(start - 1)
        position = start - 1 + len(file.readline())
    for line in file:
        yield position, line if position else without_bom(line)
        position += len(line)


_READERS: dict[str, Callable[[FileRange, str], Iterator[Document]]] = {
    "jsonl": _from_jsonl,
    "parquet": from_parquet,
    "arrow": from_arrow,
    "csv": from_csv,
    "tsv": from_csv,
    KIND: from_dataset,
}
