"""The ranks of one job, from wherever they come: torchrun, srun, or one plain process.

torchrun says where its ranks connect. Elsewhere the first rank opens a free port and writes the address into the run's
folder, which all nodes share, so that no port is fixed and none is guessed.
"""

from __future__ import annotations

import contextlib
import os
import re
import socket
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path

import torch
import torch.distributed as dist
from torch.distributed import TCPStore  # type: ignore[attr-defined]  # public, not in its __all__

from muloco_runner.distributed.communicator import Communicator
from muloco_runner.distributed.topology import Topology
from muloco_runner.distributed.traffic import EmulatedLink, Traffic
from muloco_runner.record import write_atomically

_RENDEZVOUS_TIMEOUT = timedelta(minutes=5)
"""How long the ranks of a job may take to find each other."""
_COLLECTIVE_TIMEOUT = timedelta(minutes=10)
"""After which a rank that waits for another one gives up: a dead rank must not hold a node for long."""


@dataclass(frozen=True)
class ProcessRank:
    """Which rank of how many this process is."""

    rank: int = 0
    num_ranks: int = 1
    local_rank: int = 0
    """Among the ranks of its node: the number of its GPU."""
    launcher: str = "plain"
    """torchrun, srun, tasks (`sweeps.node.tasks`, on one node) or plain."""
    job: str = ""
    """Names this job's rendezvous, which an earlier job's in the same folder must not be taken for."""
    ranks_per_node: int | None = None
    """The same on every node, else None."""


def process_rank(environment: Mapping[str, str] = os.environ) -> ProcessRank:
    """Read torchrun's variables, else those of `sweeps.node.tasks`, else those of an srun step with more than one task;
    without any there is one rank."""
    if "TORCHELASTIC_RUN_ID" in environment or {"RANK", "WORLD_SIZE", "MASTER_ADDR"} <= set(environment):
        rank, num_ranks = int(environment["RANK"]), int(environment["WORLD_SIZE"])
        of_node = environment.get("LOCAL_WORLD_SIZE")
        local_rank = int(environment.get("LOCAL_RANK", "0"))
        return ProcessRank(
            rank, num_ranks, local_rank, "torchrun", ranks_per_node=None if of_node is None else int(of_node)
        )
    if "MULOCO_RDZV_ID" in environment:
        rank, num_ranks = int(environment["RANK"]), int(environment["WORLD_SIZE"])
        return ProcessRank(
            rank, num_ranks, int(environment["LOCAL_RANK"]), "tasks", environment["MULOCO_RDZV_ID"], num_ranks
        )
    if "SLURM_PROCID" in environment and int(environment.get("SLURM_STEP_NUM_TASKS", "1")) > 1:
        return ProcessRank(
            int(environment["SLURM_PROCID"]),
            int(environment["SLURM_STEP_NUM_TASKS"]),
            int(environment["SLURM_LOCALID"]),
            "srun",
            f"{environment['SLURM_JOB_ID']}-{environment.get('SLURM_STEP_ID', '0')}"
            f"-{environment.get('SLURM_RESTART_COUNT', '0')}",
            _tasks_of_every_node(environment),
        )
    return ProcessRank()


def _tasks_of_every_node(environment: Mapping[str, str]) -> int | None:
    """Return the tasks of each node of an srun step, `8(x4)` for 8 on each of four, or None where nodes differ or
    tasks are not numbered node by node."""
    tasks = re.fullmatch(r"(\d+)(\(x\d+\))?", environment.get("SLURM_STEP_TASKS_PER_NODE", ""))
    in_blocks = environment.get("SLURM_DISTRIBUTION", "block").startswith("block")
    return int(tasks[1]) if tasks and in_blocks else None


@contextlib.contextmanager
def joined_ranks(
    process: ProcessRank,
    num_workers: int,
    device: torch.device,
    rendezvous_dir: Path,
    sharded: bool = False,
    link: EmulatedLink | None = None,
    copies: int = 1,
) -> Iterator[Communicator]:
    """Join all ranks of the job and yield their communicator; they leave the process group together at the end.

    `rendezvous_dir` is a folder that all nodes share. `sharded`, `copies` and `link` are as in `Communicator` and
    `Traffic`.
    """
    topology = Topology(num_workers, process.rank, process.num_ranks, process.ranks_per_node)
    if process.num_ranks == 1:
        yield Communicator(topology, sharded)
        return
    backend = "cpu:gloo,cuda:nccl" if device.type == "cuda" else "gloo"
    with _opened_store(process, rendezvous_dir) as store:
        dist.init_process_group(
            backend,
            store=store,
            rank=process.rank if store else -1,
            world_size=process.num_ranks if store else -1,
            timeout=_COLLECTIVE_TIMEOUT,
        )
    try:
        yield Communicator(topology, sharded, Traffic(link), copies)
        dist.barrier()
    finally:
        dist.destroy_process_group()


@contextlib.contextmanager
def _opened_store(process: ProcessRank, rendezvous_dir: Path) -> Iterator[TCPStore | None]:
    """Yield a store that all ranks reach, opened by the first one on a free port; None where torchrun has one.

    Within they join; after that its address is of no use to anybody, and would mislead ranks of a later job.
    """
    address_file = rendezvous_dir / f"rendezvous-{process.job}"
    if process.launcher == "torchrun":
        yield None
    elif process.rank == 0:
        store = TCPStore(socket.gethostname(), 0, process.num_ranks, True, _RENDEZVOUS_TIMEOUT, wait_for_workers=False)
        write_atomically(address_file, f"{socket.gethostname()} {store.port}")
        try:
            yield store
        finally:
            address_file.unlink(missing_ok=True)
    else:
        yield _found_store(process, address_file)


def _found_store(process: ProcessRank, address_file: Path) -> TCPStore:
    deadline = time.monotonic() + _RENDEZVOUS_TIMEOUT.total_seconds()
    while not address_file.exists():
        if time.monotonic() > deadline:
            raise TimeoutError(f"rank {process.rank}: no address in {address_file} after {_RENDEZVOUS_TIMEOUT}")
        time.sleep(0.05)
    host, port = address_file.read_text().split()
    return TCPStore(host, int(port), process.num_ranks, False, _RENDEZVOUS_TIMEOUT)
