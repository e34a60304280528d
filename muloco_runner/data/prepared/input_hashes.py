"""Hashes of input files, by which a prepared folder knows the content it was made of, whatever the files are called.

A file whose size, times and inode are as they were is not read again. Standard library only.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from muloco_runner.data.prepared.documents import InputFile
from muloco_runner.record import write_atomically

FILE_NAME = "inputs.json"
_THREADS = 4
"""Hashing releases the interpreter."""

Hashes = list[dict[str, Any]]
"""For each input in order its name, path, stamp and sha256."""


def stamp_of(path: str) -> list[int]:
    """Size, times of the last change (content; content or status) and inode: another content has another stamp."""
    found = os.stat(path)
    return [found.st_size, found.st_mtime_ns, found.st_ctime_ns, found.st_ino]


def hash_files(files: Iterable[InputFile], known: Iterable[Mapping[str, Any]] = ()) -> Hashes:
    """The hashes of `files`; those in `known` with the same path and stamp are taken from there."""
    before = {(entry["path"], *entry["stamp"]): entry["sha256"] for entry in known}

    def hashed(file: InputFile) -> dict[str, Any]:
        if file.digest is not None or not os.path.exists(file.path):
            return {"name": file.name, "path": file.path, "stamp": [], "sha256": file.digest}
        stamp = stamp_of(file.path)
        sha256 = before.get((file.path, *stamp)) or _sha256(file.path)
        return {"name": file.name, "path": file.path, "stamp": stamp, "sha256": sha256}

    with ThreadPoolExecutor(_THREADS) as pool:
        return list(pool.map(hashed, files))


def contents(hashes: Hashes) -> list[str | None]:
    """What was read, whatever it was called and wherever it lay."""
    return [entry["sha256"] for entry in hashes]


def changed_since(hashes: Hashes) -> str | None:
    """Name of the first file that is no longer as it was when it was hashed."""
    for entry in hashes:
        if entry["stamp"] and (not os.path.exists(entry["path"]) or stamp_of(entry["path"]) != entry["stamp"]):
            return str(entry["name"])
    return None


def write_hashes(folder: Path, hashes: Hashes) -> None:
    """Writes the hashes beside a manifest."""
    write_atomically(folder / FILE_NAME, json.dumps(hashes, indent=1) + "\n")


def read_hashes(folder: Path) -> Hashes | None:
    """The hashes of a prepared folder's inputs; None for one that was prepared before they were written."""
    try:
        hashes: Hashes = json.loads((folder / FILE_NAME).read_text())
    except (OSError, ValueError):
        return None
    return hashes


def _sha256(path: str) -> str:
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
