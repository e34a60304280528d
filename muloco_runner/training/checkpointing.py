"""Decides when a run's checkpoints are started; an attempt resumes from one and ends with one."""

from __future__ import annotations

import contextlib
import math
import time

from muloco_runner.distributed.vote import ControlFlagVote
from muloco_runner.record import CHECKPOINTS_KEPT
from muloco_runner.training.checkpoints.store import CheckpointError, CheckpointStore
from muloco_runner.training.clock import Phases
from muloco_runner.training.metrics import Metrics
from muloco_runner.training.session import Session
from muloco_runner.training.state import TrainingState


class Checkpointing:
    """The checkpoints of one attempt. All ranks decide together, by a vote sent beside each step."""

    def __init__(
        self, session: Session, state: TrainingState, store: CheckpointStore, metrics: Metrics, phases: Phases
    ) -> None:
        self.session, self.state, self.store, self.metrics = session, state, store, metrics
        self.phases, self._keep = phases, session.execution.keeps
        store.newest_kept = max(CHECKPOINTS_KEPT, self._keep.number)
        self._vote = ControlFlagVote(session.communicator, self._control_flags)
        self._last_begun_at = time.monotonic()

    def resume(self) -> None:
        """Continues from the newest intact checkpoint, where there is one."""
        with self.phases.measured("loading"):
            checkpoint = self.store.load(self.session.communicator.topology.local_workers)
            if checkpoint is not None:
                self.state.restore(checkpoint)
        self._settle_what_is_kept()

    def start(self) -> None:
        """Called before the first step."""
        self._vote.start()

    def must_stop(self, validation_loss: float | None) -> bool:
        """Called after a step, which was evaluated or not. Before a yes a checkpoint is left; else one is started where
        it is due or is to be kept."""
        stop, due, num_busy, num_failed = self._vote.result()
        if self.store.settle(num_busy, num_failed):
            self.phases.checkpoint_complete()
            self.metrics.write_status("running")
        kept = self._is_to_be_kept(validation_loss)
        if stop or kept or (due and self.store.is_idle):
            with self.state.clock.paused(), self.phases.measured("saving"):
                if not self.store.is_idle:
                    with contextlib.suppress(CheckpointError):  # it has been reported, and the next one is better
                        self._drain()
                self._begin(kept)
                if stop:
                    self._drain()
                    return True
        self._vote.start()
        return False

    def end(self, validation_loss: float | None) -> None:
        """Waits for the one being written and leaves the run's last state where that is to be kept.

        `validation_loss` is of that state, None where it has diverged. A full disk must not cost the result.
        """
        kept = validation_loss is not None and (self._is_to_be_kept(validation_loss) or self._keep.keeps_end)
        self._vote.result()  # the last vote is not left pending
        with self.state.clock.paused(), self.phases.measured("saving"):
            with contextlib.suppress(CheckpointError):
                self._drain()
            if kept and self.store.step < self.state.step:
                with contextlib.suppress(CheckpointError):
                    self._begin(kept)
                    self._drain()

    def _is_to_be_kept(self, validation_loss: float | None) -> bool:
        """Whether the state after this step is; the same on all ranks."""
        step, best = self.state.step, self.state.best
        lowest = math.inf if best is None else best[0]
        is_best = self._keep.kind == "best" and validation_loss is not None and validation_loss < lowest
        if is_best:
            assert validation_loss is not None
            self.state.best = (validation_loss, step)
        return is_best or step in self._keep.steps

    def _settle_what_is_kept(self) -> None:
        """Says which of the checkpoints stay; one that should be there and is not costs a line."""
        keep, step = self._keep, self.state.step
        if keep.kind != "best":
            self.state.best = None
        best = self.state.best
        self.store.kept_steps = frozenset(keep.steps)
        self.store.kept_best = frozenset() if best is None else frozenset({best[1]})
        if not self.session.communicator.topology.is_main or not step:
            return
        there = set(self.session.folder.checkpoint_steps())
        missing = [kept for kept in keep.steps if kept <= step and kept not in there]
        if missing:
            which = ", ".join(map(str, missing))
            print(f"execution.keep: no checkpoint of step {which} was written, and the run is past it", flush=True)
        if keep.kind == "best" and best is None:
            print(f"execution.keep=best: the best evaluation after step {step} is kept, not of all", flush=True)

    def _control_flags(self) -> list[int]:
        """This rank's: stop, checkpoint due, and its progress with the checkpoint that is being written."""
        due = time.monotonic() - self._last_begun_at > self.session.execution.checkpoint_interval_seconds
        return [int(self.session.should_stop()), int(due), *self.store.progress()]

    def _begin(self, kept: bool) -> None:
        """Returns when the state is copied; it is written while training goes on. `kept`: it is to stay."""
        if kept and self.state.best is not None and self.state.best[1] == self.state.step:
            self.store.keep_best(self.state.step)
        self.phases.state_copied()
        self.store.begin(self.state.snapshot())
        self._last_begun_at = time.monotonic()

    def _drain(self) -> None:
        before = self.store.step
        self.store.drain()
        if self.store.step > before:
            self.phases.checkpoint_complete()
