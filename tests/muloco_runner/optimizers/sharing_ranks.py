"""One rank of two that share Muon's work on a toy model; also the same training without sharing, to compare with.

Run as `sharing_ranks.py FOLDER RANK`: leaves FOLDER/RANK.pt, a dictionary of outcomes.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

from muloco_runner.distributed.traffic import Traffic
from muloco_runner.optimizers import Muon
from muloco_runner.optimizers.orthogonalize import cpu

# Odd numbers of matrices and of rows: shares cannot be equal.
SHAPES = [(12, 8)] * 3 + [(9, 20)] * 2 + [(1, 5)] + [(35, 33)]
CLIP = 0.5


def build(seed: int = 0) -> nn.Module:
    """Matrices for Muon, a gain and an embedding for AdamW."""
    generator = torch.Generator().manual_seed(seed)

    def parameter(*shape: int) -> nn.Parameter:
        return nn.Parameter(torch.randn(shape, generator=generator))

    model = nn.Module()
    for index, shape in enumerate(SHAPES):
        model.register_parameter(f"matrix{index}", parameter(*shape))
    model.register_parameter("gain", parameter(7))
    model.register_parameter("embedding", parameter(11, 4))
    return model


def groups(model: nn.Module) -> list[dict[str, Any]]:
    named = dict(model.named_parameters())
    return [
        {"params": [p for name, p in named.items() if name.startswith("matrix")]},
        {"params": [p for name, p in named.items() if not name.startswith("matrix")], "algorithm": "adamw"},
    ]


def gradient(step: int, index: int, shape: torch.Size, rank: int | None = None) -> Tensor | None:
    """The mean gradient of a parameter at a step, or that of one rank of two; None where the model did not use it."""
    if (step, index) == (1, 2):
        return None
    mean, difference = torch.randn(2, *shape, generator=torch.Generator().manual_seed(1000 * step + index))
    # A power of two, so that the mean over both ranks is exact.
    return mean if rank is None else mean + 2.0**-3 * difference * (1 - 2 * rank)


def set_gradients(model: nn.Module, step: int, rank: int | None = None) -> None:
    for index, parameter in enumerate(model.parameters()):
        parameter.grad = gradient(step, index, parameter.shape, rank)


def optimizer_of(model: nn.Module, backend: str, **changes: Any) -> Muon:
    return Muon(groups(model), 0.05, weight_decay=0.1, nesterov=True, backend=backend, **changes)


def values(model: nn.Module) -> list[Tensor]:
    return [parameter.detach().clone() for parameter in model.parameters()]


def alone(backend: str, steps: range = range(4), clip: float | None = None) -> tuple[nn.Module, Muon]:
    """What sharing must lead to."""
    model = build()
    optimizer = optimizer_of(model, backend)
    for step in steps:
        set_gradients(model, step)
        if clip is not None:
            nn.utils.clip_grad_norm_(model.parameters(), clip)
        optimizer.step()
    return model, optimizer


def allow_bfloat16() -> None:
    """The CPU's fast path, whatever this processor and however small the matrices."""
    cpu.has_bfloat16 = lambda: True  # type: ignore[assignment]
    cpu.SMALLEST_BFLOAT16_SIDE = 4


def replicas(backend: str) -> dict[str, Any]:
    group = dist.group.WORLD
    model = build()
    optimizer = optimizer_of(model, backend, process_group=group)
    for step in range(2):
        set_gradients(model, step)
        optimizer.step()
    held = sum(state["momentum"].numel() for state in optimizer.state.values() if "momentum" in state)
    saved = optimizer.state_dict()
    resumed = optimizer_of(model, backend, process_group=group)
    resumed.load_state_dict(saved)
    for step in range(2, 4):
        set_gradients(model, step)
        resumed.step()
    return {"values": values(model), "held": held, "saved": saved}


def local_gradients() -> dict[str, Any]:
    model, traffic = build(), Traffic()
    optimizer = optimizer_of(model, "reference", process_group=dist.group.WORLD, traffic=traffic)
    norms = []
    for step in range(4):
        set_gradients(model, step, dist.get_rank())
        norms.append(optimizer.average_gradients(CLIP))
        optimizer.step()
    return {"values": values(model), "norms": norms, "bytes_sent": traffic.read().bytes_sent}


def fewer_matrices_than_ranks() -> Tensor:
    """One matrix, one step: a rank that owns nothing and needs no gradient still takes part."""
    weight = nn.Parameter(torch.eye(3))
    optimizer = Muon([weight], 0.05, backend="reference", process_group=dist.group.WORLD)
    weight.grad = torch.eye(3) * (1 + dist.get_rank())
    optimizer.average_gradients(CLIP)
    optimizer.step()
    return weight.detach()


