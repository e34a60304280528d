"""One of four ranks on which replicas of groups of two, three and four average gradients that not all of them have.

Run as `replica_ranks.py FOLDER RANK`: leaves FOLDER/RANK.pt, a dictionary of outcomes.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

from muloco_runner.optimizers import Muon

SHAPES = [(12, 8), (9, 20), (16, 16), (12, 8), (7, 3), (11,)]
"""The last one's parameter is AdamW's."""
STEPS = 12


def build() -> list[nn.Parameter]:
    generator = torch.Generator().manual_seed(0)
    return [nn.Parameter(torch.randn(shape, generator=generator)) for shape in SHAPES]


def groups(parameters: list[nn.Parameter]) -> list[dict[str, Any]]:
    return [{"params": parameters[:-1]}, {"params": parameters[-1:], "algorithm": "adamw"}]


def gradient(step: int, index: int, rank: int, dropped: bool) -> Tensor | None:
    """A rank's gradient of a parameter; where `dropped`, each rank's batch leaves out others, and some are left out by
    all."""
    if dropped and ((step + index + rank) % 3 == 0 or (step, index) in {(1, 0), (2, 5)}):
        return None
    return torch.randn(SHAPES[index], generator=torch.Generator().manual_seed(10000 + 100 * step + 10 * index + rank))


def mean_gradient(step: int, index: int, size: int, dropped: bool) -> Tensor | None:
    """The mean over the ranks: zeros for those that have none; None where nobody has one."""
    there = [gradient(step, index, rank, dropped) for rank in range(size)]
    present = [g for g in there if g is not None]
    return sum(present[1:], present[0]) / size if present else None


def trained(optimizer: Muon, parameters: list[nn.Parameter], rank: int, dropped: bool) -> list[Tensor]:
    for step in range(STEPS):
        for index, parameter in enumerate(parameters):
            parameter.grad = gradient(step, index, rank, dropped)
        optimizer.step()
    return [parameter.detach() for parameter in parameters]


def refusals(group: dist.ProcessGroup, rank: int) -> list[str]:
    """What a step says to gradients that nobody averaged, and to those that only some ranks have."""
    said = []
    for case in ("not averaged", "missing"):
        parameters = build()
        optimizer = Muon(groups(parameters), process_group=group)
        for index, parameter in enumerate(parameters):
            parameter.grad = gradient(0, index, rank if case == "not averaged" else 0, False)
        if case == "missing" and rank:
            parameters[2].grad = None
        before = [parameter.detach().clone() for parameter in parameters]
        try:
            optimizer.step()
        except ValueError as error:
            said.append(str(error))
        assert all(torch.equal(p, old) for p, old in zip(parameters, before, strict=True))
    return said


def changed(group: dist.ProcessGroup, rank: int, size: int) -> list[Tensor]:
    """Groups and state that are changed between steps, on all ranks alike."""
    parameters = build()
    optimizer = Muon([{"params": [p]} for p in parameters[:-1]], process_group=group, average=True, backend="reference")
    change(optimizer, lambda step: step_on(optimizer, parameters, step, rank))
    assert all("momentum" in state for state in optimizer.state_dict()["state"].values())
    return [parameter.detach() for parameter in parameters]


def step_on(optimizer: Muon, parameters: list[nn.Parameter], step: int, rank: int) -> None:
    for index, parameter in enumerate(parameters[:-1]):
        parameter.grad = gradient(step, index, rank, False)
    optimizer.step()


def change(optimizer: Muon, take_step: Any) -> None:
    take_step(0)
    last = optimizer.param_groups.pop()
    take_step(1)
    optimizer.param_groups.insert(0, last)
    take_step(2)
    optimizer.state.clear()
    take_step(3)
    first = optimizer.param_groups.pop(1)["params"]
    optimizer.param_groups[1]["params"].extend(first)
    take_step(4)


def main(folder: Path, rank: int) -> None:
    dist.init_process_group("gloo", init_method=f"file://{folder}/rendezvous", rank=rank, world_size=4)
    outcomes: dict[str, Any] = {}
    for size in (2, 3, 4):
        group = dist.new_group(list(range(size)))
        if rank >= size:
            continue
        for dropped in (False, True):
            parameters = build()
            optimizer = Muon.like("nanochat", groups(parameters), process_group=group, backend="reference")
            outcomes[f"{size}-{dropped}"] = trained(optimizer, parameters, rank, dropped)
        outcomes[f"{size}-changed"] = changed(group, rank, size)
        outcomes[f"{size}-refusals"] = refusals(group, rank)
    torch.save(outcomes, folder / f"{rank}.pt")
    dist.barrier()
    dist.destroy_process_group()


if __name__ == "__main__":
    main(Path(sys.argv[1]), int(sys.argv[2]))
