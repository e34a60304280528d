"""Data sets by name, through the datasets library: `hf://datasets/NAME`, streamed, at one resolved revision.

A mirror is a folder that holds data sets under their names: copies of their repositories, or what the library's
`save_to_disk` wrote. Nothing else here needs a network.
"""

from __future__ import annotations

import contextlib
import hashlib
import importlib
import json
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from muloco_runner.config import ConfigError
from muloco_runner.data.prepared.documents import (
    Document,
    FileRange,
    InputFile,
    document_of_text,
    require_package,
    said,
)
from muloco_runner.data.prepared.input_hashes import contents, hash_files

PREFIX = "hf://datasets/"
KIND = "dataset"


@dataclass(frozen=True)
class NamedDataset:
    """Which documents of which state of a data set."""

    name: str
    split: str
    columns: tuple[str, ...]
    """Their texts make a document, a blank line between them."""
    config: str | None = None
    revision: str | None = None
    """A branch, tag or commit as given; resolved, a commit, or a hash of a mirror's files."""
    mirror: str | None = None
    """The folder that holds the data set, where it is read from a mirror."""


def find_dataset(wanted: NamedDataset) -> InputFile:
    """The data set as an input, at its resolved revision. One that is not there raises `ConfigError`."""
    require_package("datasets", f"{PREFIX}{wanted.name}")
    with _explained(wanted):
        resolved = NamedDataset(**{**asdict(wanted), "columns": wanted.columns, "revision": _resolve(wanted)})
        stream = _open(resolved)
        missing = [column for column in wanted.columns if stream.column_names and column not in stream.column_names]
        if missing:
            there = ", ".join(stream.column_names)
            raise ConfigError(
                f"{PREFIX}{wanted.name}: no column {', '.join(missing)} (there is: {there}): give --columns"
            )
    # Where a mirror lies is no part of what the data is.
    identity = json.dumps({**asdict(resolved), "mirror": None}, sort_keys=True)
    return InputFile(
        name="/".join(filter(None, (wanted.name, wanted.config, wanted.split))),
        path=json.dumps(asdict(resolved)),
        size=max(1, stream.info.size_in_bytes or stream.info.dataset_size or 1),
        kind=KIND,
        digest=hashlib.sha256(identity.encode()).hexdigest(),
    )


def described(file: InputFile) -> dict[str, Any]:
    """What a manifest says of a data set beside its name."""
    values = json.loads(file.path)
    return {name: values[name] for name in ("config", "split", "columns", "revision")}


def dataset_ranges(file: InputFile) -> list[FileRange]:
    """One range for each of the data set's own files."""
    wanted = _of(file)
    with _explained(wanted):
        count = max(1, _open(wanted).num_shards)
    return [FileRange(file, number, number + 1, file.size // count) for number in range(count)]


def from_dataset(file_range: FileRange, column: str) -> Iterator[Document]:
    """Documents of the range's files."""
    wanted = _of(file_range.file)
    with _explained(wanted):
        stream = _open(wanted)
        count = max(1, stream.num_shards)
        part = stream if count == 1 else stream.shard(num_shards=count, index=file_range.start)
        rows = iter(part)
    number = 0
    while True:
        with _explained(wanted):
            row = next(rows, None)
        if row is None:
            break
        where = f"{file_range.file.name}, row {number} of part {file_range.start}"
        number += 1
        yield _document(row, wanted.columns, where)
    yield Document(b"", file_range.size)


def _document(row: dict[str, Any], columns: tuple[str, ...], where: str) -> Document:
    texts = [row.get(column) for column in columns]
    for column, text in zip(columns, texts, strict=True):
        if not isinstance(text, str):
            what = "null" if text is None else f"no text but a {type(text).__name__}"
            return Document(b"", 0, f"{where}: {column!r} is {what}")
    return document_of_text("\n\n".join(str(text) for text in texts), 0, where)


def _of(file: InputFile) -> NamedDataset:
    values = json.loads(file.path)
    return NamedDataset(**{**values, "columns": tuple(values["columns"])})


def _resolve(wanted: NamedDataset) -> str:
    if wanted.mirror is not None:
        folder = Path(wanted.mirror)
        files = [
            InputFile(path.relative_to(folder).as_posix(), str(path.resolve()), 0, KIND)
            for path in sorted(folder.rglob("*"))
            if path.is_file() and not any(part.startswith(".") for part in path.relative_to(folder).parts)
        ]
        listed = json.dumps([[file.name for file in files], contents(hash_files(files))])
        return f"files-{hashlib.sha256(listed.encode()).hexdigest()[:16]}"
    hub = importlib.import_module("huggingface_hub")
    return str(hub.HfApi().dataset_info(wanted.name, revision=wanted.revision).sha)


def _open(wanted: NamedDataset) -> Any:
    """The library's stream of one split."""
    datasets = importlib.import_module("datasets")
    if wanted.mirror is not None and (Path(wanted.mirror) / "dataset_dict.json").exists():
        return _streamed(datasets.load_from_disk(str(Path(wanted.mirror) / wanted.split)))
    if wanted.mirror is not None and (Path(wanted.mirror) / "state.json").exists():
        return _streamed(datasets.load_from_disk(wanted.mirror))
    revision = None if wanted.mirror else wanted.revision
    return datasets.load_dataset(
        wanted.mirror or wanted.name, wanted.config, split=wanted.split, streaming=True, revision=revision
    )


def _streamed(dataset: Any) -> Any:
    return dataset.to_iterable_dataset(num_shards=max(1, len(dataset.cache_files)))


@contextlib.contextmanager
def _explained(wanted: NamedDataset) -> Iterator[None]:
    """Turns what the library raises into one line: it has many classes of errors, and all are meant."""
    try:
        yield
    except ConfigError:
        raise
    except Exception as error:
        raise ConfigError(f"{PREFIX}{wanted.name}: {said(error)}") from None
