"""What is read of inputs: files, ranges of them, and documents; and how a file is opened, compressed or not."""

from __future__ import annotations

import gzip
import importlib
import io
import os
from dataclasses import dataclass
from typing import IO, Any, cast

from muloco_runner.config import ConfigError
from muloco_runner.data.prepared.file_kinds import Compression, compression_of

_BOM = b"\xef\xbb\xbf"


@dataclass(frozen=True)
class InputFile:
    name: str
    """Path below the one that was given, as it is spelled there: links keep their names."""
    path: str
    size: int
    """Bytes."""
    kind: str
    """One of `KINDS`."""
    problem: str | None = None
    """Why it cannot be read at all, as far as its name and first bytes tell."""
    digest: str | None = None
    """What says that its content is the same, where that is known without reading it."""

    @property
    def compression(self) -> Compression | None:
        if not os.path.isfile(self.path):
            return None
        with open(self.path, "rb") as file:
            return compression_of(self.name, file.read(4))


@dataclass(frozen=True)
class FileRange:
    """A part of a file: bytes for text and jsonl (what starts in it belongs to it), row groups for parquet, else all of
    it."""

    file: InputFile
    start: int
    end: int
    size: int
    """Bytes, for progress; an estimate for row groups."""
    problem: str | None = None
    """Why there is nothing to read in it."""


@dataclass(frozen=True)
class Document:
    """One document, or why it is none."""

    content: bytes
    """UTF-8, without a byte order mark; empty where there is no text."""
    consumed: int
    """Bytes of the input read since the document before."""
    problem: str | None = None


def document_of(content: bytes, consumed: int, where: str) -> Document:
    """The document that `content` should be; bytes that are not UTF-8 are its problem."""
    try:
        content.decode()
    except UnicodeDecodeError as error:
        return Document(b"", consumed, f"{where}: not UTF-8 ({error.reason} at byte {error.start} of the document)")
    return Document(content.removeprefix(_BOM), consumed)


def document_of_text(text: str, consumed: int, where: str) -> Document:
    """The document that a string should be; half a surrogate pair is its problem."""
    try:
        return document_of(text.encode(), consumed, where)
    except UnicodeEncodeError as error:
        return Document(b"", consumed, f"{where}: not Unicode text ({error.reason})")


def without_bom(line: bytes) -> bytes:
    """The first line of a file without the mark that some editors begin a file with."""
    return line.removeprefix(_BOM)


def open_input(file: InputFile) -> IO[bytes]:
    """The file's bytes, decompressed."""
    match file.compression:
        case "gzip":
            return cast(IO[bytes], gzip.open(file.path))
        case "zstd":
            pyarrow = require_package("pyarrow", file.name)
            return io.BufferedReader(pyarrow.CompressedInputStream(file.path, "zstd"))
        case None:
            return open(file.path, "rb")


def require_package(package: str, name: str) -> Any:
    """The package, or a `ConfigError` that says what reads the file `name`."""
    try:
        return importlib.import_module(package)
    except ImportError:
        raise ConfigError(f"{name}: reading it needs {package}: pip install 'muloco-sweeps[data]'") from None


def said(error: BaseException) -> str:
    """A library's message on one line."""
    return " ".join(str(error).split()) or type(error).__name__
