"""The ranks of one job, from wherever they come: torchrun, srun, or one plain process.

torchrun says where its ranks meet. Elsewhere the first rank opens a free port and writes the address into the run's
folder, which all nodes share, so that no port is fixed and none is guessed.
"""

from __future__ import annotations

import contextlib
import os
import socket
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path

import torch
import torch.distributed as dist
from torch.distributed import TCPStore

from muloco_runner.distributed.topology import Communicator, Topology
from muloco_runner.distributed.traffic import EmulatedLink, Traffic
from muloco_runner.record import write_atomically

_MEETING = timedelta(minutes=5)
"""How long the ranks of a job may take to find each other."""
_COLLECTIVE = timedelta(minutes=10)
"""After which a rank that waits for another one gives up: a dead rank must not hold a node for long."""


@dataclass(frozen=True)
class RankPlace:
    """Which rank of how many this process is."""

    rank: int = 0
    num_ranks: int = 1
    local_rank: int = 0
    """Among the ranks of its node: the number of its GPU."""
    launcher: str = "plain"
    """torchrun, srun, tasks (`sweeps.node.tasks`, on one node) or plain."""
    job: str = ""
    """Tells this job's meeting place from that of an earlier one."""


def rank_place(environment: Mapping[str, str]) -> RankPlace:
    """Reads torchrun's variables, else those of `sweeps.node.tasks`, else those of an srun step with more than one
    task; else there is one rank."""
    if "TORCHELASTIC_RUN_ID" in environment or {"RANK", "WORLD_SIZE", "MASTER_ADDR"} <= set(environment):
        rank, num_ranks = int(environment["RANK"]), int(environment["WORLD_SIZE"])
        return RankPlace(rank, num_ranks, int(environment.get("LOCAL_RANK", "0")), "torchrun")
    if "MULOCO_RDZV_ID" in environment:
        rank, num_ranks = int(environment["RANK"]), int(environment["WORLD_SIZE"])
        return RankPlace(rank, num_ranks, int(environment["LOCAL_RANK"]), "tasks", environment["MULOCO_RDZV_ID"])
    if "SLURM_PROCID" in environment and int(environment.get("SLURM_STEP_NUM_TASKS", "1")) > 1:
        return RankPlace(
            int(environment["SLURM_PROCID"]),
            int(environment["SLURM_STEP_NUM_TASKS"]),
            int(environment["SLURM_LOCALID"]),
            "srun",
            f"{environment['SLURM_JOB_ID']}-{environment.get('SLURM_STEP_ID', '0')}"
            f"-{environment.get('SLURM_RESTART_COUNT', '0')}",
        )
    return RankPlace()


@contextlib.contextmanager
def joined_ranks(
    place: RankPlace,
    num_workers: int,
    device: torch.device,
    meeting_dir: Path,
    sharded: bool = False,
    link: EmulatedLink | None = None,
) -> Iterator[Communicator]:
    """The communicator over all ranks of the job; they leave the group together at the end."""
    topology = Topology(num_workers, place.rank, place.num_ranks)
    if place.num_ranks == 1:
        yield Communicator(topology, sharded)
        return
    backend = "cpu:gloo,cuda:nccl" if device.type == "cuda" else "gloo"
    store = None if place.launcher == "torchrun" else _meet(place, meeting_dir)
    dist.init_process_group(
        backend,
        store=store,
        rank=place.rank if store else -1,
        world_size=place.num_ranks if store else -1,
        timeout=_COLLECTIVE,
    )
    try:
        yield Communicator(topology, sharded, Traffic(link))
        dist.barrier()
    finally:
        dist.destroy_process_group()


def _meet(place: RankPlace, meeting_dir: Path) -> TCPStore:
    """A store that all ranks reach, opened by the first one on a free port."""
    address_file = meeting_dir / f"meeting-{place.job}"
    if place.rank == 0:
        store = TCPStore(socket.gethostname(), 0, place.num_ranks, True, _MEETING, wait_for_workers=False)
        write_atomically(address_file, f"{socket.gethostname()} {store.port}")
        return store
    deadline = time.monotonic() + _MEETING.total_seconds()
    while not address_file.exists():
        if time.monotonic() > deadline:
            raise TimeoutError(f"rank {place.rank}: no address in {address_file} after {_MEETING}")
        time.sleep(0.05)
    host, port = address_file.read_text().split()
    return TCPStore(host, int(port), place.num_ranks, False, _MEETING)


def rank_environment() -> RankPlace:
    """The place of this very process."""
    return rank_place(os.environ)
