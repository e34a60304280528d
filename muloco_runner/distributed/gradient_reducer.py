"""Gradients on their way to the ranks that need their sum: a matrix's to its owner alone, any other to every rank.

They leave in messages, always in the same order, so that ranks need not ask one another: each as soon as its gradients
are there and the messages before it have left. Put in while a backward pass makes them, they travel beside it.

Axes: P ranks, W values of a lane in one message.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from muloco_runner.distributed import owner_buffers as lanes
from muloco_runner.distributed.collectives import Collectives, Transfer, in_messages
from muloco_runner.distributed.owner_buffers import Lanes

ELSEWHERE = torch.empty(0)
"""Stands for a gradient that another rank has."""

Scatter = Callable[[Tensor, Tensor], Transfer]
"""Begins to fill its first argument (W) with the sum over the ranks of their row for this rank of the second (P, W)."""


class GradientSums:
    """Of one backward pass after the other. All ranks put in gradients of the same parameters."""

    def __init__(
        self,
        expected: Iterable[Tensor],
        owners: Mapping[Tensor, int],
        replicas: Collectives,
        scatter: Scatter | None = None,
    ) -> None:
        """`expected` are parameters in the order in which their gradients come, about; `owners` the ranks that own some
        of them. `scatter` is a reduce-scatter, unless told otherwise."""
        scatter = scatter or (lambda mine, parts: replicas.reduce_scatter(mine, parts.view(-1), async_op=True))
        self._order = {parameter: place for place, parameter in enumerate(expected)}
        alike: dict[tuple[bool, torch.dtype, torch.device], list[Tensor]] = {}
        for parameter in self._order:
            alike.setdefault((parameter in owners, parameter.dtype, parameter.device), []).append(parameter)
        self._streams: list[_Stream] = [
            _ToOwners(parameters, owners, replicas, scatter) if owned else _ToAll(parameters, replicas)
            for (owned, *_), parameters in alike.items()
        ]
        self._stream_of = {parameter: stream for stream in self._streams for parameter in stream.parameters}
        messages = [
            _Message(stream, number, content)
            for stream in self._streams
            for number, content in enumerate(stream.contents)
        ]
        # In the order in which they will be complete.
        self._messages = sorted(messages, key=lambda message: max(map(self._order.__getitem__, message.content)))
        self._put: set[Tensor] = set()
        self._num_sent = 0

    def put(self, parameter: Tensor, gradient: Tensor) -> None:
        """This rank's gradient, which is given away: its memory may be changed."""
        self._stream_of[parameter].take(parameter, gradient)
        self._put.add(parameter)
        while self._num_sent < len(self._messages) and self._messages[self._num_sent].content <= self._put:
            self._send_next()

    def end(self) -> dict[Tensor, Tensor]:
        """The sums, for parameters of which a gradient was put in: `ELSEWHERE` where another rank needs it."""
        while self._num_sent < len(self._messages):
            self._send_next()
        sums: dict[Tensor, Tensor] = {}
        for stream in self._streams:
            sums.update(stream.end())
        put, self._put, self._num_sent = self._put, set(), 0
        return {parameter: sums.get(parameter, ELSEWHERE) for parameter in self._order if parameter in put}

    def _send_next(self) -> None:
        message = self._messages[self._num_sent]
        message.stream.send(message.number)
        self._num_sent += 1


