"""Checkpoints that survive a crash at any instruction.

    checkpoint/step-00000120/{manifest.json, shared.pt, worker-0.pt, worker-1.pt, ...}

Written under a temporary name, synced, then renamed: a folder with its final name is whole. The manifest holds each
file's SHA-256, so that a damaged checkpoint is recognised and the one before it is used. One file a worker: a run may
resume with its workers placed on other ranks.
"""

from __future__ import annotations

import hashlib
import io
import json
import os
import shutil
from pathlib import Path
from typing import Any

import torch

from muloco_runner.topology import Communicator

KEPT = 2
_PREFIX = "step-"


class CheckpointStore:
    """The checkpoints of one run, newest last."""

    def __init__(self, folder: Path, communicator: Communicator) -> None:
        self.folder, self.communicator = folder, communicator

    def save(self, step: int, shared: dict[str, Any], workers: dict[int, dict[str, Any]]) -> None:
        """Every rank gives the workers it leads; the main rank adds what all share and makes the whole visible."""
        temporary = self.folder / f".{_PREFIX}{step:08d}"
        is_main = self.communicator.topology.is_main
        if is_main:
            shutil.rmtree(temporary, ignore_errors=True)
            temporary.mkdir(parents=True)
        self.communicator.barrier()
        for index, state in workers.items():
            _write(temporary / f"worker-{index}.pt", state)
        self.communicator.barrier()
        if is_main:
            _write(temporary / "shared.pt", shared)
            hashes = {file.name: _sha256(file.read_bytes()) for file in sorted(temporary.glob("*.pt"))}
            _write_bytes(temporary / "manifest.json", json.dumps(hashes).encode())
            final = self.folder / f"{_PREFIX}{step:08d}"
            if final.exists():
                # Only a damaged one can stand here: a whole one would have been resumed from.
                shutil.rmtree(final)
            os.rename(temporary, final)
            _sync_folder(self.folder)
            for old in self._folders()[:-KEPT]:
                shutil.rmtree(old, ignore_errors=True)
        self.communicator.barrier()

    def load(self, workers: range) -> tuple[int, dict[str, Any], dict[int, dict[str, Any]]] | None:
        """Step, shared state and the given workers' states of the newest whole checkpoint, or None."""
        for folder in reversed(self._folders()):
            names = ["shared.pt", *(f"worker-{index}.pt" for index in workers)]
            contents = _read_whole(folder, names)
            if contents is not None:
                shared, *states = (torch.load(io.BytesIO(c), map_location="cpu", weights_only=True) for c in contents)
                return int(folder.name.removeprefix(_PREFIX)), shared, dict(zip(workers, states, strict=True))
        return None

    def _folders(self) -> list[Path]:
        return sorted(self.folder.glob(f"{_PREFIX}*"))


def _read_whole(folder: Path, names: list[str]) -> list[bytes] | None:
    """Contents of the named files, or None where any file of the checkpoint is missing or damaged."""
    try:
        hashes = json.loads((folder / "manifest.json").read_bytes())
        contents = {name: (folder / name).read_bytes() for name in hashes}
    except (OSError, ValueError):
        return None
    if not set(names) <= set(hashes) or any(_sha256(contents[name]) != hashes[name] for name in hashes):
        return None
    return [contents[name] for name in names]


def _write(path: Path, state: dict[str, Any]) -> None:
    buffer = io.BytesIO()
    torch.save(state, buffer)
    _write_bytes(path, buffer.getvalue())


def _write_bytes(path: Path, content: bytes) -> None:
    with open(path, "wb") as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())


def _sha256(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


def _sync_folder(folder: Path) -> None:
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
