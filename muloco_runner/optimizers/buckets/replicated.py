"""Replicas that hold the same parameters share Muon's work: each matrix has one owner, which alone keeps its momentum.

A step is one orthogonalisation of each matrix, by its owner, and an all-gather of the results in the precision in
which the backend computes, while the next matrices are worked on. Every rank applies what was gathered, its own
included, so that replicas stay equal to the bit.

Axes: P ranks, W values of an owner buffer in one message.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from itertools import chain
from typing import Any

import torch
from torch import Tensor

from muloco_runner.distributed.collectives import Collectives
from muloco_runner.distributed.dtensor import is_distributed
from muloco_runner.distributed.gradient_reducer import GradientReducer, total_norm
from muloco_runner.distributed.owner_buffers import OwnerBuffers
from muloco_runner.distributed.pending import PendingTransfer, PendingTransfers
from muloco_runner.optimizers.buckets.base import Bucket, Gradients, MatrixBucket, gradients_in_grad


class ReplicatedBucket:
    """Matrices of several shapes, which every rank of `replicas` holds in full; their results have one dtype."""

    def __init__(
        self,
        buckets: Sequence[MatrixBucket],
        owners: Sequence[Sequence[int]],
        replicas: Collectives,
        result_dtype: torch.dtype,
    ) -> None:
        """`buckets` are one for each shape, with the matrices that this rank owns; `owners` names the owner of each
        matrix of each bucket."""
        self.replicas, self.result_dtype = replicas, result_dtype
        self._buckets = list(buckets)
        self.parameters = [parameter for bucket in buckets for parameter in bucket.parameters]
        self.owners = list(chain.from_iterable(owners))
        self._members = [(bucket, index) for bucket in buckets for index in range(len(bucket.parameters))]
        """For each matrix the bucket of its shape, and its index there."""
        self._buffers = OwnerBuffers([p.numel() for p in self.parameters], self.owners, replicas.size)
        self._is_updated: list[bool] = []
        """Whether each matrix has a gradient in the step that was prepared, here or at its owner."""

    @property
    def scales_in_kernels(self) -> bool:
        return all(bucket.scales_in_kernels or not bucket.position for bucket in self._buckets)

    def state(self, index: int) -> dict[str, Tensor]:
        bucket, number = self._members[index]
        return bucket.state(number)

    def gather_momenta(self) -> list[Tensor]:
        """Return every matrix's momentum (R, C), on every rank: one matrix at a time, from its owner."""
        momenta = []
        for owner, (bucket, number) in zip(self.owners, self._members, strict=True):
            is_own = owner == self.replicas.rank
            momentum = bucket.momentum(number) if is_own else bucket.momentum_BRC.new_empty(bucket.shape)
            self.replicas.broadcast(momentum, owner)
            momenta.append(momentum)
        return momenta

    def prepare(self, group: dict[str, Any], gradients: Gradients, clip: Tensor | None) -> None:
        self._is_updated = [parameter in gradients for parameter in self.parameters]
        for bucket in self._buckets:
            bucket.prepare(group, gradients, clip)

    def step(self, group: dict[str, Any], pending: PendingTransfers) -> None:
        own = torch.zeros(self._buffers.length, dtype=self.result_dtype, device=self.parameters[0].device)
        received: dict[int, list[Tensor]] = {}
        filled = sent = 0
        for bucket in self._buckets:
            owned, at_once = list(bucket.position), bucket.parameters_at_once
            for start in range(0, len(owned), at_once):
                part = owned[start : start + at_once]
                end = filled + len(part) * bucket.shape.numel()
                bucket.write_orthogonal_updates(group, part, own[filled:end].view(len(part), *bucket.shape))
                filled = end
                full = filled // max(1, self._buffers.width)
                pending.add_round(*(self._gather(group, number, own, received) for number in range(sent, full)))
                sent = full
        rest = range(sent, self._buffers.num_messages)
        pending.add_round(*(self._gather(group, number, own, received) for number in rest))

    def drop_gradients(self) -> None:
        for bucket in self._buckets:
            bucket.drop_gradients()

    def _gather(
        self, group: dict[str, Any], number: int, own: Tensor, received: dict[int, list[Tensor]]
    ) -> PendingTransfer:
        """Start to send message `number` of this rank's owner buffer to all ranks; what is then complete is applied."""
        width = self._buffers.width
        buffers_PW = own.new_empty(self.replicas.size, width)
        own_W = own[number * width : (number + 1) * width]
        transfer = self.replicas.all_gather(buffers_PW.view(-1), own_W, async_op=True)
        return transfer, lambda: self._apply(group, number, buffers_PW, received)

    def _apply(self, group: dict[str, Any], number: int, buffers_PW: Tensor, received: dict[int, list[Tensor]]) -> None:
        """Update the parameters whose last values message `number` has brought; other values wait in `received`."""
        complete: dict[int, tuple[MatrixBucket, list[int], list[Tensor]]] = {}
        for index, part in self._buffers.contents[number]:
            if not self._is_updated[index]:
                continue
            values = received.setdefault(index, [])
            values.append(buffers_PW[self.owners[index], part.in_buffer])
            if part.in_matrix.stop == self._buffers.sizes[index]:
                del received[index]
                bucket, member = self._members[index]
                _, members, orthogonal = complete.setdefault(id(bucket), (bucket, [], []))
                members.append(member)
                flat = torch.cat(values) if len(values) > 1 else values[0]
                orthogonal.append(flat.view(bucket.shape))
        for bucket, members, orthogonal in complete.values():
            bucket.apply_update(group, members, orthogonal)