class _Stream(Protocol):
    """Gradients of one dtype and device that go one way."""

    parameters: list[Tensor]
    contents: list[set[Tensor]]
    """Of each message: the parameters of which it has something."""

    def take(self, parameter: Tensor, gradient: Tensor) -> None: ...

    def send(self, number: int) -> None:
        """Message `number`, with what there is."""

    def end(self) -> dict[Tensor, Tensor]:
        """The sums that are needed here."""


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
        self._lanes = Lanes([p.numel() for p in parameters], [owners[p] for p in parameters], replicas.size)
        self._index = {parameter: index for index, parameter in enumerate(parameters)}
        self.contents = [{parameters[index] for index, _ in content} for content in self._lanes.contents]
        self._leaving: dict[int, Tensor] = {}
        """Messages (P, W) that are being filled."""
        self._mine: Tensor | None = None
        """The sums of this rank's lane."""
        self._transfers: list[Transfer] = []

    def take(self, parameter: Tensor, gradient: Tensor) -> None:
        index, values = self._index[parameter], gradient.flatten()
        for message, part in self._lanes.parts[index].items():
            if message not in self._leaving:
                # Zeros for padding, and for matrices without a gradient.
                self._leaving[message] = values.new_zeros(self._replicas.size, self._lanes.width)
            self._leaving[message][self._lanes.owners[index], part.in_lane].copy_(values[part.in_matrix])

    def send(self, number: int) -> None:
        leaving_PW = self._leaving.pop(number, None)
        if leaving_PW is not None:  # else no rank has a gradient of these
            self._transfers.append(self._scatter(self._own_lane()[number], leaving_PW))

    def end(self) -> dict[Tensor, Tensor]:
        for transfer in self._transfers:
            transfer.wait()
        mine = self._own_lane().view(-1)
        self._mine, self._transfers = None, []
        return {
            parameter: mine[self._lanes.in_lane(index)].view_as(parameter)
            for parameter, index in self._index.items()
            if self._lanes.owners[index] == self._replicas.rank
        }

    def _own_lane(self) -> Tensor:
        if self._mine is None:
            self._mine = self.parameters[0].new_empty(self._lanes.num_messages, self._lanes.width)
        return self._mine


class _ToAll:
    def __init__(self, parameters: list[Tensor], replicas: Collectives) -> None:
        self.parameters, self._replicas = parameters, replicas
        self._messages = in_messages(parameters, lanes.OWNER_MESSAGE_VALUES)
        self.contents = [set(message) for message in self._messages]
        self._gradients: dict[Tensor, Tensor] = {}
        self._under_way: list[tuple[list[Tensor], Tensor, Transfer]] = []

    def take(self, parameter: Tensor, gradient: Tensor) -> None:
        self._gradients[parameter] = gradient

    def send(self, number: int) -> None:
        there = [parameter for parameter in self._messages[number] if parameter in self._gradients]
        gradients = [self._gradients.pop(parameter) for parameter in there]
        if not gradients:
            return
        flat = torch.cat([g.flatten() for g in gradients]) if len(gradients) > 1 else gradients[0].contiguous()
        self._under_way.append((there, flat, self._replicas.all_reduce(flat, async_op=True)))

    def end(self) -> dict[Tensor, Tensor]:
        sums = {}
        for parameters, flat, transfer in self._under_way:
            transfer.wait()
            pieces = flat.view(-1).split([parameter.numel() for parameter in parameters])
            sums.update({p: piece.view_as(p) for p, piece in zip(parameters, pieces, strict=True)})
        self._under_way = []
        return sums


def total_norm(
    gradients: Mapping[Tensor, Tensor | None], owners: Mapping[Tensor, int], replicas: Collectives | None
) -> Tensor:
    """The norm of all parameters' gradients together (0-D, float32), of which those of matrices lie with their owners.

    The same on every rank, and to the bit what a rank that had them all would make of them.
    """
    rank = 0 if replicas is None else replicas.rank
    here = {p: g for p, g in gradients.items() if g is not None and owners.get(p, 0) == rank}
    norm_of = (
        dict(zip(here, torch._foreach_norm(list(here.values()), dtype=torch.float32), strict=True)) if here else {}
    )
    elsewhere = torch.zeros((), device=next(iter(gradients)).device)
    norms = torch.stack([norm_of.get(parameter, elsewhere) for parameter in gradients])
    if replicas is not None:
        replicas.all_reduce(norms)
    return torch.linalg.vector_norm(norms)
