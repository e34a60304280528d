"""The training loop of one run, on one rank. It names no algorithm.

Gradients are averaged over the replicas of each worker, the inner optimizer steps, and the method does the rest.
"""

from __future__ import annotations

from pathlib import Path

import torch

from muloco_runner.config import ConfigError, RunConfig
from muloco_runner.data.batches import TrainingData
from muloco_runner.data.corpus import Corpus
from muloco_runner.diloco.method import build_method
from muloco_runner.optimizers.target import end_training, evaluated_weights, start_training
from muloco_runner.record import RunResult
from muloco_runner.training.checkpointing import Checkpointing
from muloco_runner.training.checkpoints.initial_weights import start_from_weights
from muloco_runner.training.checkpoints.store import CheckpointStore
from muloco_runner.training.clock import Phases, TrainingClock
from muloco_runner.training.devices import choose_placement_on
from muloco_runner.training.evaluate import Evaluation
from muloco_runner.training.inner_step import InnerStep
from muloco_runner.training.metrics import Metrics
from muloco_runner.training.profile import StepProfile
from muloco_runner.training.replicas import build_models, build_replicas, build_workers
from muloco_runner.training.session import Session
from muloco_runner.training.state import TrainingState
from muloco_runner.training.update_sizes import UpdateSizes


class Trainer:
    """One run on one rank."""

    def __init__(self, run: RunConfig, corpus: Corpus, session: Session) -> None:
        self.run, self.session = run, session
        communicator, execution, device = session.communicator, session.execution, session.device
        communicator.topology.check(run)
        topology = communicator.topology
        placement = choose_placement_on(device, run, execution, topology.num_ranks, topology.ranks_per_node)
        replicas = build_replicas(run, execution, communicator, device)
        data = TrainingData(corpus, run, device)
        self.evaluation = Evaluation(run, corpus, communicator, device)
        models = build_models(run, execution, replicas, len(topology.local_workers), device, placement)
        self._no_first_weights: ConfigError | None = None
        try:
            start_from_weights(run, [model for model, _ in models])
        except ConfigError as error:
            self._no_first_weights = error  # a run that goes on from a checkpoint does not need them
        # After the weights are there: an optimizer from outside may keep what its parameters were when it was built.
        workers = build_workers(run, execution, models, communicator)
        self.method = build_method(run, workers, communicator, execution.muon_backend)
        micro_batch_sequences = placement.micro_batch_sequences
        self.inner_step = InnerStep(run, data, replicas, communicator, micro_batch_sequences, self.method)
        self.clock, self.phases = TrainingClock(device, communicator.traffic), Phases()
        self.state = TrainingState(run, workers, self.method, self.clock, device)
        self.update_sizes = [UpdateSizes(worker, self.method.updated_tensors(worker)) for worker in workers]
        store = CheckpointStore(session.folder.checkpoint_dir, communicator, pinned=device.type == "cuda")
        self.metrics = Metrics(run, corpus.content_hash, self.evaluation, session, self.state, store, self.phases)
        self.checkpointing = Checkpointing(session, self.state, store, self.metrics, self.phases)
        torch.manual_seed(run.seed)

    def train(self) -> RunResult | None:
        """Trains to the end of the budget; None when asked to stop before it (a checkpoint is left)."""
        run, execution, state = self.run, self.session.execution, self.state
        execution.check(run.num_steps)
        self.checkpointing.resume()
        if state.step == 0 and self._no_first_weights is not None:
            raise self._no_first_weights
        for worker in state.workers:
            start_training(worker.optimizer)
        if self.session.device.type == "cuda":
            self._warm_up()
        validation_loss = None
        trace = StepProfile(execution.profile, self._trace_file(), self.session.device)
        self.metrics.start()
        self.phases.begin_training()
        self.clock.start()
        self.checkpointing.start()
        while state.step < run.num_steps:
            trace.before_step(state.step + 1)
            self.step_workers()
            last, interval = state.step == run.num_steps, execution.evaluate_interval_steps
            evaluates = last or bool(interval and state.step % interval == 0)
            if evaluates and self.method.has_local_models:
                # Just before the method may bring them together.
                with self.clock.paused(), self.phases.measured("evaluation"):
                    state.local_validation_loss = self.evaluation.of_local_models(state.workers)
            state.last_outer_step = self.method.after_inner_step(state.step) or state.last_outer_step
            trace.after_step(state.step)
            validation_loss = None
            if evaluates or self._logs(state.step):
                with self.clock.paused():
                    validation_loss = self._evaluate() if evaluates else None
                    divergence = self.metrics.log(validation_loss)
                if divergence is not None:
                    trace.end()
                    self.checkpointing.end(None)
                    return self.metrics.result(None, divergence)
            if not last and self.checkpointing.must_stop(validation_loss):
                trace.end()
                return None
        trace.end()
        if validation_loss is None:
            # Killed after its last checkpoint and before its result.
            validation_loss = self._evaluate()
        for worker in state.workers:
            end_training(worker.optimizer)
        self.checkpointing.end(validation_loss)
        return self.metrics.result(validation_loss, None)

    def _warm_up(self) -> None:
        """Finds the micro-batch that fits and compiles all kernels, none of which is training."""
        first = self.state.workers[0]
        if self.session.execution.micro_batch_sequences is None:
            self.inner_step.shrink_to_memory(first)
        self.inner_step.warm_up(first)
        self.evaluation.warm_up(first)

    def _trace_file(self) -> Path:
        session = self.session
        return session.folder.attempt_dir(session.attempt) / f"trace-{session.communicator.topology.rank}.json"

    def step_workers(self) -> None:
        """Takes the next inner step of every worker of this rank."""
        state, sums = self.state, []
        is_measured = self._logs(state.step + 1)
        for row, worker in enumerate(state.workers):
            if is_measured:
                self.update_sizes[row].begin()
            loss, state.gradient_norms[row] = self.inner_step.step(worker, state.step)
            state.losses[row, state.step] = loss
            if is_measured:
                sums.append(self.update_sizes[row].end())
        state.update_sums = torch.stack(sums) if sums else None
        state.step += 1

    def _logs(self, step: int) -> bool:
        """Whether the first step, or one of the interval; a step that is evaluated is logged as well."""
        return step % self.session.execution.log_interval_steps == 0 or step == 1

    def _evaluate(self) -> float:
        first = self.state.workers[0]
        with self.phases.measured("evaluation"), evaluated_weights(first.optimizer):
            losses = self.evaluation.of_synchronised_model(first, self.method.synchronised_parameters())
        self.state.named_losses = losses.named
        return losses.main
