"""Reports of an attempt on its run: lines of the record, the heartbeat, the result, and whether the run diverged."""

from __future__ import annotations

import math
import os
import socket
import time
from typing import Any

import torch
from torch import Tensor

from muloco_runner.config import RunConfig
from muloco_runner.record import RunResult, RunStatus, StepRecord
from muloco_runner.training.checkpoints.store import CheckpointStore
from muloco_runner.training.clock import Phases
from muloco_runner.training.evaluate import Evaluation, bits_per_byte, of_set
from muloco_runner.training.learning_rate import scheduled_lr
from muloco_runner.training.mfu import peak_memory_bytes, utilisations
from muloco_runner.training.session import Session
from muloco_runner.training.state import TrainingState
from muloco_runner.training.update_sizes import KINDS, sizes_of

_HEARTBEAT_SECONDS = 2.0
_TAIL_FRACTION = 0.05
"""Share of the run over which the final training loss is averaged."""
_DIVERGED_STEPS = 50
"""Steps in a row with a loss far above the first one that make a run diverged."""
_DIVERGED_FACTOR = 1.5


class Metrics:
    """Called on all ranks, which compute sums together; written by the main one."""

    def __init__(
        self,
        run: RunConfig,
        corpus_hash: str,
        evaluation: Evaluation,
        session: Session,
        state: TrainingState,
        store: CheckpointStore,
        phases: Phases,
    ) -> None:
        self.evaluation, self.phases = evaluation, phases
        self.run, self.corpus_hash, self.session, self.state, self.store = run, corpus_hash, session, state, store
        self.communicator, self.topology = session.communicator, session.communicator.topology
        self._last_heartbeat = 0.0
        self._resumed_step: int | None = None
        """Step that this attempt began from; None before its first step."""
        self._last_logged = (0, 0.0)
        """Step and training seconds of the last line that this attempt logged."""

    def start(self) -> None:
        """Called before the attempt's first step."""
        self._resumed_step = self.state.step
        self._last_logged = (self.state.step, self.state.clock.seconds)

    @property
    def num_tokens(self) -> int:
        """Tokens that all workers have seen."""
        return self.state.step * self.run.global_batch_tokens

    def log(self, validation_loss: float | None) -> str | None:
        """Writes one line; returns why the run has diverged, if it has."""
        state, session = self.state, self.session
        loss = float(self._mean_over_workers(state.losses[:, state.step - 1]))
        speed, outer = self._tokens_per_second(), state.last_outer_step
        record = StepRecord(
            step=state.step,
            tokens=self.num_tokens,
            loss=loss,
            scheduled_lr=scheduled_lr(self.run, state.step - 1),
            gradient_norm=float(self._mean_over_workers(state.gradient_norms)),
            tokens_per_second=speed,
            train_seconds=state.clock.seconds,
            validation_loss=validation_loss,
            local_validation_loss=None if validation_loss is None else state.local_validation_loss,
            named_validation_losses=None if validation_loss is None else _finite(state.named_losses),
            pseudogradient_norm=outer.pseudogradient_norm if outer else None,
            pseudogradient_cosine=outer.pseudogradient_cosine if outer else None,
            bytes_sent=state.method.bytes_sent,
            memory_bytes=peak_memory_bytes(session.device),
            attempt=session.attempt,
            **utilisations(self.run, speed, session.device, self.topology.num_ranks),
            **self._update_sizes(),
            **self._traffic(),
        )
        if self.topology.is_main:
            session.folder.append_record(record)
            session.on_record(record)
            if time.monotonic() - self._last_heartbeat > _HEARTBEAT_SECONDS:
                self.write_status("running", loss=loss)
        return self._divergence(loss)

    def result(self, validation_loss: float | None, divergence: str | None) -> RunResult:
        """The run's result; a validation loss that is not finite, or far above the first loss, is a divergence too."""
        run, state, session = self.run, self.state, self.session
        bound = _DIVERGED_FACTOR * self._mean_over_workers(state.losses[:, 0])
        if validation_loss is not None and not validation_loss <= bound:
            divergence = f"the final validation loss was {validation_loss:.6g}"
            if math.isfinite(validation_loss):
                divergence += f", above {_DIVERGED_FACTOR} times the first training loss"
            validation_loss = None
        tail = state.losses[:, max(0, state.step - max(1, round(_TAIL_FRACTION * run.num_steps))) : state.step]
        return RunResult(
            run_id=run.run_id,
            algorithm=run.algorithm,
            diverged=divergence is not None,
            validation_loss=validation_loss,
            local_validation_loss=None if validation_loss is None else state.local_validation_loss,
            train_loss=float(self._mean_over_workers(tail.double().mean(dim=1))),
            num_params=run.num_params,
            num_steps=state.step,
            num_tokens=self.num_tokens,
            flops=float(run.model.flops_per_token * self.num_tokens),
            hardware_flops=float(run.model.hardware_flops_per_token * self.num_tokens),
            validation_tokens=self.evaluation.batch.tokens_BT.numel(),
            bits_per_byte=bits_per_byte(validation_loss, self.evaluation.bytes_per_token),
            named_validation=None if validation_loss is None else self._named_validation(),
            weight_decay_timescale=run.weight_decay_timescale,
            train_seconds=state.clock.seconds,
            wall_seconds=time.time() - state.started_at,
            bytes_sent=state.method.bytes_sent,
            corpus_hash=self.corpus_hash,
            attempts=session.attempt,
            num_ranks=self.topology.num_ranks,
            device=str(session.device.type),
            divergence=divergence,
            versions=session.versions,
        )

    def _named_validation(self) -> dict[str, dict[str, Any]] | None:
        sets, batches, losses = self.evaluation.sets, self.evaluation.named, self.state.named_losses
        return {name: of_set(losses[name], batches[name], found) for name, found in sets.items()} or None

    def write_result(self, result: RunResult) -> None:
        """Ends the run; checkpoints that it no longer needs go."""
        if self.topology.is_main:
            self.session.folder.write_result(result)
            self.store.trim(self.session.execution.keeps)
            self.write_status("finished", loss=result.train_loss, exit_code=0)

    def write_status(self, state: str, loss: float | None = None, **ending: int | str | None) -> None:
        """The heartbeat."""
        if not self.topology.is_main:
            return
        self._last_heartbeat = time.monotonic()
        seconds = self.state.clock.seconds
        self.session.folder.write_status(
            RunStatus(
                run_id=self.run.run_id,
                state=state,
                step=self.state.step,
                num_steps=self.run.num_steps,
                tokens=self.num_tokens,
                checkpoint_step=self.store.step,
                attempt=self.session.attempt,
                tokens_per_second=self.num_tokens / seconds if seconds else None,
                loss=loss,
                warning=self.store.warning,
                resumed_step=self._resumed_step,
                times=self.phases.times(self.store.step == self.state.step, state in ("finished", "stopped")).to_dict(),
                host=socket.gethostname(),
                pid=os.getpid(),
                **ending,  # type: ignore[arg-type]
            )
        )

    def _tokens_per_second(self) -> float | None:
        """Since the last line that this attempt logged."""
        step, seconds = self._last_logged
        self._last_logged = (self.state.step, self.state.clock.seconds)
        elapsed = self.state.clock.seconds - seconds
        return (self.state.step - step) * self.run.global_batch_tokens / elapsed if elapsed > 0 else None

    def _update_sizes(self) -> dict[str, Any]:
        """Of the last step, if it was measured: a quantity that is not finite is left out."""
        sums = self.state.update_sums
        if sums is None:
            return {}
        sizes = [sizes_of(of_worker) for of_worker in self.communicator.sum_over_shards(sums)]
        rms, ratio = self._mean_over_workers(torch.stack(sizes).flatten(1)).view(2, -1).tolist()
        return {
            name: {kind: value for kind, value in zip(KINDS, values, strict=True) if math.isfinite(value)}
            for name, values in (("update_rms", rms), ("update_ratio", ratio))
        }

    def _traffic(self) -> dict[str, Any]:
        """Bytes that each rank has sent and received, and seconds that it has waited for them."""
        topology, own = self.topology, self.communicator.traffic.read()
        if topology.num_ranks == 1:
            return {}
        counts = torch.zeros(3, topology.num_ranks, dtype=torch.float64)
        counts[:, topology.rank] = torch.tensor([own.bytes_sent, own.bytes_received, own.wait_seconds])
        sent, received, waited = self.communicator.sum_over_ranks(counts).tolist()
        return {
            "rank_bytes_sent": [int(number) for number in sent],
            "rank_bytes_received": [int(number) for number in received],
            # On a GPU the host only queues exchanges: its time says nothing of how long training waits.
            "rank_wait_seconds": None if self.session.device.type == "cuda" else waited,
        }

    def _divergence(self, loss: float) -> str | None:
        step = self.state.step
        if not math.isfinite(loss):
            return f"the training loss was {loss} at step {step}"
        if step > _DIVERGED_STEPS:
            recent = self.state.losses[:, step - _DIVERGED_STEPS : step].amin(dim=1)
            first = float(self._mean_over_workers(self.state.losses[:, 0]))
            if float(self._mean_over_workers(recent)) > _DIVERGED_FACTOR * first:
                return (
                    f"the training loss stayed above {_DIVERGED_FACTOR} times its first value "
                    f"for {_DIVERGED_STEPS} steps, at step {step}"
                )
        return None

    def _mean_over_workers(self, local: Tensor) -> Tensor:
        """Mean over all workers of one value, or row of values, for each worker of this rank; on the CPU.

        Each worker's first replica fills in its element of one vector, so that the sum does not depend on which rank
        trains which worker.
        """
        values = torch.zeros(self.topology.num_workers, *local.shape[1:], dtype=torch.float64)
        if self.topology.replica == 0:
            values[list(self.topology.local_workers)] = local.detach().double().cpu()
        return self.communicator.sum_over_ranks(values).mean(dim=0)


def _finite(losses: dict[str, float]) -> dict[str, float] | None:
    """Those that JSON can hold; None where there are none."""
    return {name: loss for name, loss in losses.items() if math.isfinite(loss)} or None
