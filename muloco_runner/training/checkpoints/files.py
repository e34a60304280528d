"""The files of one checkpoint: each state with its SHA-256, and the manifest that holds all of them."""

from __future__ import annotations

import hashlib
import json
import os
from pathlib import Path
from typing import Any, BinaryIO

import torch

FORMAT_VERSION = 1


def write_manifest(folder: Path, step: int, digests: dict[str, str]) -> None:
    """Writes and syncs it, and the folder with all its files."""
    with open(folder / "manifest.json", "w") as file:
        json.dump({"format_version": FORMAT_VERSION, "step": step, "sha256": digests}, file, indent=1)
        file.flush()
        os.fsync(file.fileno())
    sync_folder(folder)


def is_intact(folder: Path, names: list[str], to_verify: list[str]) -> bool:
    """Whether the named files are there, and those to be verified as the manifest says."""
    try:
        manifest = json.loads((folder / "manifest.json").read_bytes())
        if manifest["format_version"] != FORMAT_VERSION or not all((folder / name).exists() for name in names):
            return False
        for name in to_verify:
            with open(folder / name, "rb") as file:
                if hashlib.file_digest(file, "sha256").hexdigest() != manifest["sha256"][name]:
                    return False
    except (OSError, ValueError, KeyError, TypeError):
        return False
    return True


class _HashedFile:
    """A file for `torch.save` that also computes the digest of what is written."""

    def __init__(self, file: BinaryIO) -> None:
        self.file, self.digest = file, hashlib.sha256()
        self.error: OSError | None = None
        """The file system's error; torch's own only says that something was not written."""

    def write(self, content: bytes) -> int:
        self.digest.update(content)
        try:
            return self.file.write(content)
        except OSError as error:
            self.error = error
            raise

    def flush(self) -> None:
        self.file.flush()


def write_state(path: Path, state: dict[str, Any]) -> bytes:
    """Writes and syncs; returns the SHA-256 of what was meant to be written."""
    with open(path, "wb") as file:
        hashed = _HashedFile(file)
        try:
            torch.save(state, hashed)  # type: ignore[arg-type]  # it needs no more of a file
        except RuntimeError as error:
            raise hashed.error or error from None
        file.flush()
        os.fsync(file.fileno())
    return hashed.digest.digest()


def read_state(path: Path) -> dict[str, Any]:
    """Maps its tensors and reads none of them yet: whoever needs a part of one reads that part."""
    state: dict[str, Any] = torch.load(path, map_location="cpu", weights_only=True, mmap=True)
    return state


def sync_folder(folder: Path) -> None:
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
