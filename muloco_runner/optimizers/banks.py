"""Which bank updates which parameters, and the averaging of gradients over the ranks that share them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Protocol

import torch
import torch.distributed as dist
from torch import Tensor

from muloco_runner.optimizers.adamw_bank import AdamWBank
from muloco_runner.optimizers.in_flight import InFlight
from muloco_runner.optimizers.matrix_bank import MatrixBank
from muloco_runner.optimizers.owners import Owners
from muloco_runner.optimizers.placement import is_distributed, sharding_group
from muloco_runner.optimizers.sharded_bank import ShardedBank
from muloco_runner.optimizers.shared_bank import SharedBank


class Bank(Protocol):
    """Parameters of one group that are updated together."""

    parameters: list[Tensor]

    def state(self, index: int) -> dict[str, Tensor]:
        """What is kept for a parameter on this rank, by name."""
        ...

    def prepare(self, group: dict[str, Any], gradients: Sequence[Tensor | None], clip: Tensor | None) -> None:
        """Takes the gradients of the next step, one a parameter, and a factor on them (0-D) if any."""
        ...

    def launch(self, group: dict[str, Any], in_flight: InFlight) -> None:
        """The step, with the hyper-parameters of `group`. What travels is left in `in_flight`."""
        ...


def create_banks(
    group: dict[str, Any], process_group: dist.ProcessGroup | None, owners: dict[int, Owners]
) -> list[Bank]:
    """The banks of a group, matrices with the most arithmetic first, as dealing them to ranks evenly wants.

    `owners` keeps, by number of ranks, what has been dealt before.
    """
    if group["algorithm"] == "adamw":
        return [AdamWBank(group["params"])]
    alike: dict[tuple[Any, ...], list[Tensor]] = {}
    for parameter in group["params"]:
        alike.setdefault((parameter.shape, parameter.dtype, parameter.device), []).append(parameter)
    banks: list[Bank] = []
    for parameters in sorted(alike.values(), key=lambda same: -min(same[0].shape) * same[0].numel()):
        backend = group["backend"]
        if is_distributed(parameters[0]):
            num_ranks = sharding_group(parameters[0]).size()
            banks.append(ShardedBank(parameters, backend, owners.setdefault(num_ranks, Owners(num_ranks))))
        elif process_group is not None and process_group.size() > 1:
            num_ranks = process_group.size()
            dealer = owners.setdefault(num_ranks, Owners(num_ranks))
            banks.append(SharedBank(parameters, backend, process_group, dealer))
        else:
            banks.append(MatrixBank(parameters, backend))
    return banks


def average_gradients(
    banks: list[Bank], process_group: dist.ProcessGroup | None
) -> tuple[dict[Tensor, Tensor | None], Tensor]:
    """Each parameter's gradient averaged over the ranks (None where another rank needs it), and their common norm."""
    averaged: dict[Tensor, Tensor | None] = {}
    rest = []
    for bank in banks:
        if isinstance(bank, SharedBank):
            means = bank.average_gradients([parameter.grad for parameter in bank.parameters])
            averaged.update(zip(bank.parameters, means, strict=True))
        else:
            rest += [parameter for parameter in bank.parameters if parameter.grad is not None]
    if any(is_distributed(parameter) for parameter in rest):
        raise ValueError("gradients of sharded parameters are averaged by fully_shard: call step() alone")
    of_owners = [gradient for gradient in averaged.values() if gradient is not None]
    everywhere = [parameter.grad for parameter in rest if parameter.grad is not None]
    squares = _sum_of_squares(of_owners, banks)
    if process_group is not None and process_group.size() > 1:
        dist.all_reduce(squares, group=process_group)
        everywhere = _all_reduce_mean(everywhere, process_group)
        averaged.update(zip(rest, everywhere, strict=True))
    return averaged, (squares + _sum_of_squares(everywhere, banks)).sqrt()


def _all_reduce_mean(tensors: list[Tensor], process_group: dist.ProcessGroup) -> list[Tensor]:
    """Means over the ranks, in one message."""
    if not tensors:
        return []
    flat = torch.cat([tensor.flatten() for tensor in tensors])
    dist.all_reduce(flat, group=process_group)
    flat /= process_group.size()
    pieces = flat.split([tensor.numel() for tensor in tensors])
    return [piece.view_as(tensor) for piece, tensor in zip(pieces, tensors, strict=True)]


def _sum_of_squares(tensors: list[Tensor], banks: list[Bank]) -> Tensor:
    """float32, 0-D."""
    if not tensors:
        return torch.zeros((), device=banks[0].parameters[0].device)
    return torch.stack(torch._foreach_norm(tensors, dtype=torch.float32)).square().sum()
