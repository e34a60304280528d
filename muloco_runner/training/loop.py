"""The training loop of one run, on one rank. It names no algorithm.

Gradients are averaged over the replicas of each worker, the inner optimizer steps, and the method does the rest.
"""

from __future__ import annotations

import contextlib
import math
import os
import socket
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from muloco_runner.config import ExecutionConfig, RunConfig
from muloco_runner.data.batches import TrainingData, validation_batch
from muloco_runner.data.corpus import Corpus
from muloco_runner.diloco.method import OuterStep, build_method
from muloco_runner.diloco.worker import Worker
from muloco_runner.distributed.topology import Communicator
from muloco_runner.distributed.vote import ControlFlagVote
from muloco_runner.model.attention import choose_attention
from muloco_runner.optimizers import build_inner_optimizer
from muloco_runner.record import RunFolder, RunResult, RunStatus, StepRecord
from muloco_runner.training.checkpointing import CheckpointError, CheckpointStore
from muloco_runner.training.clock import TrainingClock
from muloco_runner.training.devices import choose_placement_on
from muloco_runner.training.evaluate import evaluate, evaluate_local_models
from muloco_runner.training.inner_step import DTYPES, InnerStep
from muloco_runner.training.learning_rate import lr_fraction
from muloco_runner.training.mfu import peak_flops, peak_memory_bytes
from muloco_runner.training.replicas import build_replicas
from muloco_runner.training.state import (
    load_random_state,
    load_worker_state,
    own_lists,
    random_state,
    whole_lists,
    worker_state,
)

_HEARTBEAT_SECONDS = 2.0
_TAIL_FRACTION = 0.05
"""Share of the run over which the final training loss is averaged."""
_DIVERGED_STEPS = 50
"""Steps in a row with a loss far above the first one that make a run diverged."""
_DIVERGED_FACTOR = 1.5


@dataclass
class Session:
    """What an attempt brings beside the run itself."""

    folder: RunFolder
    execution: ExecutionConfig
    communicator: Communicator
    device: torch.device
    attempt: int = 1
    should_stop: Callable[[], bool] = lambda: False
    """Asked after every step: True ends the attempt with a checkpoint."""
    on_record: Callable[[StepRecord], None] = lambda record: None
    versions: dict[str, str] = field(default_factory=dict)


