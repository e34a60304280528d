"""Checkpoints that survive a crash at any instruction and hardly hold up a step.

    checkpoint/step-00000120/{manifest.json, shared.pt, worker-0.pt, worker-1.pt, ...}

Training goes on as soon as the state is copied to host memory; a thread on each rank then writes the workers it leads
under a temporary name and syncs them. When all ranks have written, the main rank adds the manifest, syncs and renames:
a folder with its final name is complete. The manifest holds each file's SHA-256, so that a damaged checkpoint is found
and the one before it is used. One file a worker, full tensors by name: a run may resume with its workers on other
ranks.

Ranks agree through collectives that the training loop makes anyway, in its own thread: the writers never communicate.
"""

from __future__ import annotations

import hashlib
import os
import shutil
import sys
import threading
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from muloco_runner.config import Keep
from muloco_runner.distributed.communicator import Communicator
from muloco_runner.record import CHECKPOINT_PREFIX, CHECKPOINTS_KEPT, checkpoint_name, checkpoint_steps_in
from muloco_runner.training.checkpoints.files import is_intact, read_state, sync_folder, write_manifest, write_state
from muloco_runner.training.checkpoints.host_buffers import HostBuffers

_LISTED = 8
"""Number of the newest checkpoints that a resume looks at, or more where more are to stay."""


class CheckpointError(OSError):
    """A checkpoint could not be written; the one before it is still there."""


@dataclass
class Checkpoint:
    """A run's state after an inner step."""

    step: int
    shared: dict[str, Any]
    """State that all workers share."""
    workers: dict[int, dict[str, Any]]
    """State of each worker of this rank, by index."""


