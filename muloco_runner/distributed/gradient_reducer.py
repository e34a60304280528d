"""Sums of gradients over the ranks that need them: a matrix's at its owner alone, any other's on every rank.

Gradients are sent in messages, always in the same order, so that ranks need not ask one another: each message as soon
as its gradients are there and the messages before it have been sent. Added while a backward pass computes them, they
are sent beside it.

Axes: P ranks, W values of an owner buffer in one message.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from muloco_runner.distributed import message_sizes
from muloco_runner.distributed.collectives import Collectives, Transfer, in_messages
from muloco_runner.distributed.owner_buffers import OwnerBuffers

Scatter = Callable[[Tensor, Tensor], Transfer]
"""Starts to write into its first argument (W) the sum over the ranks of this rank's row of their second (P, W)."""


class GradientReducer:
    """Sums the gradients of one backward pass after the other. All ranks add gradients of the same parameters."""

    def __init__(
        self,
        expected: Iterable[Tensor],
        owners: Mapping[Tensor, int],
        replicas: Collectives,
        scatter: Scatter | None = None,
    ) -> None:
        """`expected` are all parameters, about in the order in which their gradients are added; `owners` are the ranks
        that own some of them. `scatter` is by default a reduce-scatter among `replicas`."""
        scatter = scatter or (lambda mine, parts: replicas.reduce_scatter(mine, parts.view(-1), async_op=True))
        self._order = {parameter: number for number, parameter in enumerate(expected)}
        by_kind: dict[tuple[bool, torch.dtype, torch.device], list[Tensor]] = {}
        for parameter in self._order:
            by_kind.setdefault((parameter in owners, parameter.dtype, parameter.device), []).append(parameter)
        self._streams: list[_Stream] = [
            _ToOwners(parameters, owners, replicas, scatter) if owned else _ToAll(parameters, replicas)
            for (owned, *_), parameters in by_kind.items()
        ]
        self._stream_of = {parameter: stream for stream in self._streams for parameter in stream.parameters}
        messages = [
            _Message(stream, number, content)
            for stream in self._streams
            for number, content in enumerate(stream.contents)
        ]
        # In the order in which they will be complete.
        self._messages = sorted(messages, key=lambda message: max(map(self._order.__getitem__, message.content)))
        self._added: set[Tensor] = set()
        self._num_sent = 0

    def add(self, parameter: Tensor, gradient: Tensor) -> None:
        """Add this rank's gradient of a parameter. Its memory may be overwritten from here on."""
        self._stream_of[parameter].add(parameter, gradient)
        self._added.add(parameter)
        while self._num_sent < len(self._messages) and self._messages[self._num_sent].content <= self._added:
            self._send_next()

    def finish(self) -> dict[Tensor, Tensor | None]:
        """Return the sum of each parameter: None where another rank needs it.

        A parameter that no gradient was added for is a `RuntimeError`: the sums of other ranks would wait for it, or be
        mixed up.
        """
        if missing := len(self._order) - len(self._added):
            raise RuntimeError(
                f"{missing} of {len(self._order)} parameters have no gradient here: ranks must add gradients of "
                "the same parameters, zeros where a batch did not use one"
            )
        sums: dict[Tensor, Tensor] = {}
        for stream in self._streams:
            sums.update(stream.finish())
        self._added, self._num_sent = set(), 0
        return {parameter: sums.get(parameter) for parameter in self._order}

    def _send_next(self) -> None:
        message = self._messages[self._num_sent]
        message.stream.send(message.number)
        self._num_sent += 1


class _Stream(Protocol):
    """Gradients of one dtype and device, sent by one kind of collective."""

    parameters: list[Tensor]
    contents: list[set[Tensor]]
    """The parameters of which each message has values."""

    def add(self, parameter: Tensor, gradient: Tensor) -> None: ...

    def send(self, number: int) -> None:
        """Send message `number`, all of whose gradients were added."""

    def finish(self) -> dict[Tensor, Tensor]:
        """Return the sums that this rank needs."""


@dataclass(frozen=True)
class _Message:
    stream: _Stream
    number: int
    content: set[Tensor]


