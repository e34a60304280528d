"""A corpus: the tokens of many documents, split into training and validation by document, and its content hash.

Three sources need no preparation and lie in memory, as bytes: `python_source` (the interpreter's own standard library),
`python_packages` (pinned packages) and `text` (files as `muloco-data prepare` reads them). `prepared` is what
`muloco-data prepare` wrote, read from disk as needed.
Standard library and numpy only.
"""

from __future__ import annotations

import contextlib
import functools
import hashlib
import json
import sys
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from muloco_runner.config import ConfigError, DataConfig, TargetDataConfig
from muloco_runner.config.outside import import_module_of
from muloco_runner.data.check import check_data_path
from muloco_runner.data.mixed_split import MixedSplit
from muloco_runner.data.mixture import Part, content_hash, read_parts
from muloco_runner.data.own_documents import own_documents
from muloco_runner.data.prepared.documents import FileRange
from muloco_runner.data.prepared.inputs import documents_of, find_files, plan_chunks
from muloco_runner.data.prepared.read import PreparedSplit
from muloco_runner.data.python_packages import read_documents
from muloco_runner.data.python_source import library_files
from muloco_runner.data.stamp import Stamp, stamp_of_data

BYTE_VOCABULARY = 256
_OF_CONTENT = ("_target_", "arguments", "version", "validation_fraction")
"""Settings of own data that decide what it holds."""
_SHUFFLE_SALT = b"validation"
_COLUMN = "text"
"""Key or column of the text in files that hold rows."""


class Split(Protocol):
    """Documents laid end to end. Axes: B sequences, T time."""

    @property
    def num_tokens(self) -> int: ...

    def read(self, start: int, count: int) -> NDArray[np.integer]:
        """Tokens start .. start+count, shape (count,)."""

    def gather(self, starts: NDArray[np.int64], length: int) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """Tokens of the sequences that begin at `starts`, and the one after each, shape (B, T+1); the number of the
        document of each token, shape (B, T)."""

    def will_need(self, starts: NDArray[np.int64], length: int) -> None:
        """Sequences that will be gathered soon: they may be fetched meanwhile."""


@dataclass(frozen=True)
class LoadedSplit:
    """A split in memory."""

    tokens: NDArray[np.integer]
    """Shape (tokens,)."""
    document_starts: NDArray[np.int64]
    """Offset of each document's first token, ascending, shape (documents,)."""

    @property
    def num_tokens(self) -> int:
        return len(self.tokens)

    def read(self, start: int, count: int) -> NDArray[np.integer]:
        return self.tokens[start : start + count]

    def gather(self, starts: NDArray[np.int64], length: int) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        offsets = starts[:, None] + np.arange(length + 1, dtype=np.int64)
        documents = np.searchsorted(self.document_starts, offsets[:, :-1], side="right")
        return self.tokens[offsets].astype(np.int64), documents

    def will_need(self, starts: NDArray[np.int64], length: int) -> None:
        pass  # everything is in memory


@dataclass(frozen=True)
class Corpus:
    train: Split
    validation: Split
    vocab_size: int
    content_hash: str
    """SHA-256 over both splits, 16 hex digits."""
    bytes_per_token: float = 1.0
    """Mean bytes of text in a token of the validation split."""


@functools.cache
def _load(
    source: str, path: str | None, validation_fraction: float, stamp: Stamp = (), as_before: bool = False
) -> Corpus:
    """`stamp` says which state of the files is meant, since they may change while a process lives."""
    documents: Iterable[tuple[str, bytes]]
    match source:
        case "text":
            documents = (_text_files_before if as_before else _text_files)(Path(str(path)))
        case "python_packages":
            documents = read_documents()
        case _:
            documents = _read(library_files())
    return _split(documents, validation_fraction, path or source)


@functools.cache
def _own(data: str, module: ModuleType) -> Corpus:
    """`data`: the config of a function of the user's, as JSON; `module` holds it, another one after its code has
    changed."""
    return read_own_corpus(TargetDataConfig(**json.loads(data)))


def read_own_corpus(data: TargetDataConfig) -> Corpus:
    """Calls the user's function. What it yields that is no documents raises `ConfigError`."""
    return _split(own_documents(data), data.validation_fraction, data._target_)


