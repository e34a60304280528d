"""The mean over all workers of a list of tensors, each worker's sent as payloads.

Two ways, with one result where every codec is exact. All-gather: every rank gets every payload and averages all of it.
Reduce-scatter: each worker averages one share of the tensors, encodes that mean and sends it to all; fewer bytes for
more than two workers, and lossy codecs lose twice. Means are taken after decoding, in worker order, so that they do not
depend on which rank holds which worker. Large lists go in several messages, which bounds the memory beside the tensors.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from muloco_runner.diloco.compression import payload
from muloco_runner.diloco.compression.codecs import AnyCodec, Exact
from muloco_runner.diloco.compression.row_ranges import RowRange, cut, full_ranges
from muloco_runner.diloco.error_feedback import Compressor
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
        self, senders: Sequence[Compressor], tensors: Sequence[Sequence[Tensor]], out: Sequence[Tensor]
    ) -> Tensor:
        """Writes the mean into `out`, which may be the tensors of a worker that remembers nothing.

        Given are the compressors of the local workers and what they accepted. Returns the dot products between what
        was sent, by pairs of workers, over what this rank averaged: shape (K, K), float64.
        """
        num_workers = self.communicator.topology.num_workers
        products_KK = torch.zeros(num_workers, num_workers, dtype=torch.float64, device=self.device)
        remembers = any(sender.error is not None for sender in senders)
        for message in self.messages:
            if self._stays_as_it_is and not remembers:
                parts = [[part.of(own) for part in message] for own in tensors]
                self._mean(parts, [part.of(out) for part in message], products_KK)
            elif self.reduce_scatter:
                self._by_shares(message, senders, tensors, out, products_KK)
            else:
                mine = [sender.send(own, message) for sender, own in zip(senders, tensors, strict=True)]
                everyone = self.communicator.gather_over_workers(mine)
                targets = [part.of(out) for part in message]
                self._mean(_decoded(everyone, targets), targets, products_KK)
        return self.communicator.sum_over_workers(products_KK) if self.reduce_scatter else products_KK

    def _by_shares(
        self,
        message: Sequence[RowRange],
        senders: Sequence[Compressor],
        tensors: Sequence[Sequence[Tensor]],
        out: Sequence[Tensor],
        products_KK: Tensor,
    ) -> None:
        """Share k of the message is averaged by the rank that holds worker k."""
        shares = cut(message, self.communicator.topology.num_workers)
        lengths = [self._payload_bytes(share) for share in shares]
        peers = self.communicator.workers_of_peers
        own_workers = peers[self.communicator.peer_index]

        outgoing = []
        for workers in peers:
            payloads = [
                sender.send(own, shares[k])
                for k in workers
                if shares[k]
                for sender, own in zip(senders, tensors, strict=True)
            ]
            outgoing.append(self._join(payloads))
        incoming = [sum(lengths[k] for k in own_workers) * len(workers) for workers in peers]
        # From each peer: for each share averaged here, a payload of each of its workers.
        received = [
            iter(part.split([lengths[k] for k in own_workers if shares[k] for _ in workers]))
            for part, workers in zip(self.communicator.exchange_over_workers(outgoing, incoming), peers, strict=True)
        ]
        means = []
        for k in own_workers:
            if shares[k]:
                everyone = [next(part) for part, workers in zip(received, peers, strict=True) for _ in workers]
                targets = [torch.empty_like(part.of(self.like), device=self.device) for part in shares[k]]
                self._mean(_decoded(everyone, targets), targets, products_KK)
                means.append(payload.encode(targets, [self.codecs[part.tensor] for part in shares[k]]))
        incoming = [sum(lengths[k] for k in workers) for workers in peers]
        averaged = self.communicator.exchange_over_workers([self._join(means)] * len(peers), incoming)
        for part, workers in zip(averaged, peers, strict=True):
            filled = [k for k in workers if shares[k]]
            for k, content in zip(filled, part.split([lengths[k] for k in filled]), strict=True):
                targets = [part.of(out) for part in shares[k]]
                (tensors_of_share,) = _decoded([content], targets)
                torch._foreach_copy_(targets, tensors_of_share)

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

    def _join(self, payloads: Sequence[Tensor]) -> Tensor:
        if not payloads:
            return torch.empty(0, dtype=torch.uint8, device=self.device)
        return torch.cat(list(payloads))


def _decoded(payloads: Sequence[Tensor], like: Sequence[Tensor]) -> list[list[Tensor]]:
    """The tensors of each payload, which are due in the shapes of `like`."""
    return [payload.decode(content, [tensor.shape for tensor in like]) for content in payloads]