class Trainer:
    """One run on one rank: its workers, its method and where it stands."""

    def __init__(self, run: RunConfig, corpus: Corpus, session: Session) -> None:
        self.run, self.corpus, self.session = run, corpus, session
        self.communicator, self.topology = session.communicator, session.communicator.topology
        self.topology.check(run)
        self.replicas = build_replicas(run, session.execution, self.communicator, session.device, DTYPES[run.precision])
        self.placement = choose_placement_on(session.device, run, session.execution, self.topology.num_ranks)
        self.inner_step = InnerStep(
            run,
            TrainingData(corpus, run, session.device),
            self.replicas,
            self.communicator,
            self.placement.micro_batch_sequences,
        )
        self.validation = validation_batch(corpus, run, session.device)
        self.workers = [self._build_worker(index) for index in self.topology.local_workers]
        self.method = build_method(run, self.workers, self.communicator, session.execution.muon_backend)
        on_gpu = session.device.type == "cuda"
        self.checkpoints = CheckpointStore(session.folder.checkpoint_dir, self.communicator, pinned=on_gpu)
        self.losses = torch.zeros(len(self.workers), run.num_steps, device=session.device)
        """Training loss of each worker held here (rows) at each completed step."""
        self.step = 0
        self.clock = TrainingClock(session.device, self.communicator.traffic)
        self.started_at = time.time()
        self.last_outer: OuterStep | None = None
        self.gradient_norms = torch.zeros(len(self.workers))
        self._local_validation_loss: float | None = None
        self._last_heartbeat = 0.0
        self._last_logged = (0, 0.0)
        """Step and training seconds of the last line that this attempt logged."""
        self._last_checkpoint = time.monotonic()
        self._vote = ControlFlagVote(self.communicator, self._control_flags)
        torch.manual_seed(run.seed)

    def _build_worker(self, index: int) -> Worker:
        # Every worker starts from the same parameters.
        run, execution, device = self.run, self.session.execution, self.session.device
        model, tensors = self.replicas.build(run.model, run.seed, device)
        attention = choose_attention(execution.attention, run.model.head_width, device)
        compiled = device.type == "cuda" if execution.compile is None else execution.compile
        model.set_execution(attention, self.placement.recompute, compiled)
        # Copies of a model share the work on its matrices; shards do so by themselves.
        shared = self.topology.replicas > 1 and not self.communicator.sharded
        group, traffic = self.communicator.among_replicas.group if shared else None, self.communicator.traffic
        return Worker(index, model, build_inner_optimizer(model, run, execution.muon_backend, group, traffic), tensors)

    # The loop

    def train(self) -> RunResult | None:
        """Trains to the end of the budget; None when asked to stop before it (a checkpoint is left)."""
        self._resume()
        run, execution = self.run, self.session.execution
        if self.session.device.type == "cuda" and execution.micro_batch_sequences is None:
            self.inner_step.shrink_to_memory(self.workers[0])
        validation_loss = None
        self.clock.start()
        self._vote.start()
        while self.step < run.num_steps:
            self._inner_step()
            self.step += 1
            evaluating = self.step == run.num_steps or (
                execution.evaluate_interval_steps and self.step % execution.evaluate_interval_steps == 0
            )
            if evaluating:
                with self.clock.paused():
                    self._local_validation_loss = self._evaluate_local_models()
            self.last_outer = self.method.after_inner_step(self.step) or self.last_outer
            if evaluating or self.step % execution.log_interval_steps == 0 or self.step == 1:
                with self.clock.paused():
                    validation_loss = self._evaluate() if evaluating else None
                    divergence = self._log(validation_loss)
                if divergence is not None:
                    self._end_checkpoints(keep_final=False)
                    return self._result(None, divergence)
            if self.step < run.num_steps and self._must_stop():
                return None
        if validation_loss is None:
            # Killed after its last checkpoint and before its result.
            validation_loss = self._evaluate()
        self._end_checkpoints(keep_final=execution.final_checkpoint is not False)
        return self._result(validation_loss, None)

    def _inner_step(self) -> None:
        norms = []
        for row, worker in enumerate(self.workers):
            self.losses[row, self.step], norm = self.inner_step.take(worker, self.step)
            norms.append(norm)
        self.gradient_norms = torch.stack(norms)

    # Evaluation

    def _evaluate(self) -> float:
        with self.workers[0].holding(self.method.synchronised_parameters()) as model:
            return evaluate(model, self.validation, DTYPES[self.run.precision], self.communicator)

    def _evaluate_local_models(self) -> float | None:
        """Just before they may be brought together; None where they never differ from the synchronised model."""
        if not self.method.has_local_models:
            return None
        return evaluate_local_models(self.workers, self.validation, DTYPES[self.run.precision], self.communicator)

    # Records

    def _log(self, validation_loss: float | None) -> str | None:
        """Writes one line; returns why the run has diverged, if it has."""
        loss = self._over_all_workers(self.losses[:, self.step - 1])
        gradient_norm = self._over_all_workers(self.gradient_norms)
        tokens = self.step * self.run.global_batch_tokens
        speed = self._tokens_per_second()
        record = StepRecord(
            step=self.step,
            tokens=tokens,
            loss=loss,
            lr=self.run.inner_optimizer.lr * lr_fraction(self.run, self.step - 1),
            gradient_norm=gradient_norm,
            tokens_per_second=speed,
            train_seconds=self.clock.seconds,
            validation_loss=validation_loss,
            local_validation_loss=None if validation_loss is None else self._local_validation_loss,
            pseudogradient_norm=self.last_outer.pseudogradient_norm if self.last_outer else None,
            pseudogradient_cosine=self.last_outer.pseudogradient_cosine if self.last_outer else None,
            bytes_sent=self.method.bytes_sent,
            mfu=self._mfu(speed),
            memory_bytes=peak_memory_bytes(self.session.device),
            attempt=self.session.attempt,
            **self._traffic(),
        )
        if self.topology.is_main:
            self.session.folder.append_record(record)
            self.session.on_record(record)
            if time.monotonic() - self._last_heartbeat > _HEARTBEAT_SECONDS:
                self.write_status("running", loss=loss)
        return self._divergence(loss)

    def _traffic(self) -> dict[str, Any]:
        """What each rank has sent, received and waited for."""
        topology, own = self.topology, self.communicator.traffic.read()
        if topology.num_ranks == 1:
            return {}
        counts = torch.zeros(3, topology.num_ranks, dtype=torch.float64)
        counts[:, topology.rank] = torch.tensor([own.bytes_sent, own.bytes_received, own.wait_seconds])
        sent, received, waited = self.communicator.sum_over_ranks(counts).tolist()
        return {
            "rank_bytes_sent": [int(number) for number in sent],
            "rank_bytes_received": [int(number) for number in received],
            "rank_wait_seconds": waited,
        }

    def _tokens_per_second(self) -> float | None:
        """Since the last line that this attempt logged."""
        step, seconds = self._last_logged
        self._last_logged = (self.step, self.clock.seconds)
        elapsed = self.clock.seconds - seconds
        return (self.step - step) * self.run.global_batch_tokens / elapsed if elapsed > 0 else None

    def _mfu(self, tokens_per_second: float | None) -> float | None:
        """Model FLOPs utilisation: 6N flops a token over the peak of all devices; None where that is not known."""
        peak = peak_flops(self.session.device, self.run.precision)
        if peak is None or tokens_per_second is None:
            return None
        return 6 * self.run.num_params * tokens_per_second / (peak * self.topology.num_ranks)

    def _over_all_workers(self, local: Tensor) -> float:
        """Mean over all workers of one value for each worker held here.

        Each worker's first replica fills its place of one vector, so that the sum does not depend on who holds what.
        """
        values = torch.zeros(self.topology.num_workers, dtype=torch.float64)
        if self.topology.replica == 0:
            values[list(self.topology.local_workers)] = local.detach().double().cpu()
        return float(self.communicator.sum_over_ranks(values).mean())

    def _divergence(self, loss: float) -> str | None:
        if not math.isfinite(loss):
            return f"the training loss was {loss} at step {self.step}"
        if self.step > _DIVERGED_STEPS:
            recent = self.losses[:, self.step - _DIVERGED_STEPS : self.step].amin(dim=1)
            first = self._over_all_workers(self.losses[:, 0])
            if self._over_all_workers(recent) > _DIVERGED_FACTOR * first:
                return (
                    f"the training loss stayed above {_DIVERGED_FACTOR} times its first value "
                    f"for {_DIVERGED_STEPS} steps, at step {self.step}"
                )
        return None

    def write_result(self, result: RunResult) -> None:
        """The run's last word, from the main rank."""
        if self.topology.is_main:
            self.session.folder.write_result(result)
            self.checkpoints.trim(int(self.session.execution.final_checkpoint is not False))
            self.write_status("finished", loss=result.train_loss, exit_code=0)

    def write_status(self, state: str, loss: float | None = None, **ending: int | str | None) -> None:
        """The heartbeat, from the main rank."""
        if not self.topology.is_main:
            return
        self._last_heartbeat = time.monotonic()
        tokens = self.step * self.run.global_batch_tokens
        self.session.folder.write_status(
            RunStatus(
                run_id=self.run.run_id,
                state=state,
                step=self.step,
                num_steps=self.run.num_steps,
                tokens=tokens,
                checkpoint_step=self.checkpoints.step,
                attempt=self.session.attempt,
                tokens_per_second=tokens / self.clock.seconds if self.clock.seconds else None,
                loss=loss,
                warning=self.checkpoints.warning,
                host=socket.gethostname(),
                pid=os.getpid(),
                **ending,  # type: ignore[arg-type]
            )
        )

    def _result(self, validation_loss: float | None, divergence: str | None) -> RunResult:
        run = self.run
        if validation_loss is not None and not math.isfinite(validation_loss):
            divergence, validation_loss = f"the final validation loss was {validation_loss}", None
        tail = self.losses[:, max(0, self.step - max(1, round(_TAIL_FRACTION * run.num_steps))) : self.step]
        train_loss = self._over_all_workers(tail.double().mean(dim=1))
        tokens = self.step * run.global_batch_tokens
        return RunResult(
            run_id=run.run_id,
            algorithm=run.algorithm,
            diverged=divergence is not None,
            validation_loss=validation_loss,
            local_validation_loss=None if validation_loss is None else self._local_validation_loss,
            train_loss=train_loss,
            num_params=run.num_params,
            num_steps=self.step,
            num_tokens=tokens,
            flops=6.0 * run.num_params * tokens,
            train_seconds=self.clock.seconds,
            wall_seconds=time.time() - self.started_at,
            bytes_sent=self.method.bytes_sent,
            corpus_hash=self.corpus.content_hash,
            attempts=self.session.attempt,
            num_ranks=self.topology.num_ranks,
            device=str(self.session.device.type),
            divergence=divergence,
            versions=self.session.versions,
        )

    # Stopping and resuming

    def _must_stop(self) -> bool:
        """All ranks give one answer. Before yes a checkpoint is left; else one is begun when it is due."""
        stop, due, num_busy, num_failed = self._vote.result()
        if self.checkpoints.settle(num_busy, num_failed):
            self.write_status("running")
        if stop or (due and self.checkpoints.is_idle):
            with self.clock.paused():
                if stop:
                    with contextlib.suppress(CheckpointError):  # it has been reported, and the next one is better
                        self.checkpoints.drain()
                self._begin_checkpoint()
                if stop:
                    self.checkpoints.drain()
                    return True
        self._vote.start()
        return False

    def _control_flags(self) -> list[int]:
        """This rank's: to stop, to checkpoint; and its part in the checkpoint that is being written."""
        due = time.monotonic() - self._last_checkpoint > self.session.execution.checkpoint_interval_seconds
        return [int(self.session.should_stop()), int(due), *self.checkpoints.progress()]

    def _begin_checkpoint(self) -> None:
        """Returns when the state is copied; it is written while training goes on."""
        workers = {
            worker.index: {
                **worker_state(worker, self.method.worker_state(row)),
                "losses": self.losses[row, : self.step],
            }
            for row, worker in enumerate(self.workers)
        }
        shared = {
            "method": whole_lists(self.workers[0], self.method.state_dict()),
            "bytes_sent": self.method.bytes_sent,
            "train_seconds": self.clock.seconds,
            "started_at": self.started_at,
            "local_validation_loss": self._local_validation_loss,
            "random": random_state(),
        }
        self.checkpoints.begin(self.step, shared, workers if self.topology.replica == 0 else {})
        self._last_checkpoint = time.monotonic()

    def _end_checkpoints(self, keep_final: bool) -> None:
        """Waits for the one being written and leaves the run's last state. A full disk must not cost the result."""
        self._vote.result()  # what was told last is not left under way
        with self.clock.paused():
            with contextlib.suppress(CheckpointError):
                self.checkpoints.drain()
            if keep_final and self.checkpoints.step < self.step:
                with contextlib.suppress(CheckpointError):
                    self._begin_checkpoint()
                    self.checkpoints.drain()

    def _resume(self) -> None:
        loaded = self.checkpoints.load(self.topology.local_workers)
        if loaded is None:
            return
        self.step, shared = loaded.step, loaded.shared
        for row, worker in enumerate(self.workers):
            state = loaded.workers[worker.index]
            self.method.load_worker_state(row, load_worker_state(worker, state))
            self.losses[row, : self.step] = state["losses"].to(self.losses)
        self.method.load_state_dict(own_lists(self.workers[0], shared["method"]), self.step)
        self.method.bytes_sent = shared["bytes_sent"]
        self.clock.seconds, self.started_at = shared["train_seconds"], shared["started_at"]
        self._last_logged = (self.step, self.clock.seconds)
        self._local_validation_loss = shared["local_validation_loss"]
        load_random_state(shared["random"])