class CheckpointStore:
    """The checkpoints of one run. Every method but `is_writing` is called on all ranks at the same step."""

    def __init__(self, folder: Path, communicator: Communicator, pinned: bool = False) -> None:
        self.folder, self.communicator = folder, communicator
        self.is_main = communicator.topology.is_main
        self.step = 0
        """Step of the newest complete checkpoint that this attempt knows of: a resume would start there."""
        self.warning: str | None = None
        """Why the last checkpoint was not written, if it was not."""
        self.newest_kept = CHECKPOINTS_KEPT
        """Number of the newest checkpoints that stay; to be set before `load`, which looks for as many."""
        self.kept_steps: frozenset[int] = frozenset()
        """Steps whose checkpoints stay besides these."""
        self.kept_best: frozenset[int] = frozenset()
        """The step of the best one, where that is to stay, and while it is being written of the best one before."""
        self._buffers = HostBuffers(pinned)
        self._intact: list[int] = []
        """Steps of checkpoints not known to be damaged, ascending."""
        self._begun: int | None = None
        self._committing = False
        self._thread: threading.Thread | None = None
        self._error: Exception | None = None
        self._digests: dict[str, bytes] = {}

    # Writing

    @property
    def is_idle(self) -> bool:
        """Whether a checkpoint may begin: there are never two at once."""
        return self._begun is None

    def begin(self, checkpoint: Checkpoint) -> None:
        """Copies the state, starts to write it, and returns. A worker is written by its first replica."""
        assert self.is_idle
        states: dict[str, Any] = {}
        if self.communicator.topology.replica == 0:
            states = {f"worker-{index}.pt": state for index, state in checkpoint.workers.items()}
        if self.is_main:
            states["shared.pt"] = checkpoint.shared
        copies = self._buffers.copy(states)
        self._buffers.wait()
        self._begun, self._committing, self._digests = checkpoint.step, False, {}
        self._start(lambda: self._write(self._temporary(checkpoint.step), copies))

    def progress(self) -> list[int]:
        """This rank's part in `settle`: whether it is still busy, and whether it failed."""
        busy = self._thread is not None and self._thread.is_alive()
        return [int(busy), int(not busy and self._error is not None)]

    def settle(self, num_busy: int, num_failed: int) -> bool:
        """Takes note of all ranks' `progress`, summed. True when a checkpoint has just become complete."""
        if self._begun is None or num_busy:
            return False
        step = self._begun
        if num_failed:
            self._give_up(step)
            return False
        if not self._committing:
            digests = self._all_digests()
            self._committing = True
            if self.is_main:
                self._start(lambda: self._commit(step, digests))
            return False
        self._begun, self.step, self.warning = None, step, None
        self._intact = [*(known for known in self._intact if known < step), step]
        return True

    def drain(self) -> None:
        """Waits for the checkpoint that is being written. One that failed raises `CheckpointError`."""
        while self._begun is not None:
            if self._thread is not None:
                self._thread.join()
            counts = self.communicator.sum_over_ranks(torch.tensor(self.progress(), dtype=torch.int32))
            num_busy, num_failed = counts.tolist()
            self.settle(num_busy, num_failed)
            if num_failed:
                raise CheckpointError(self.warning)

    def _start(self, task: Callable[[], None]) -> None:
        def guarded() -> None:
            try:
                task()
            except Exception as error:
                self._error = error

        self._error = None
        self._thread = threading.Thread(target=guarded, name="checkpoint-writer")
        self._thread.start()

    def _write(self, temporary: Path, states: dict[str, Any]) -> None:
        temporary.mkdir(parents=True, exist_ok=True)
        try:
            for name, state in states.items():
                self._digests[name] = write_state(temporary / name, state)
        except Exception:
            # A full disk is the commonest reason: what was written so far only makes it fuller.
            for name in states:
                (temporary / name).unlink(missing_ok=True)
            raise

    def _all_digests(self) -> dict[str, str]:
        """SHA-256 of every file, from whichever rank wrote it."""
        names = ["shared.pt", *(f"worker-{index}.pt" for index in range(self.communicator.topology.num_workers))]
        table = torch.zeros(len(names), hashlib.sha256().digest_size, dtype=torch.int32)
        for name, digest in self._digests.items():
            table[names.index(name)] = torch.tensor(list(digest), dtype=torch.int32)
        rows = self.communicator.sum_over_ranks(table).tolist()
        return {name: bytes(row).hex() for name, row in zip(names, rows, strict=True)}

    def _commit(self, step: int, digests: dict[str, str]) -> None:
        temporary, final = self._temporary(step), self._final(step)
        write_manifest(temporary, step, digests)
        if final.exists():
            # Only a damaged one can stand here: an intact one would have been resumed from.
            shutil.rmtree(final)
        os.rename(temporary, final)
        sync_folder(self.folder)
        newest = [*(known for known in self._intact if known < step), step][-self.newest_kept :]
        self._remove_all_but({*newest, *self.kept_steps, *self.kept_best})

    def _remove_all_but(self, steps: set[int]) -> None:
        kept = {self._final(step) for step in steps}
        for old in self.folder.glob(f"{CHECKPOINT_PREFIX}*"):
            if old not in kept:
                shutil.rmtree(old, ignore_errors=True)

    def _give_up(self, step: int) -> None:
        error = self._error or "another rank could not write its part"
        older = f"the one of step {self.step} is kept" if self.step else "there is none yet"
        self.warning = f"the checkpoint of step {step} was not written ({error}): {older}"
        if self._error is not None or self.is_main:
            print(self.warning, file=sys.stderr, flush=True)
        if self.is_main:
            shutil.rmtree(self._temporary(step), ignore_errors=True)
        self._begun, self._error = None, None

    # Reading

    def load(self, workers: range) -> Checkpoint | None:
        """The newest checkpoint whose files are intact, with the states of `workers`, or None.

        A file is read through once, by the first of the ranks that need it; each then reads what it needs. Tensors are
        views of the files: copy them before the next checkpoint, which may remove those.
        """
        names = ["shared.pt", *(f"worker-{index}.pt" for index in workers)]
        found = self._listed()
        for step in reversed(found):
            intact = is_intact(self._final(step), names, [name for name in names if self._verifies(name)])
            if self.communicator.sum_over_ranks(torch.tensor([not intact], dtype=torch.int32)).item() == 0:
                shared, *states = (read_state(self._final(step) / name) for name in names)
                self.step, self._intact = step, [older for older in found if older <= step]
                return Checkpoint(step, shared, dict(zip(workers, states, strict=True)))
            if self.is_main:
                print(f"{self._final(step)}: damaged, so the checkpoint before it is used", file=sys.stderr, flush=True)
        return None

    def _verifies(self, name: str) -> bool:
        """Whether this rank does: the main one what all share, a worker's first replica the worker's file."""
        return self.is_main if name == "shared.pt" else self.communicator.topology.replica == 0

    def trim(self, keep: Keep) -> None:
        """Removes the checkpoints of a run that has ended which are not to be kept, from the main rank."""
        best = max(self._there(self.kept_best), default=None)
        there = self._there({*self._intact, *self.kept_steps, *self.kept_best})
        self._remove_all_but(keep.after_end(sorted(there), best))

    def keep_best(self, step: int) -> None:
        """Keeps the checkpoint of this step, which is about to be written, and until then the best one before."""
        self.kept_best = frozenset([*sorted(self._there(self.kept_best))[-1:], step])

    def _there(self, steps: Iterable[int]) -> set[int]:
        return {step for step in steps if self._final(step).is_dir()}

    def _listed(self) -> list[int]:
        """Steps of the newest checkpoints, ascending, as the main rank sees them; it clears what a killed one left."""
        steps = torch.zeros(max(_LISTED, self.newest_kept), dtype=torch.int64)
        if self.is_main:
            for half_written in self.folder.glob(f".{CHECKPOINT_PREFIX}*"):
                shutil.rmtree(half_written, ignore_errors=True)
            newest = checkpoint_steps_in(self.folder)[-len(steps) :]
            steps[: len(newest)] = torch.tensor(newest, dtype=torch.int64)
        return [step for step in self.communicator.sum_over_ranks(steps).tolist() if step > 0]

    def _temporary(self, step: int) -> Path:
        return self.folder / f".{checkpoint_name(step)}"

    def _final(self, step: int) -> Path:
        return self.folder / checkpoint_name(step)
