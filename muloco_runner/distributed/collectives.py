"""`torch.distributed`'s collectives among the ranks of one group, counted and, on an emulated link, held back.

One rule says what a rank sends: messages straight to each other rank. In an all-to-all that is each other rank's part,
in an all-gather its own part once for each of them, in a reduce-scatter each one's part, in a broadcast the tensor once
for each, from its root. An all-reduce is a reduce-scatter and an all-gather of the sums: 2 (n - 1)/n of the tensor
among n ranks. Rings, as NCCL and gloo form them, move as much. Each message takes the latency of one round.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from itertools import chain

import torch
import torch.distributed as dist
from torch import Tensor

from muloco_runner.distributed.traffic import Traffic

# Their names from torch 2.13 on, and before.
_all_gather = getattr(dist, "all_gather_single", None) or dist.all_gather_into_tensor
_reduce_scatter = getattr(dist, "reduce_scatter_single", None) or dist.reduce_scatter_tensor


class Transfer:
    """A collective that has been started."""

    def __init__(self, work: dist.Work | None, end: float, traffic: Traffic) -> None:
        self.work, self._end, self._traffic = work, end, traffic

    def wait(self) -> None:
        """Return when the result may be used, and no earlier than the emulated link would have brought it."""
        with self._traffic.waiting(self._end):
            if self.work is not None:
                self.work.wait()


class Collectives:
    """Collectives among the ranks of one process group, counted in `traffic`.

    Arguments are those of `torch.distributed`. With `async_op` the result may be used after `Transfer.wait`.
    """

    def __init__(self, group: dist.ProcessGroup, traffic: Traffic) -> None:
        self.group, self.traffic = group, traffic
        self.rank, self.size = group.rank(), group.size()

    def all_reduce(self, tensor: Tensor, async_op: bool = False) -> Transfer:
        """Replace `tensor` by its elementwise sum over the ranks."""
        num_bytes = -(-2 * (self.size - 1) * tensor.nbytes // self.size)
        return self._run(
            lambda: dist.all_reduce(tensor, group=self.group, async_op=async_op), num_bytes, num_bytes, 2, async_op
        )

    def all_gather(self, out: Tensor, own: Tensor, async_op: bool = False) -> Transfer:
        """Write into `out` the tensors of all ranks, in order along the first axis."""
        num_bytes = (self.size - 1) * own.nbytes
        return self._run(
            lambda: _all_gather(out, own, group=self.group, async_op=async_op), num_bytes, num_bytes, 1, async_op
        )

    def reduce_scatter(
        self, own: Tensor, parts: Tensor, op: dist.ReduceOp.RedOpType = dist.ReduceOp.SUM, async_op: bool = False
    ) -> Transfer:
        """Write into `own` the sum of this rank's part of every rank's `parts`, in order along the first axis."""
        num_bytes = (self.size - 1) * own.nbytes
        return self._run(
            lambda: _reduce_scatter(own, parts, op=op, group=self.group, async_op=async_op),
            num_bytes,
            num_bytes,
            1,
            async_op,
        )

    def all_to_all(
        self,
        out: Tensor,
        sent: Tensor,
        out_sizes: list[int] | None = None,
        sent_sizes: list[int] | None = None,
        async_op: bool = False,
    ) -> Transfer:
        """Send part r of `sent` to rank r; sizes are along the first axis, equal by default."""
        return self._run(
            lambda: dist.all_to_all_single(out, sent, out_sizes, sent_sizes, group=self.group, async_op=async_op),
            self._bytes_of_others(sent, sent_sizes),
            self._bytes_of_others(out, out_sizes),
            1,
            async_op,
        )

    def exchange(
        self, sent: Sequence[Sequence[Tensor]], due: Sequence[Sequence[Sequence[int]]], like: Tensor
    ) -> tuple[Transfer, list[list[Tensor]]]:
        """Start to send list r of `sent` to rank r; return what each rank sends to this one, of the shapes `due`.

        All are of the dtype and on the device of `like`. What is received lies in one buffer, to be read after the
        transfer.
        """
        out, received = _in_one_buffer(due, like)
        buffer, places = _in_one_buffer([[tensor.shape for tensor in tensors] for tensors in sent], like)
        if pieces := list(chain.from_iterable(sent)):
            torch._foreach_copy_(list(chain.from_iterable(places)), pieces)
        out_sizes, sent_sizes = (
            [sum(tensor.numel() for tensor in of_rank) for of_rank in tensors] for tensors in (received, places)
        )
        return self.all_to_all(out, buffer, out_sizes, sent_sizes, async_op=True), received

    def broadcast(self, tensor: Tensor, root: int) -> None:
        """Send the tensor of rank `root` of the group to all ranks, in place."""
        sent, received = ((self.size - 1) * tensor.nbytes, 0) if root == self.rank else (0, tensor.nbytes)
        self._run(lambda: dist.broadcast(tensor, group_src=root, group=self.group), sent, received, 1, False)

    def _bytes_of_others(self, tensor: Tensor, sizes: list[int] | None) -> int:
        if sizes is None:
            return (self.size - 1) * tensor.nbytes // self.size
        row_bytes = tensor[:1].nbytes
        return (sum(sizes) - sizes[self.rank]) * row_bytes

    def _run(
        self, collective: Callable[[], dist.Work | None], sent: int, received: int, rounds: int, async_op: bool
    ) -> Transfer:
        end = self.traffic.begin(sent, received, rounds)
        if async_op:
            return Transfer(collective(), end, self.traffic)
        with self.traffic.waiting(end):
            collective()
        return Transfer(None, end, self.traffic)


def _in_one_buffer(shapes: Sequence[Sequence[Sequence[int]]], like: Tensor) -> tuple[Tensor, list[list[Tensor]]]:
    """Return a flat tensor, and views of it of these shapes, one after the other, in lists as they are."""
    sizes = [math.prod(shape) for of_rank in shapes for shape in of_rank]
    buffer = like.new_empty(sum(sizes))
    pieces = iter(buffer.split(sizes))
    return buffer, [[next(pieces).view(*shape) for shape in of_rank] for of_rank in shapes]


def in_messages(tensors: Sequence[Tensor], most_values: int) -> list[list[Tensor]]:
    """Cut a list of tensors into messages: runs of up to `most_values` values in all, or one larger tensor."""
    messages: list[list[Tensor]] = []
    room = 0
    for tensor in tensors:
        room -= tensor.numel()
        if room < 0 or not messages:
            messages.append([])
            room = most_values - tensor.numel()
        messages[-1].append(tensor)
    return messages