def _split(documents: Iterable[tuple[str, bytes]], validation_fraction: float, where: str) -> Corpus:
    """Documents, by name, as a corpus. `where` they are from is said where there are too few."""
    train: list[bytes] = []
    held_out: list[tuple[bytes, bytes]] = []
    for name, content in documents:
        digest = _place_of(name)
        if int.from_bytes(digest[:8], "big") < validation_fraction * 2**64:
            held_out.append((digest, content))
        else:
            train.append(content)
    # Hash order, so that the first tokens of the validation split are a mixture and not one folder.
    validation = [content for _, content in sorted(held_out)]
    for name, split in (("training", train), ("validation", validation)):
        if not split:
            raise ConfigError(
                f"data: {where} leaves no document for {name}: give more files or change data.validation_fraction"
            )
    splits = [_lay_out(train), _lay_out(validation)]
    return Corpus(splits[0], splits[1], BYTE_VOCABULARY, hash_of_splits(splits))


def hash_of_splits(splits: Iterable[LoadedSplit]) -> str:
    """SHA-256 over tokens and documents of splits in memory, 16 hex digits."""
    content_hash = hashlib.sha256()
    for one in splits:
        content_hash.update(one.tokens.tobytes())
        content_hash.update(one.document_starts.tobytes())
    return content_hash.hexdigest()[:16]


def load_whole_text(path: str) -> LoadedSplit:
    """All documents of a file or folder of text as bytes, in the order of a validation split; read once in a process.
    What cannot be read raises `ConfigError`."""
    return _whole_text(path, stamp_of_data(DataConfig("text", path)))


@functools.cache
def _whole_text(path: str, stamp: Stamp) -> LoadedSplit:
    found = sorted((_place_of(name), content) for name, content in _text_files(Path(path)))
    return _lay_out([content for _, content in found])


def _place_of(name: str) -> bytes:
    """By which a document is held out, and where it then stands."""
    return hashlib.sha256(_SHUFFLE_SALT + name.encode()).digest()


def load_corpus(data: DataConfig, by_path: bool = False) -> Corpus:
    """Reads the corpus, once in a process. Mistakes in the path raise `ConfigError`.

    `by_path`: for a run that its path names, since an earlier version named it. Its text is read as it was then, where
    that gives a corpus at all, so that all runs of a sweep that is under way see the same.
    """
    if data.source == "prepared":
        return _prepared(read_parts(data))
    if isinstance(data, TargetDataConfig):
        values = json.dumps({name: getattr(data, name) for name in _OF_CONTENT}, sort_keys=True)
        return _own(values, import_module_of(f"data._target_={data._target_}", data._target_))
    if by_path and data.source == "text" and data.content_hash is None:
        with contextlib.suppress(ConfigError):
            return load_corpus_as_before(data)
    return _load(data.source, data.path, data.validation_fraction, stamp_of_data(data))


def load_corpus_as_before(data: DataConfig) -> Corpus:
    """Text as it was read before runs were named by their data's content: every file that is not hidden, as it is."""
    return _load(data.source, data.path, data.validation_fraction, stamp_of_data(data), as_before=True)


def _prepared(parts: Sequence[Part]) -> Corpus:
    manifests = [part.manifest for part in parts]
    train, validation = (
        [PreparedSplit(part.folder, getattr(part.manifest, split), part.manifest.dtype) for part in parts]
        for split in ("train", "validation")
    )
    shares = [part.share for part in parts]
    bytes_per_token = [manifest.validation.num_bytes / manifest.validation.num_tokens for manifest in manifests]
    return Corpus(
        MixedSplit(train, shares) if len(parts) > 1 else train[0],
        MixedSplit(validation, shares) if len(parts) > 1 else validation[0],
        max(manifest.vocab_size for manifest in manifests),
        content_hash(parts),
        sum(share * each for share, each in zip(shares, bytes_per_token, strict=True)),
    )


