"""The device that a rank trains on, and how a run is computed there."""

from __future__ import annotations

import os

import torch

from muloco_runner.config import ConfigError, ExecutionConfig, RunConfig
from muloco_runner.distributed.rendezvous import ProcessRank
from muloco_runner.memory import Placement
from muloco_runner.memory.choose import choose_placement


def check_device(name: str) -> None:
    """Raise `ConfigError` where a GPU is asked for and there is none.

    Jobs do not check: the node that one got may be broken, and another one may not.
    """
    if name == "cuda" and not torch.cuda.is_available():
        raise ConfigError("execution.device=cuda: torch finds no GPU here: use auto or cpu, or install torch with CUDA")


def choose_device(name: str, process: ProcessRank) -> torch.device:
    """Return the device of this rank: with `auto` its GPU, where there is one."""
    if name == "cpu" or (name == "auto" and not torch.cuda.is_available()):
        return torch.device("cpu")
    device = torch.device("cuda", process.local_rank % max(1, torch.cuda.device_count()))
    torch.cuda.set_device(device)
    return device


def choose_placement_on(
    device: torch.device,
    run: RunConfig,
    execution: ExecutionConfig,
    num_ranks: int,
    ranks_per_node: int | None = None,
) -> Placement:
    """Choose how the run is computed on this device: all ranks, whose devices are equal, come to one answer.

    On a CPU the ranks share the machine's memory.
    """
    if device.type == "cuda":
        memory = torch.cuda.get_device_properties(device).total_memory
    else:
        memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") // num_ranks
    return choose_placement(run, execution, num_ranks, device.type, memory, ranks_per_node)
