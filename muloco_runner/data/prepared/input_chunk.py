"""One input chunk becomes one pair of training files and its share of the held-out documents.

Every file gets its own name only when it is complete, and the chunk's summary comes last: a chunk without a summary is
prepared again.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

import numpy as np
from numpy.typing import NDArray

from muloco_runner.config import ConfigError
from muloco_runner.data.prepared.documents import FileRange
from muloco_runner.data.prepared.inputs import documents_of
from muloco_runner.data.prepared.tokenizer import open_tokenizer
from muloco_runner.record import write_atomically

_BATCH_BYTES = 2_000_000
_SALT = b"validation"
_MOST_NAMED = 10
"""Documents of a chunk that are named when they are left out."""


@dataclass(frozen=True)
class PrepareOptions:
    """Settings that decide a prepared folder's content, beside its inputs."""

    tokenizer: str = "bytes"
    end_of_document: str | None = None
    column: str = "text"
    validation_fraction: float = 0.01
    bad_documents: str = "fail"
    """fail at the first, or skip them and count."""
    by_file: bool = True
    """Whether a text file is one document, or one a paragraph."""
    chunk_bytes: int = 256 * 2**20
    special_tokens: str = "text"
    """What a special token's name is that is spelled in a document: text like any other, or the token."""


def chunk_name(number: int) -> str:
    return f"{number:05d}"


def summary_file(folder: Path, number: int) -> Path:
    return folder / "parts" / f"{chunk_name(number)}.json"


def prepare_chunk(
    folder: Path, number: int, ranges: list[FileRange], options: PrepareOptions, advance: Callable[[int], None]
) -> dict[str, Any]:
    """Writes the chunk's files and returns its summary; `advance` is called with bytes read, and may raise to stop."""
    tokenizer = open_tokenizer(options.tokenizer, options.end_of_document, options.special_tokens)
    dtype = token_dtype(tokenizer.vocab_size)
    part = folder / "parts" / chunk_name(number)
    summary: dict[str, Any] = {"num_skipped": 0}
    order: list[bytes] = []
    with (
        TokenWriter(folder / f"train-{chunk_name(number)}", dtype) as train,
        TokenWriter(part.with_suffix(".validation"), dtype) as validation,
    ):
        for batch in _batches(ranges, options, summary, advance):
            for content, tokens in zip(batch, tokenizer.encode(batch), strict=True):
                if not len(tokens):
                    continue  # the tokenizer knows nothing of it, such as a lone space
                # By content: copies of a document fall on the same side.
                digest = hashlib.blake2b(content, digest_size=8, key=_SALT).digest()
                held_out = int.from_bytes(digest, "big") < options.validation_fraction * 2**64
                (validation if held_out else train).add(tokens, len(content))
                if held_out:
                    order.append(digest)
        summary["train"], summary["validation"] = train.close(), validation.close()
    summary["order"] = np.frombuffer(b"".join(order), dtype=">u8").tolist()
    write_atomically(summary_file(folder, number), json.dumps(summary))
    return summary


def _batches(
    ranges: list[FileRange], options: PrepareOptions, summary: dict[str, Any], advance: Callable[[int], None]
) -> Iterator[list[bytes]]:
    """Documents with content, some megabytes at a time."""
    batch: list[bytes] = []
    size = consumed = 0
    for file_range in ranges:
        for document in documents_of(file_range, options.column, options.by_file):
            consumed += document.consumed
            if document.problem is not None:
                refuse(document.problem, options)
                summary["num_skipped"] += 1
                _say_left_out(document.problem, summary["num_skipped"])
            elif document.content:
                batch.append(document.content)
                size += len(document.content)
            if size >= _BATCH_BYTES:
                advance(consumed)
                yield batch
                batch, size, consumed = [], 0, 0
    advance(consumed)
    if batch:
        yield batch


def refuse(problem: str, options: PrepareOptions) -> None:
    """Raises `ConfigError` for input that cannot be read, unless such input is to be skipped."""
    if options.bad_documents == "fail":
        raise ConfigError(f"{problem}: fix it, or leave such documents out with --bad-documents skip")


def _say_left_out(problem: str, number: int) -> None:
    """One line of stderr for each of a chunk's first problems, whose number counts from 1."""
    if number <= _MOST_NAMED:
        print(f"left out: {problem}", file=sys.stderr, flush=True)
    elif number == _MOST_NAMED + 1:
        print("left out: more of the same chunk, only counted", file=sys.stderr, flush=True)


def token_dtype(vocab_size: int) -> np.dtype[Any]:
    """The smallest type that holds every token number."""
    return np.dtype("<u1" if vocab_size <= 2**8 else "<u2" if vocab_size <= 2**16 else "<u4")


class TokenWriter:
    """Writes NAME.tokens and NAME.documents; nothing has those names before `close`."""

    def __init__(self, path: Path, dtype: np.dtype[Any]) -> None:
        self._path, self._dtype = path, dtype
        self._files: dict[str, IO[bytes]] = {}
        self._hashes = {suffix: hashlib.sha256() for suffix in ("tokens", "documents")}
        self._num_tokens = self._num_documents = self._num_bytes = 0

    def __enter__(self) -> TokenWriter:
        self._path.parent.mkdir(parents=True, exist_ok=True)
        for suffix in self._hashes:
            self._files[suffix] = open(self._partial(suffix), "wb")
        return self

    def __exit__(self, *error: object) -> None:
        for suffix, file in self._files.items():
            file.close()
            with contextlib.suppress(FileNotFoundError):
                self._partial(suffix).unlink()

    def add(self, tokens: NDArray[np.integer[Any]], num_bytes: int) -> None:
        self._write("documents", np.array([self._num_tokens], dtype="<i8").tobytes())
        self._write("tokens", tokens.astype(self._dtype, copy=False).tobytes())
        self._num_tokens += len(tokens)
        self._num_documents += 1
        self._num_bytes += num_bytes

    def close(self) -> dict[str, Any]:
        """Gives the files their names; returns what the manifest says of them."""
        for suffix, file in self._files.items():
            file.flush()
            os.fsync(file.fileno())
            file.close()
            os.replace(self._partial(suffix), self._path.parent / f"{self._path.name}.{suffix}")
        return {
            "name": self._path.name,
            "num_tokens": self._num_tokens,
            "num_documents": self._num_documents,
            "num_bytes": self._num_bytes,
            "tokens_sha256": self._hashes["tokens"].hexdigest(),
            "documents_sha256": self._hashes["documents"].hexdigest(),
        }

    def _write(self, suffix: str, content: bytes) -> None:
        self._hashes[suffix].update(content)
        self._files[suffix].write(content)

    def _partial(self, suffix: str) -> Path:
        # With the process's number: one left over from a killed preparation may still be writing its own.
        return self._path.parent / f".{self._path.name}.{suffix}.{os.getpid()}.partial"
