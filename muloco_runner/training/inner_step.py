"""One inner step of one worker: its batch in micro-batches, the gradient over all of its replicas, and the update."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from muloco_runner.config import RunConfig
from muloco_runner.data.batches import Batch, TrainingData, one_of_each_size
from muloco_runner.diloco.method import DistributedMethod
from muloco_runner.diloco.worker import Worker
from muloco_runner.distributed.communicator import Communicator
from muloco_runner.optimizers import Muon
from muloco_runner.training.learning_rate import lr_fraction
from muloco_runner.training.precision import DTYPES, mean_loss
from muloco_runner.training.replicas import Replicas


class InnerStep:
    """Steps every worker of this rank. `micro_batch_sequences` go through the model at once."""

    def __init__(
        self,
        run: RunConfig,
        data: TrainingData,
        replicas: Replicas,
        communicator: Communicator,
        micro_batch_sequences: int,
        method: DistributedMethod,
    ) -> None:
        self.run, self.data, self.replicas, self.communicator = run, data, replicas, communicator
        self.method = method
        self.micro_batch_sequences = micro_batch_sequences

    def step(self, worker: Worker, step: int) -> tuple[Tensor, Tensor]:
        """Inner step number `step`, from 0: the mean loss over the worker's batch and the norm of its gradient."""
        topology = self.communicator.topology
        batch = self.data.worker_batch(step, worker.index, topology.replica, topology.replicas)
        loss = self.replicas.gradient(worker, batch.split(self.micro_batch_sequences), self._loss)
        norm = self._clip_gradient(worker)
        fraction = lr_fraction(self.run, step)
        for group in worker.optimizer.param_groups:
            # Of groups with a factor on lr the peak is their own.
            group["lr"] = group.get("initial_lr", self.run.inner_optimizer.lr) * fraction
        with self.method.updating(worker):
            worker.optimizer.step()
        worker.drop_gradients()
        return loss, norm

    def shrink_to_memory(self, worker: Worker) -> None:
        """Halves the micro-batch until one fits, once and to one size on all ranks: an estimate is checked by trying.

        Not under FSDP: there a forward pass needs all replicas, and one that runs out of memory would leave the others
        waiting.
        """
        if self.communicator.sharded:
            return
        topology = self.communicator.topology
        batch = self.data.worker_batch(0, worker.index, topology.replica, topology.replicas)
        while True:
            failures = torch.tensor(self._fails(worker, batch), dtype=torch.int32)
            if not self.communicator.sum_over_ranks(failures):
                return
            if self.micro_batch_sequences == 1:
                raise torch.OutOfMemoryError("one sequence does not fit: more ranks, or execution.sharding=full")
            self.micro_batch_sequences //= 2

    def warm_up(self, worker: Worker) -> None:
        """Runs each kernel of a step once, so that all compile before the clock starts: every size of micro-batch, and
        Muon's step without gradients, which launches all and changes nothing (of others' nobody knows).

        Not under FSDP, where a pass needs all replicas.
        """
        if not self.communicator.sharded:
            topology = self.communicator.topology
            batch = self.data.worker_batch(0, worker.index, topology.replica, topology.replicas)
            for micro_batch in one_of_each_size(batch.split(self.micro_batch_sequences)):
                self._loss(worker.model, micro_batch).backward()
                worker.drop_gradients()
        if isinstance(worker.optimizer, Muon):
            worker.optimizer.step()

    def _fails(self, worker: Worker, batch: Batch) -> bool:
        try:
            self._loss(worker.model, batch.split(self.micro_batch_sequences)[0]).backward()
        except torch.OutOfMemoryError:
            return True
        finally:
            worker.drop_gradients()
        return False

    def _loss(self, model: nn.Module, batch: Batch) -> Tensor:
        return mean_loss(model, batch, DTYPES[self.run.precision])

    def _clip_gradient(self, worker: Worker) -> Tensor:
        """Scales the gradient down to `gradient_clip_norm`, in the kernels of the step where they can; returns its norm
        before."""
        norm, most = self.replicas.gradient_norm(worker), self.run.gradient_clip_norm
        if isinstance(worker.optimizer, Muon) and worker.optimizer.scales_in_kernels:
            worker.optimizer.scale_gradients((most / (norm + 1e-6)).clamp(max=1.0))
        else:
            nn.utils.clip_grads_with_norm_(worker.tensors, most, norm)
        return norm