def owners_of(buckets: Iterable[Bucket]) -> dict[Tensor, int]:
    """Return the rank that owns each matrix on which replicas share the work."""
    replicated = [bucket for bucket in buckets if isinstance(bucket, ReplicatedBucket)]
    return {p: owner for bucket in replicated for p, owner in zip(bucket.parameters, bucket.owners, strict=True)}


class GradientAgreement:
    """Checks that replicas step with the same gradients: in the first step by their norms, then by which exist."""

    def __init__(self, replicas: Collectives) -> None:
        self._replicas = replicas
        self._have_agreed = False

    def check(self, parameters: Sequence[Tensor], gradients: Mapping[Tensor, Tensor]) -> None:
        """Refuse gradients of these parameters that are not those of the other ranks. Every rank must call it."""
        norms = [0.0 if parameter in gradients else -1.0 for parameter in parameters]
        if not self._have_agreed:
            for index, parameter in enumerate(parameters):
                gradient = gradients.get(parameter)
                if gradient is not None and not is_distributed(gradient):
                    norm = float(torch.linalg.vector_norm(gradient, dtype=torch.float32))
                    norms[index] = norm if math.isfinite(norm) else 0.0
        own = torch.tensor(norms, device=parameters[0].device)
        of_ranks = own.new_empty(self._replicas.size * len(own))
        self._replicas.all_gather(of_ranks, own)
        for of_parameter in zip(*of_ranks.cpu().view(self._replicas.size, -1).tolist(), strict=True):
            least, most = min(of_parameter), max(of_parameter)
            if least < 0 <= most:
                raise ValueError(f"only some ranks of process_group have a gradient of a parameter: {_AVERAGE_THEM}")
            if most - least > _MOST_DIFFERENCE * abs(most):
                raise ValueError(
                    f"gradients differ between the ranks of process_group, norms {least:g} to {most:g}: {_AVERAGE_THEM}"
                )
        self._have_agreed = self._have_agreed or max(norms) > 0


_MOST_DIFFERENCE = 1e-4
"""Of the norms of equal gradients, relative: rounding of sums in other orders."""
_AVERAGE_THEM = "average them before each step, by DDP, average_gradients() or average=True"


def _existing_on_any(parameters: Sequence[Tensor], replicas: Collectives) -> list[Tensor]:
    """Return the parameters of which any rank has a gradient: those that a batch did not use have none on some."""
    counts = torch.tensor([parameter.grad is not None for parameter in parameters], dtype=torch.int32)
    counts = counts.to(parameters[0].device)
    replicas.all_reduce(counts)
    return [parameter for parameter, count in zip(parameters, counts.tolist(), strict=True) if count]


def average_gradients(buckets: Sequence[Bucket], replicas: Collectives | None) -> tuple[Gradients, Tensor]:
    """Return the gradients averaged over the ranks, a matrix's at its owner alone, and the norm of all of them (0-D).

    Gradients of sharded parameters are a `ValueError`: `fully_shard` averages those.
    """
    parameters = [parameter for bucket in buckets for parameter in bucket.parameters]
    if not parameters:
        return {}, torch.zeros(())
    if any(is_distributed(parameter) for parameter in parameters):
        raise ValueError("gradients of sharded parameters are averaged by fully_shard: call step() alone")
    gradients: Gradients = gradients_in_grad(parameters)
    owners = owners_of(buckets)
    if replicas is not None:
        existing = _existing_on_any(parameters, replicas)
        reducer = GradientReducer(existing, owners, replicas)
        for parameter in existing:
            gradient = gradients.get(parameter)
            if gradient is None:
                gradient = torch.zeros_like(parameter, requires_grad=False)
            reducer.add(parameter, gradient if parameter in owners else gradient.clone())
        gradients = reducer.finish()
        for gradient in gradients.values():
            if gradient is not None:
                gradient.div_(replicas.size)
    return gradients, total_norm({parameter: gradients.get(parameter) for parameter in parameters}, owners, replicas)
