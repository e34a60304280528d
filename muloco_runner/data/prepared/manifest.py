"""The manifest of a prepared folder. Standard library only, so that a login node can read it."""

from __future__ import annotations

import dataclasses
import hashlib
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from muloco_runner.config import ConfigError

FORMAT_VERSION = 1
FILE_NAME = "manifest.json"
DTYPES = {"uint8": 1, "uint16": 2, "uint32": 4}
"""Bytes of a token by the name of its type."""


@dataclass
class TokenFiles:
    """One pair of files, NAME.tokens and NAME.documents."""

    name: str
    num_tokens: int
    num_documents: int
    tokens_sha256: str
    documents_sha256: str


@dataclass
class SplitManifest:
    num_tokens: int
    num_documents: int
    num_bytes: int
    """Bytes of text, before it was cut into tokens."""
    files: list[TokenFiles]
    """Called `shards` on disk."""


@dataclass
class TokenizerManifest:
    kind: str
    """bytes; huggingface or tiktoken: then tokenizer.json or tokenizer.model lies beside the manifest."""
    sha256: str | None = None
    end_of_document: str | None = None
    """Token appended to every document."""
    end_of_document_id: int | None = None


@dataclass
class Manifest:
    """All that a run and a reader need to know; the same inputs and options give the same manifest."""

    vocab_size: int
    """Largest token number plus one: what a model's vocabulary must hold."""
    dtype: str
    tokenizer: TokenizerManifest
    train: SplitManifest
    validation: SplitManifest
    options: dict[str, Any]
    """Settings that decided the content, beside the inputs."""
    inputs: list[dict[str, Any]]
    """Name and size of each file that was read."""
    num_skipped: int = 0
    """Documents left out because they could not be read."""
    content_hash: str = ""
    """First 16 hex digits of a SHA-256 over the type, the tokenizer and the hashes of all token files."""
    format_version: int = FORMAT_VERSION

    def hash_of_content(self) -> str:
        hashes = [[f.tokens_sha256, f.documents_sha256] for split in (self.train, self.validation) for f in split.files]
        content = [self.dtype, self.vocab_size, dataclasses.asdict(self.tokenizer), hashes]
        return hashlib.sha256(json.dumps(content).encode()).hexdigest()[:16]

    def to_json(self) -> str:
        values = dataclasses.asdict(self)
        for split in ("train", "validation"):
            values[split]["shards"] = values[split].pop("files")
        return json.dumps(values, indent=1) + "\n"


def read_manifest(folder: Path) -> Manifest:
    """The manifest of a prepared folder. Anything else raises `ConfigError`."""
    file = folder / FILE_NAME
    try:
        values = json.loads(file.read_text())
    except (FileNotFoundError, NotADirectoryError):
        raise ConfigError(
            f"data.path={str(folder)!r} holds no {FILE_NAME}: make it with `muloco-data prepare INPUT --out {folder}`"
        ) from None
    except (OSError, ValueError) as error:
        raise ConfigError(f"{file} cannot be read ({error}): prepare the data again") from None
    try:
        if values["format_version"] != FORMAT_VERSION:
            raise ConfigError(
                f"{file}: format version {values['format_version']}, this program reads {FORMAT_VERSION}: "
                "prepare the data again"
            )
        values["tokenizer"] = TokenizerManifest(**values["tokenizer"])
        for split in ("train", "validation"):
            values[split]["files"] = [TokenFiles(**files) for files in values[split].pop("shards")]
            values[split] = SplitManifest(**values[split])
        manifest = Manifest(**values)
        bytes_of_a_token = DTYPES[manifest.dtype]
    except (KeyError, TypeError) as error:
        raise ConfigError(
            f"{file} is not what `muloco-data prepare` writes ({error}): prepare the data again"
        ) from None
    if manifest.content_hash != manifest.hash_of_content():
        raise ConfigError(f"{file} was changed after it was written: prepare the data again")
    for files in (*manifest.train.files, *manifest.validation.files):
        for suffix, size in (("tokens", files.num_tokens * bytes_of_a_token), ("documents", files.num_documents * 8)):
            part = folder / f"{files.name}.{suffix}"
            found = part.stat().st_size if part.exists() else None
            if found != size:
                state = "is missing" if found is None else f"has {found} bytes instead of {size}"
                raise ConfigError(f"{part} {state}: prepare the data again")
    return manifest


def damaged_files(folder: Path, manifest: Manifest) -> list[str]:
    """Names of the files whose content is not what the manifest says; reads everything."""
    damaged = []
    for files in (*manifest.train.files, *manifest.validation.files):
        for suffix, expected in (("tokens", files.tokens_sha256), ("documents", files.documents_sha256)):
            with open(folder / f"{files.name}.{suffix}", "rb") as file:
                if hashlib.file_digest(file, "sha256").hexdigest() != expected:
                    damaged.append(f"{files.name}.{suffix}")
    return damaged
