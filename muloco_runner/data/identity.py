"""A run is named by the content of its data, not by where that lies: what it is, without reading a corpus twice.

Prepared data says it in its manifest. Text is read once; its hash is kept under the names, sizes, times and inodes of
its files, in the user's cache folder. Torch-free.
"""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import json
import os
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path

from muloco_runner.config import ConfigError, DataConfig, RunConfig, TargetDataConfig
from muloco_runner.data.mixture import content_hash, read_parts, tokens_before_repeating
from muloco_runner.data.stamp import stamp_of_data
from muloco_runner.record import RecordError, RunFolder, write_atomically

_READING = 1
"""Version of the rules by which text is read: under others the same files are another content."""


def named_by_content(runs: Iterable[RunConfig], root: str | os.PathLike[str]) -> list[RunConfig]:
    """The runs with `data.content_hash` filled in where it is known.

    A run that `root` holds under the name of earlier versions, by its path and on the same data, keeps that name. Data
    that is not there stays without a hash; `check_data` refuses it.
    """
    content_of = _remembering(lambda data: contents.content_hash if (contents := contents_of(data)) else None)
    hash_of_sets = _remembering(_hash_of_sets)
    named = [_named(run, RunFolder.of(root, run.run_id), content_of) for run in runs]
    return [_with_sets_named(run, hash_of_sets) for run in named]


def _with_sets_named(run: RunConfig, hash_of_sets: Callable[[DataConfig], str | None]) -> RunConfig:
    if run.data.validation is None or run.data.validation_hash is not None:
        return run
    return dataclasses.replace(run, data=dataclasses.replace(run.data, validation_hash=hash_of_sets(run.data)))


def _hash_of_sets(data: DataConfig) -> str | None:
    if not all(os.path.exists(path) for path in data.validation.values()):
        return None
    from muloco_runner.data.validation_sets import hash_of_sets, load_validation_sets

    return hash_of_sets(load_validation_sets(data))


def _named(run: RunConfig, before: RunFolder, content_of: Callable[[DataConfig], str | None]) -> RunConfig:
    if run.data.source == "python_source" or run.data.content_hash is not None:
        return run
    begun = before.config_file.exists()
    try:
        found = content_of(run.data)
    except ConfigError:
        # Text that is refused today, such as pictures among it, was read once.
        if begun and _goes_on(before, run.data, None):
            return run
        raise
    if found is None or (begun and _goes_on(before, run.data, found)):
        return run
    return dataclasses.replace(run, data=dataclasses.replace(run.data, content_hash=found))


def _goes_on(folder: RunFolder, data: DataConfig, content: str | None) -> bool:
    """Whether the run of `folder` has not begun, or began on the `content` of `data`, also as it was read before."""
    try:
        header = folder.read_header()
    except RecordError:
        return True  # the run itself will report it
    if header is None or header.corpus_hash == content:
        return True
    from muloco_runner.data.corpus import load_corpus_as_before

    return data.source == "text" and load_corpus_as_before(data).content_hash == header.corpus_hash


@dataclass(frozen=True)
class Contents:
    """What data holds, as far as a plan needs to know."""

    content_hash: str
    train_tokens: int
    """Until text repeats."""
    validation_tokens: tuple[int, ...]
    """Held out, of each part."""
    shares: tuple[float, ...] = (1.0,)
    """Of the parts of a mixture."""


def contents_of(data: DataConfig) -> Contents | None:
    """The contents of the corpus that `data` names; None where they cannot be told, since there is no such data."""
    match data.source:
        case "prepared":
            return _contents_prepared(data)
        case "target":
            assert isinstance(data, TargetDataConfig)
            facts = data.facts
            return facts and Contents(facts["content_hash"], facts["train_tokens"], (facts["validation_tokens"],))
        case "text":
            return _contents_in_memory(data) if os.path.exists(str(data.path)) else None
        case "python_packages":
            try:
                return _contents_in_memory(data)
            except ConfigError:
                return None
        case _:
            return _contents_in_memory(data)


def _contents_prepared(data: DataConfig) -> Contents | None:
    try:
        parts = read_parts(data)
    except ConfigError:
        return None
    return Contents(
        content_hash(parts),
        tokens_before_repeating(parts),
        tuple(part.manifest.validation.num_tokens for part in parts),
        tuple(part.share for part in parts),
    )


def _contents_in_memory(data: DataConfig) -> Contents:
    key = json.dumps([_READING, data.source, float(data.validation_fraction), stamp_of_data(data)])
    file = _cache_folder() / f"{hashlib.sha256(key.encode()).hexdigest()[:32]}.json"
    with contextlib.suppress(OSError, ValueError, KeyError, TypeError):
        known = json.loads(file.read_text())
        return Contents(
            str(known["content_hash"]), int(known["train_tokens"]), tuple(map(int, known["validation_tokens"]))
        )
    from muloco_runner.data.corpus import load_corpus  # numpy's import, which a known text does without

    corpus = load_corpus(data)
    found = Contents(corpus.content_hash, corpus.train.num_tokens, (corpus.validation.num_tokens,))
    # A cache that cannot be written costs time alone.
    with contextlib.suppress(OSError):
        write_atomically(file, json.dumps({**dataclasses.asdict(found), "path": str(data.path)}) + "\n")
    return found


def _cache_folder() -> Path:
    return Path(os.environ.get("XDG_CACHE_HOME") or os.path.expanduser("~/.cache")) / "muloco-sweeps" / "text"


def _remembering(content_of: Callable[[DataConfig], str | None]) -> Callable[[DataConfig], str | None]:
    """`content_of`, asked once for each data: a sweep has thousands of runs on one."""
    known: dict[str, str | None] = {}

    def remembered(data: DataConfig) -> str | None:
        key = repr(data)
        if key not in known:
            known[key] = content_of(data)
        return known[key]

    return remembered