def sharded(backend: str) -> dict[str, Any]:
    from torch.distributed.fsdp import fully_shard
    from torch.distributed.tensor import DTensor, distribute_tensor

    model = fully_shard(build())
    optimizer = optimizer_of(model, backend)

    def train(optimizer: Muon, steps: range) -> None:
        for step in steps:
            for index, parameter in enumerate(model.parameters()):
                whole = gradient(step, index, parameter.shape)
                assert isinstance(parameter, DTensor)
                parameter.grad = (
                    None if whole is None else distribute_tensor(whole, parameter.device_mesh, parameter.placements)
                )
            optimizer.step()

    train(optimizer, range(2))
    saved = optimizer.state_dict()
    saved["state"] = {
        number: {name: value.full_tensor() if hasattr(value, "full_tensor") else value for name, value in state.items()}
        for number, state in saved["state"].items()
    }
    resumed = optimizer_of(model, backend)
    resumed.load_state_dict(saved)
    train(resumed, range(2, 4))
    whole = [parameter.full_tensor().detach() for parameter in model.parameters()]  # type: ignore[attr-defined]
    return {"values": whole, "saved": saved}


SHAPES_OF_SEVERAL = {"qkv": (9, 5), "experts": (3, 4, 6), "filters": (5, 2, 3, 3)}


def several() -> nn.Module:
    """Fused projections, a batch of experts, and filters of a convolution."""
    generator = torch.Generator().manual_seed(1)
    model = nn.Module()
    for name, shape in SHAPES_OF_SEVERAL.items():
        model.register_parameter(name, nn.Parameter(torch.randn(shape, generator=generator)))
    return model


def muon_of_several(model: nn.Module, **changes: Any) -> Muon:
    named = dict(model.named_parameters())
    groups = [
        {"params": [named["qkv"]], "split": 3},
        {"params": [named["experts"]], "batched": True},
        {"params": [named["filters"]]},
    ]
    return Muon(groups, 0.05, nesterov=True, backend="reference", **changes)


def train_several(model: nn.Module, optimizer: Muon) -> None:
    from torch.distributed.tensor import DTensor, distribute_tensor

    for step in range(3):
        for index, parameter in enumerate(model.parameters()):
            whole = gradient(step + 10, index, parameter.shape)
            assert whole is not None
            is_sharded = isinstance(parameter, DTensor)
            parameter.grad = (
                distribute_tensor(whole, parameter.device_mesh, parameter.placements) if is_sharded else whole
            )
        optimizer.step()


def several_sharded() -> list[Tensor]:
    from torch.distributed.fsdp import fully_shard

    model = fully_shard(several())
    train_several(model, muon_of_several(model))
    return [parameter.full_tensor().detach() for parameter in model.parameters()]  # type: ignore[attr-defined]


def several_replicated() -> list[Tensor]:
    model = several()
    train_several(model, muon_of_several(model, process_group=dist.group.WORLD))
    return values(model)


def repointed() -> list[Tensor]:
    """An optimizer that was built before its model was sharded, and is then given the rows, as accelerate does."""
    from torch.distributed.fsdp import fully_shard

    model = several()
    optimizer = muon_of_several(model)
    for group in optimizer.param_groups:
        group["params"] = [torch.empty_like(parameter) for parameter in group["params"]]
    fully_shard(model)
    for group, parameter in zip(optimizer.param_groups, model.parameters(), strict=True):
        group["params"] = [parameter]
    train_several(model, optimizer)
    return [parameter.full_tensor().detach() for parameter in model.parameters()]  # type: ignore[attr-defined]


def main(folder: Path, rank: int) -> None:
    dist.init_process_group("gloo", init_method=f"file://{folder}/rendezvous", rank=rank, world_size=2)
    allow_bfloat16()
    backends = ["reference", "cpu"]
    outcomes: dict[str, Any] = {"local_gradients": local_gradients(), "one_matrix": fewer_matrices_than_ranks()}
    outcomes |= {run.__name__: run() for run in (several_sharded, several_replicated, repointed)}
    if os.environ.get("TRITON_INTERPRET") == "1":
        # Kernels run in the interpreter, which the comparing process has not.
        backends.append("triton")
        outcomes["alone-triton"] = values(alone("triton")[0])
    for backend in backends:
        outcomes[f"replicas-{backend}"] = replicas(backend)
        outcomes[f"sharded-{backend}"] = sharded(backend)
    torch.save(outcomes, folder / f"{rank}.pt")
    dist.destroy_process_group()


if __name__ == "__main__":
    main(Path(sys.argv[1]), int(sys.argv[2]))