class _ToOwners:
    def __init__(
        self, parameters: list[Tensor], owners: Mapping[Tensor, int], replicas: Collectives, scatter: Scatter
    ) -> None:
        self.parameters, self._scatter, self._replicas = parameters, scatter, replicas
        self._buffers = OwnerBuffers([p.numel() for p in parameters], [owners[p] for p in parameters], replicas.size)
        self._index = {parameter: index for index, parameter in enumerate(parameters)}
        self.contents = [{parameters[index] for index, _ in content} for content in self._buffers.contents]
        self._unsent: dict[int, Tensor] = {}
        """Messages (P, W) that are being filled, by number."""
        self._own: Tensor | None = None
        """The sums in this rank's owner buffer (messages, W)."""
        self._transfers: list[Transfer] = []

    def add(self, parameter: Tensor, gradient: Tensor) -> None:
        index, values = self._index[parameter], gradient.flatten()
        for message, part in self._buffers.parts[index].items():
            if message not in self._unsent:
                # Zeros for padding.
                self._unsent[message] = values.new_zeros(self._replicas.size, self._buffers.width)
            self._unsent[message][self._buffers.owners[index], part.in_buffer].copy_(values[part.in_matrix])

    def send(self, number: int) -> None:
        self._transfers.append(self._scatter(self._own_buffer()[number], self._unsent.pop(number)))

    def finish(self) -> dict[Tensor, Tensor]:
        for transfer in self._transfers:
            transfer.wait()
        sums = self._own_buffer().view(-1)
        self._own, self._transfers = None, []
        return {
            parameter: sums[self._buffers.in_buffer(index)].view_as(parameter)
            for parameter, index in self._index.items()
            if self._buffers.owners[index] == self._replicas.rank
        }

    def _own_buffer(self) -> Tensor:
        if self._own is None:
            self._own = self.parameters[0].new_empty(self._buffers.num_messages, self._buffers.width)
        return self._own


class _ToAll:
    def __init__(self, parameters: list[Tensor], replicas: Collectives) -> None:
        self.parameters, self._replicas = parameters, replicas
        self._messages = in_messages(parameters, message_sizes.OWNER_MESSAGE_VALUES)
        self.contents = [set(message) for message in self._messages]
        self._gradients: dict[Tensor, Tensor] = {}
        self._pending: list[tuple[list[Tensor], Tensor, Transfer]] = []

    def add(self, parameter: Tensor, gradient: Tensor) -> None:
        self._gradients[parameter] = gradient

    def send(self, number: int) -> None:
        parameters = self._messages[number]
        gradients = [self._gradients.pop(parameter) for parameter in parameters]
        flat = torch.cat([g.flatten() for g in gradients]) if len(gradients) > 1 else gradients[0].contiguous()
        self._pending.append((parameters, flat, self._replicas.all_reduce(flat, async_op=True)))

    def finish(self) -> dict[Tensor, Tensor]:
        sums = {}
        for parameters, flat, transfer in self._pending:
            transfer.wait()
            pieces = flat.view(-1).split([parameter.numel() for parameter in parameters])
            sums.update({p: piece.view_as(p) for p, piece in zip(parameters, pieces, strict=True)})
        self._pending = []
        return sums


def total_norm(
    gradients: Mapping[Tensor, Tensor | None], owners: Mapping[Tensor, int], replicas: Collectives | None
) -> Tensor:
    """Return the norm of all parameters' gradients (0-D, float32), where owners alone have those of their matrices.

    The same on every rank, and to the bit what one rank with all gradients would compute.
    """
    rank = 0 if replicas is None else replicas.rank
    own = {p: g for p, g in gradients.items() if g is not None and owners.get(p, 0) == rank}
    norm_of = dict(zip(own, torch._foreach_norm(list(own.values()), dtype=torch.float32), strict=True)) if own else {}
    not_owned = torch.zeros((), device=next(iter(gradients)).device)
    norms = torch.stack([norm_of.get(parameter, not_owned) for parameter in gradients])
    if replicas is not None:
        replicas.all_reduce(norms)
    norm: Tensor = torch.linalg.vector_norm(norms)
    return norm
