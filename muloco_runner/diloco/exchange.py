"""The mean over all workers of a list of tensors, each worker's sent as payloads.

Two ways, with one result where every codec is exact. All-gather: every rank gets every payload and averages all of it.
Reduce-scatter: each worker averages one share of the tensors, encodes that mean and sends it to all; fewer bytes for
more than two workers, and lossy codecs lose twice. Means are taken after decoding, in worker order, so that they do not
depend on which rank holds which worker. Large lists go in several messages, which bounds the memory beside the tensors.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import chain

import torch
from torch import Tensor

from muloco_runner.diloco.compression import payload
from muloco_runner.diloco.compression.codecs import AnyCodec, Exact
from muloco_runner.diloco.compression.row_ranges import RowRange, cut, full_ranges
from muloco_runner.distributed.communicator import Communicator
from muloco_runner.distributed.message_sizes import MESSAGE_VALUES


class Exchange:
    """Averages tensors of given shapes over the worker peers."""

    def __init__(
        self,
        like: Sequence[Tensor],
        codecs: Sequence[AnyCodec],
        reduce_scatter: bool,
        communicator: Communicator,
        device: torch.device,
    ) -> None:
        self.like, self.codecs, self.communicator, self.device = like, codecs, communicator, device
        self.reduce_scatter = reduce_scatter
        is_exact = all(isinstance(codec, Exact) for codec in codecs)
        self._stays_as_it_is = len(communicator.workers_of_peers) == 1 and is_exact
        """All workers are on this rank and no codec changes a value: a payload would be written to be read at once."""
        ranges = full_ranges(like, codecs)
        messages = cut(ranges, -(-sum(part.size for part in ranges) // MESSAGE_VALUES) or 1)
        self.messages = [message for message in messages if message]
        self.payload_bytes = sum(
            self._payload_bytes(part)
            for message in self.messages
            for part in (cut(message, communicator.topology.num_workers) if reduce_scatter else [message])
        )
        """Bytes of one worker's payloads."""

    def average(
        self, tensors: Sequence[Sequence[Tensor]], out: Sequence[Tensor], *, leave_rest: bool = False
    ) -> Tensor:
        """Write into `out` the mean of what all workers send of their `tensors`; given are the local workers'.

        With `leave_rest` a worker's tensors hold afterwards what its payloads did not carry; without, `out` may be one
        worker's tensors. Returns the dot products between what was sent, by pairs of workers, over what this rank
        averaged: shape (K, K), float64.
        """
        num_workers = self.communicator.topology.num_workers
        products_KK = torch.zeros(num_workers, num_workers, dtype=torch.float64, device=self.device)
        for message in self.messages:
            targets = [part.of(out) for part in message]
            if self._stays_as_it_is and not leave_rest:
                self._mean([[part.of(own) for part in message] for own in tensors], targets, products_KK)
            elif self.reduce_scatter:
                self._by_shares(message, tensors, out, leave_rest, products_KK)
            else:
                payloads = [self._payload(own, message, leave_rest) for own in tensors]
                everyone = self.communicator.gather_over_workers(payloads)
                self._mean(_decoded(everyone, targets), targets, products_KK)
        return self.communicator.sum_over_workers(products_KK) if self.reduce_scatter else products_KK

    def _by_shares(
        self,
        message: Sequence[RowRange],
        tensors: Sequence[Sequence[Tensor]],
        out: Sequence[Tensor],
        leave_rest: bool,
        products_KK: Tensor,
    ) -> None:
        """Share k of the message is averaged by the rank that holds worker k."""
        cuts = enumerate(cut(message, self.communicator.topology.num_workers))
        shares = {k: _Share(ranges, self._payload_bytes(ranges)) for k, ranges in cuts if ranges}
        everyone = self._to_averagers(shares, tensors, leave_rest)
        # Payloads are freed once they are averaged.
        means = {k: self._averaged(shares[k], everyone.pop(k), products_KK) for k in list(everyone)}
        for k, mean in self._to_all(shares, means).items():
            targets = [part.of(out) for part in shares[k].ranges]
            (decoded,) = _decoded([mean], targets)
            torch._foreach_copy_(targets, decoded)

    def _to_averagers(
        self, shares: Mapping[int, _Share], tensors: Sequence[Sequence[Tensor]], leave_rest: bool
    ) -> dict[int, list[Tensor]]:
        """Send the local workers' payloads of each share to the rank that averages it; return all workers' payloads,
        in the workers' order, of each share that this rank averages."""
        sent = [
            [self._payload(own, shares[k].ranges, leave_rest) for k in averaged for own in tensors]
            for averaged in self._shares_of_peers(shares)
        ]
        mine = self._shares_of_peers(shares)[self.communicator.peer_index]
        # From each peer: for each share averaged here, a payload of each of its workers.
        due = [[k for k in mine for _ in workers] for workers in self.communicator.workers_of_peers]
        received: dict[int, list[Tensor]] = {k: [] for k in mine}
        for k, content in self._exchanged(shares, sent, due):
            received[k].append(content)
        return received

    def _averaged(self, share: _Share, everyone: Sequence[Tensor], products_KK: Tensor) -> Tensor:
        """The payload of the mean of all workers' payloads of a share."""
        targets = [torch.empty_like(part.of(self.like), device=self.device) for part in share.ranges]
        self._mean(_decoded(everyone, targets), targets, products_KK)
        return payload.encode(targets, [self.codecs[part.tensor] for part in share.ranges])

    def _to_all(self, shares: Mapping[int, _Share], means: Mapping[int, Tensor]) -> dict[int, Tensor]:
        """Send the means of the shares that this rank averages to all; return the means of all shares."""
        due = self._shares_of_peers(shares)
        return dict(self._exchanged(shares, [list(means.values()) for _ in due], due))

    def _exchanged(
        self, shares: Mapping[int, _Share], sent: list[list[Tensor]], due: Sequence[Sequence[int]]
    ) -> Iterator[tuple[int, Tensor]]:
        """Send each worker peer its payloads; return those of the shares `due` from each, and which share's each is."""
        shapes = [[(shares[k].payload_bytes,) for k in numbers] for numbers in due]
        like = torch.empty(0, dtype=torch.uint8, device=self.device)
        received = self.communicator.exchange_over_workers(sent, shapes, like)
        return zip(chain.from_iterable(due), chain.from_iterable(received), strict=True)

    def _shares_of_peers(self, shares: Mapping[int, _Share]) -> list[list[int]]:
        """Which shares each rank averages: those of its workers."""
        return [[k for k in workers if k in shares] for workers in self.communicator.workers_of_peers]

    def _payload(self, tensors: Sequence[Tensor], ranges: Sequence[RowRange], leave_rest: bool) -> Tensor:
        parts = [part.of(tensors) for part in ranges]
        content = payload.encode(parts, [self.codecs[part.tensor] for part in ranges])
        if leave_rest:
            torch._foreach_sub_(parts, payload.decode(content))
        return content

    @staticmethod
    def _mean(workers: Sequence[Sequence[Tensor]], out: Sequence[Tensor], products_KK: Tensor) -> None:
        """Writes the mean of all workers' tensors, taken in their order."""
        for index, target in enumerate(out):
            sent = [tensors[index] for tensors in workers]
            if len(sent) == 1:  # a single worker has no other to be compared with
                target.copy_(sent[0])
                continue
            total = sent[0].clone()
            for tensor in sent[1:]:
                total += tensor
            target.copy_(total.div_(len(sent)))
            sent_KN = torch.stack([tensor.flatten() for tensor in sent])
            products_KK += sent_KN @ sent_KN.T

    def _payload_bytes(self, ranges: Sequence[RowRange]) -> int:
        if not ranges:
            return 0
        parts = [(part.of(self.like), self.codecs[part.tensor]) for part in ranges]
        return payload.payload_bytes([payload.Descriptor.of(part.shape, part.dtype, codec) for part, codec in parts])


@dataclass(frozen=True)
class _Share:
    """What one worker's rank averages of a message."""

    ranges: Sequence[RowRange]
    payload_bytes: int


def _decoded(payloads: Sequence[Tensor], like: Sequence[Tensor]) -> list[list[Tensor]]:
    """The tensors of each payload, which are due in the shapes of `like`."""
    return [payload.decode(content, [tensor.shape for tensor in like]) for content in payloads]
