"""Which bank updates which parameters, and the averaging of gradients over the ranks that share them."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol, runtime_checkable

import torch
from torch import Tensor

from muloco_runner.distributed.collectives import Collectives
from muloco_runner.distributed.dtensor import is_distributed, sharding_group, state_dtype
from muloco_runner.distributed.gradient_reducer import ELSEWHERE, GradientSums, total_norm
from muloco_runner.distributed.ownership import Owners
from muloco_runner.distributed.pending import InFlight
from muloco_runner.distributed.traffic import Traffic
from muloco_runner.optimizers.arena import Arena
from muloco_runner.optimizers.buckets.adamw import AdamWBank
from muloco_runner.optimizers.buckets.base import MatrixBank
from muloco_runner.optimizers.buckets.replicated import SharedBank
from muloco_runner.optimizers.buckets.sharded import ShardedBank
from muloco_runner.optimizers.orthogonalize import TRITON_DTYPES, choose_backend, result_dtype


class Bank(Protocol):
    """Parameters of one group that are updated together."""

    parameters: list[Tensor]
    gradients: list[Tensor | None]
    """Of the step that was prepared; empty once it is done."""

    def state(self, index: int) -> dict[str, Tensor]:
        """What is kept for a parameter on this rank, by name."""
        ...

    def prepare(self, group: dict[str, Any], gradients: Sequence[Tensor | None], clip: Tensor | None) -> None:
        """Takes the gradients of the next step, one a parameter, and a factor on them (0-D) if any."""
        ...

    def launch(self, group: dict[str, Any], in_flight: InFlight) -> None:
        """The step, with the hyper-parameters of `group`. What travels is left in `in_flight`."""
        ...


@runtime_checkable
class Replayable(Bank, Protocol):
    """A bank whose launches a captured graph may replay: what changes between steps is all refreshed in `prepare`."""

    def baked(self, group: dict[str, Any]) -> tuple[Any, ...]:
        """What a captured launch cannot change any more."""
        ...


@dataclass
class Shared:
    """What the banks of one optimizer have in common."""

    replicas: Collectives | None = None
    """The ranks that hold the same parameters, where several share the work."""
    traffic: Traffic = field(default_factory=Traffic)
    owners: dict[int, Owners] = field(default_factory=dict)
    """What has been dealt so far, by the number of ranks that share."""
    arena: Arena = field(default_factory=Arena)
    """Memory of the fused banks' workspaces."""

    def dealer(self, num_ranks: int) -> Owners:
        """Of matrices to that many ranks."""
        return self.owners.setdefault(num_ranks, Owners(num_ranks))


def create_banks(group: dict[str, Any], shared: Shared) -> list[Bank]:
    """The banks of a group, matrices with the most arithmetic first, as dealing them to ranks evenly wants."""
    alike: dict[tuple[Any, ...], list[Tensor]] = {}
    is_muon = group["algorithm"] == "muon"
    for parameter in group["params"]:
        alike.setdefault((is_muon and parameter.shape, parameter.dtype, parameter.device), []).append(parameter)
    if not is_muon:
        return [_adamw_bank(parameters, group["backend"]) for parameters in alike.values()]
    by_cost = sorted(alike.values(), key=lambda same: -min(same[0].shape) * same[0].numel())
    alone = [same for same in by_cost if shared.replicas is None or is_distributed(same[0])]
    _reserve_workspace(alone, group["backend"], shared.arena)
    banks = [_matrix_bank(parameters, group["backend"], shared) for parameters in alone]
    if shared.replicas is not None:
        copies = [same for same in by_cost if not is_distributed(same[0])]
        banks += _shared_banks(copies, group["backend"], shared.replicas, shared.dealer(shared.replicas.size))
    return banks


def _adamw_bank(parameters: list[Tensor], backend: str) -> Bank:
    if _to_be_fused(parameters, backend):
        from muloco_runner.optimizers.buckets.fused import FusedAdamWBank

        return FusedAdamWBank(parameters)
    return AdamWBank(parameters)


def _matrix_bank(parameters: list[Tensor], backend: str, shared: Shared) -> Bank:
    if is_distributed(parameters[0]):
        shards = Collectives(sharding_group(parameters[0]), shared.traffic)
        return ShardedBank(parameters, backend, shards, shared.dealer(shards.size))
    if _to_be_fused(parameters, backend):
        from muloco_runner.optimizers.buckets.fused import FusedMatrixBank

        return FusedMatrixBank(parameters, backend, shared.arena)
    return MatrixBank(parameters, backend)


def _shared_banks(alike: list[list[Tensor]], backend: str, replicas: Collectives, owners: Owners) -> list[Bank]:
    """One for each dtype of results: these go to other ranks together, whatever their shapes."""
    together: dict[tuple[torch.dtype, torch.device], list[list[Tensor]]] = {}
    for same in alike:
        (rows, columns), device = same[0].shape, same[0].device
        dtype = result_dtype(choose_backend(backend, device), rows, columns, state_dtype(same[0]))
        together.setdefault((dtype, device), []).append(same)
    return [SharedBank(same, backend, replicas, owners, dtype) for (dtype, _), same in together.items()]


def _reserve_workspace(alike: list[list[Tensor]], backend: str, arena: Arena) -> None:
    """Of the size of the largest, so that all banks share one memory."""
    to_be_fused = [parameters for parameters in alike if _to_be_fused(parameters, backend)]
    if to_be_fused:
        from muloco_runner.optimizers.buckets.fused import needed_workspace

        needed = max(needed_workspace(parameters, backend) for parameters in to_be_fused)
        arena.take(needed, to_be_fused[0][0].device)


def _to_be_fused(parameters: list[Tensor], backend: str) -> bool:
    if choose_backend(backend, parameters[0].device) not in TRITON_DTYPES or is_distributed(parameters[0]):
        return False
    from muloco_runner.optimizers.buckets.fused import can_be_fused

    return can_be_fused(parameters)


def owners_of(banks: Iterable[Bank]) -> dict[Tensor, int]:
    """The ranks that own the matrices on which replicas share the work."""
    shared = [bank for bank in banks if isinstance(bank, SharedBank)]
    return {p: owner for bank in shared for p, owner in zip(bank.parameters, bank.owners, strict=True)}


def average_gradients(banks: Sequence[Bank], replicas: Collectives | None) -> tuple[dict[Tensor, Tensor], Tensor]:
    """Each parameter's gradient averaged over the ranks (`ELSEWHERE` where another one needs it), and their norm."""
    parameters = [parameter for bank in banks for parameter in bank.parameters]
    gradients = {parameter: parameter.grad for parameter in parameters if parameter.grad is not None}
    if any(is_distributed(parameter) for parameter in gradients):
        raise ValueError("gradients of sharded parameters are averaged by fully_shard: call step() alone")
    owners = owners_of(banks)
    if replicas is not None:
        sums = GradientSums(parameters, owners, replicas)
        for parameter, gradient in gradients.items():
            sums.put(parameter, gradient if parameter in owners else gradient.clone())
        gradients = sums.end()
        for gradient in gradients.values():
            if gradient is not ELSEWHERE:
                gradient.div_(replicas.size)
    return gradients, total_norm({parameter: gradients.get(parameter) for parameter in parameters}, owners, replicas)