def _lay_out(contents: list[bytes]) -> LoadedSplit:
    lengths = np.array([len(content) for content in contents], dtype=np.int64)
    starts = np.concatenate(([0], np.cumsum(lengths)[:-1])).astype(np.int64)
    return LoadedSplit(np.frombuffer(b"".join(contents), dtype=np.uint8), starts)


def _text_files(path: Path) -> list[tuple[str, bytes]]:
    """Documents as `muloco-data prepare` reads them, by name; one file of text holds one a paragraph, so that it too
    can be split."""
    check_data_path(DataConfig(source="text", path=str(path)))
    files = sorted(find_files([path], None), key=lambda file: file.name)
    by_file = len(files) > 1
    found: list[tuple[str, bytes]] = []
    for file in files:
        documents = [
            document for part in plan_chunks([file], sys.maxsize, by_file) for document in _documents(part, by_file)
        ]
        if file.kind == "text" and by_file:
            found += [(file.name, content) for content in documents]
        else:
            prefix = f"{file.name}:" if by_file else ""
            found += [(f"{prefix}{number}", content) for number, content in enumerate(documents)]
    return [(name, content) for name, content in found if content]


def _documents(ranges: list[FileRange], by_file: bool) -> Iterable[bytes]:
    """Contents, empty ones too. What cannot be read raises `ConfigError`."""
    for file_range in ranges:
        for document in documents_of(file_range, _COLUMN, by_file):
            if document.problem is not None:
                raise ConfigError(
                    f"{document.problem}: fix it, or leave such documents out with "
                    "`muloco-data prepare --bad-documents skip` and train on data=prepared"
                )
            yield document.content


def _text_files_before(path: Path) -> Iterable[tuple[str, bytes]]:
    if path.is_file():
        paragraphs = path.read_bytes().split(b"\n\n")
        return [(str(number), text + b"\n\n") for number, text in enumerate(paragraphs) if text.strip()]
    files = (file for file in path.rglob("*") if file.is_file() and not file.name.startswith("."))
    return _read((file.relative_to(path).as_posix(), file) for file in files)


def _read(files: Iterable[tuple[str, Path]]) -> list[tuple[str, bytes]]:
    contents = ((name, file.read_bytes()) for name, file in sorted(files))
    return [(name, content) for name, content in contents if content]


_LARGEST_COUNTED_VOCABULARY = 1024
_MOST_COUNTED_TOKENS = 2**26
"""Tokens of the training text that are counted at most: frequencies of a byte vocabulary do not change after that."""


@functools.cache
def _baselines(
    source: str, path: str | None, validation_fraction: float, validation_tokens: int, stamp: Stamp
) -> dict[str, float]:
    return _counted(load_corpus(DataConfig(source, path, validation_fraction)), validation_tokens)


def _counted(corpus: Corpus, validation_tokens: int) -> dict[str, float]:
    size = corpus.vocab_size
    if size > _LARGEST_COUNTED_VOCABULARY:
        return {}
    train = corpus.train.read(0, min(corpus.train.num_tokens, _MOST_COUNTED_TOKENS)).astype(np.int64)
    held_out = corpus.validation.read(0, min(corpus.validation.num_tokens, validation_tokens + 1)).astype(np.int64)
    unigrams = np.bincount(train, minlength=size) + 1.0
    pairs = np.bincount(train[:-1] * size + train[1:], minlength=size * size).reshape(size, size) + 1.0
    targets = held_out[1:]
    unigram = -np.log(unigrams[targets] / unigrams.sum()).mean()
    bigram = -np.log(pairs[held_out[:-1], targets] / pairs.sum(axis=1)[held_out[:-1]]).mean()
    return {"unigram": float(unigram), "bigram": float(bigram)}


def baselines(data: DataConfig) -> dict[str, float]:
    """Validation loss, nats per token, of the unigram and the bigram model counted on the training text (add-one):
    what a model that learnt nothing but frequencies would reach. Empty for a vocabulary too large to count pairs of,
    and for a mixture, whose frequencies depend on its shares.
    """
    if data.mixture is not None:
        return {}
    if isinstance(data, TargetDataConfig):
        return _counted(load_corpus(data), data.validation_tokens)
    return _baselines(data.source, data.path, data.validation_fraction, data.validation_tokens, stamp_of_data(data))
