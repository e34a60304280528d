"""Decides when a run's checkpoints are started; an attempt resumes from one and ends with one."""

from __future__ import annotations

import contextlib
import time

from muloco_runner.distributed.vote import ControlFlagVote
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
        self.phases = phases
        self._vote = ControlFlagVote(session.communicator, self._control_flags)
        self._last_begun_at = time.monotonic()

    def resume(self) -> None:
        """Continues from the newest intact checkpoint, where there is one."""
        with self.phases.measured("loading"):
            checkpoint = self.store.load(self.session.communicator.topology.local_workers)
            if checkpoint is not None:
                self.state.restore(checkpoint)

    def start(self) -> None:
        """Called before the first step."""
        self._vote.start()

    def must_stop(self) -> bool:
        """Called after a step. Before a yes a checkpoint is left; else one is started when it is due."""
        stop, due, num_busy, num_failed = self._vote.result()
        if self.store.settle(num_busy, num_failed):
            self.phases.checkpoint_complete()
            self.metrics.write_status("running")
        if stop or (due and self.store.is_idle):
            with self.state.clock.paused(), self.phases.measured("saving"):
                if stop:
                    with contextlib.suppress(CheckpointError):  # it has been reported, and the next one is better
                        self._drain()
                self._begin()
                if stop:
                    self._drain()
                    return True
        self._vote.start()
        return False

    def end(self, keep_final: bool) -> None:
        """Waits for the one being written and leaves the run's last state. A full disk must not cost the result."""
        self._vote.result()  # the last vote is not left pending
        with self.state.clock.paused(), self.phases.measured("saving"):
            with contextlib.suppress(CheckpointError):
                self._drain()
            if keep_final and self.store.step < self.state.step:
                with contextlib.suppress(CheckpointError):
                    self._begin()
                    self._drain()

    def _control_flags(self) -> list[int]:
        """This rank's: stop, checkpoint due, and its progress with the checkpoint that is being written."""
        due = time.monotonic() - self._last_begun_at > self.session.execution.checkpoint_interval_seconds
        return [int(self.session.should_stop()), int(due), *self.store.progress()]

    def _begin(self) -> None:
        """Returns when the state is copied; it is written while training goes on."""
        self.phases.state_copied()
        self.store.begin(self.state.snapshot())
        self._last_begun_at = time.monotonic()

    def _drain(self) -> None:
        before = self.store.step
        self.store.drain()
        if self.store.step > before:
            self.phases.checkpoint_complete()
