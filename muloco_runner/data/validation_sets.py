"""Named validation sets: text beside the corpus's own held-out split, whose losses a run records under their names.

A prepared folder gives its held-out documents; for a run on bytes, a file or folder of text gives all of them.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from muloco_runner.config import ConfigError, DataConfig, RunConfig
from muloco_runner.data.corpus import Split, hash_of_splits, load_whole_text
from muloco_runner.data.mixture import read_parts
from muloco_runner.data.prepared.manifest import FILE_NAME, TokenizerManifest, read_manifest
from muloco_runner.data.prepared.read import PreparedSplit


@dataclass(frozen=True)
class ValidationSet:
    """Held-out text under a name of its own."""

    split: Split
    vocab_size: int
    """Largest token number plus one."""
    content_hash: str
    """16 hex digits."""
    bytes_per_token: float


def load_validation_sets(data: DataConfig) -> dict[str, ValidationSet]:
    """The sets of `data.validation` by their names, none without. What is not there, cannot be read, has other tokens
    than the training data or is part of it raises `ConfigError`."""
    if data.validation is None:
        return {}
    trained_on = _tokenizer_of(data)
    return {name: _load(name, Path(path), data, trained_on) for name, path in data.validation.items()}


def check_validation_sets(run: RunConfig) -> dict[str, ValidationSet]:
    """The run's named sets, each with at least one of its sequences; others raise `ConfigError`."""
    sets, data = load_validation_sets(run.data), run.data
    for name, found in sets.items():
        if found.vocab_size > run.model.vocab_size:
            raise ConfigError(
                f"model.vocab_size={run.model.vocab_size} is smaller than the {found.vocab_size} of data.validation: "
                f"{name}: raise it"
            )
        if found.split.num_tokens <= run.model.sequence_length:
            raise ConfigError(
                f"data.validation: {name}: {found.split.num_tokens} tokens in {data.validation[name]} hold no sequence "
                f"of model.sequence_length={run.model.sequence_length}: give more text, or leave the set out"
            )
    if data.validation_hash not in (None, now := hash_of_sets(sets)):
        raise ConfigError(
            f"data.validation: {', '.join(data.validation.values())} hold {now} now, this run is named by "
            f"{data.validation_hash}: put the first text back, or start the run with the other text as a new one"
        )
    return sets


def hash_of_sets(sets: Mapping[str, ValidationSet]) -> str:
    """Names and contents of sets, 16 hex digits."""
    listed = json.dumps(sorted([name, found.content_hash] for name, found in sets.items()))
    return hashlib.sha256(listed.encode()).hexdigest()[:16]


def _tokenizer_of(data: DataConfig) -> TokenizerManifest:
    return read_parts(data)[0].manifest.tokenizer if data.source == "prepared" else TokenizerManifest("bytes")


def _load(name: str, path: Path, data: DataConfig, trained_on: TokenizerManifest) -> ValidationSet:
    where = f"data.validation: {name}: {path}"
    if not path.exists():
        raise ConfigError(f"{where}: no such file or folder on this machine: correct it")
    if (path / FILE_NAME).is_file():
        manifest = read_manifest(path)
        if manifest.tokenizer != trained_on:
            raise ConfigError(
                f"{where} was prepared with another tokenizer ({manifest.tokenizer.kind}) than the training data "
                f"({trained_on.kind}): prepare it with the same one"
            )
        held_out = manifest.validation
        return ValidationSet(
            PreparedSplit(path, held_out, manifest.dtype),
            manifest.vocab_size,
            manifest.content_hash,
            held_out.num_bytes / max(1, held_out.num_tokens),
        )
    if trained_on.kind != "bytes":
        raise ConfigError(
            f"{where} holds no {FILE_NAME}, and the training data has a tokenizer: make it with `muloco-data prepare "
            f"{path} --tokenizer ... --validation-fraction 0.9`, with the same one, and name the folder that it writes"
        )
    if data.source == "text" and _overlap(path, Path(str(data.path))):
        raise ConfigError(
            f"{where} and data.path={data.path}, which is trained on, hold the same files: give text that lies apart "
            "from it; its own held-out documents are the main validation set"
        )
    split = load_whole_text(str(path))
    return ValidationSet(split, 256, hash_of_splits([split]), 1.0)


def _overlap(one: Path, other: Path) -> bool:
    one, other = one.resolve(), other.resolve()
    return one.is_relative_to(other) or other.is_relative_to(one)
