"""Two ranks against one: the same losses, with DDP and with sharded parameters, over NCCL or gloo."""

from __future__ import annotations

import json
import tempfile
from dataclasses import dataclass
from pathlib import Path

import torch
from torch.multiprocessing.spawn import spawn

from muloco_runner.distributed.rendezvous import ProcessRank, joined_ranks
from muloco_runner.machine_check.findings import Findings
from muloco_runner.machine_check.timing import Machine
from muloco_runner.machine_check.trainers import models, muloco, run_of, trainer_of

_RANKS, _STEPS = 2, 6
_MOST_DIFFERENCE = 2e-2
"""Of losses in nats after six steps: sums in another order, in bfloat16."""


@dataclass(frozen=True)
class Case:
    """How two ranks share the work."""

    workers: int = 1
    is_sharded: bool = False


_CASES = {
    "data parallel": Case(),
    "sharded": Case(is_sharded=True),
    "a worker a rank": Case(workers=_RANKS),
}


def check(machine: Machine, findings: Findings) -> None:
    """Train a few steps of each kind on one rank and on two."""
    if machine.is_gpu and torch.cuda.device_count() < _RANKS:
        findings.add("two ranks", "one GPU here", verdict="absent")
        return
    with tempfile.TemporaryDirectory(prefix="ranks-") as folder:
        for num_ranks in (1, _RANKS):
            spawn(_train_all, (machine, num_ranks, Path(folder)), nprocs=num_ranks)
        for name in _CASES:
            alone, together = (json.loads(_losses(Path(folder), name, ranks).read_text()) for ranks in (1, _RANKS))
            difference = max(abs(a - b) for a, b in zip(alone, together, strict=True))
            findings.at_most(f"{name}, losses of two ranks against one", difference, _MOST_DIFFERENCE, "nats")


def _losses(folder: Path, case: str, num_ranks: int) -> Path:
    return folder / f"{case}-{num_ranks}.json"


def _train_all(rank: int, machine: Machine, num_ranks: int, folder: Path) -> None:
    """On one rank of `num_ranks`: every case in turn; the first rank leaves the losses."""
    device = machine.device
    if machine.is_gpu:
        device = torch.device("cuda", rank)
        torch.cuda.set_device(device)
    for name, case in _CASES.items():
        process = ProcessRank(rank, num_ranks, rank, "tasks", name.replace(" ", "-"))
        losses = _train(process, Machine(device), case, folder)
        if rank == 0:
            _losses(folder, name, num_ranks).write_text(json.dumps(losses))


def _train(process: ProcessRank, machine: Machine, case: Case, folder: Path) -> list[float]:
    """Return the loss of each step, averaged over workers."""
    _, model = next(iter(models(machine).items()))
    choices = {"method": muloco(case.workers, 2)} if case.workers > 1 else {}
    run = run_of(model, (65536 if machine.is_gpu else 512) * case.workers, **choices)
    sharded = case.is_sharded and process.num_ranks > 1
    execution = {"sharding": "full"} if sharded else {}
    losses = torch.zeros(_STEPS)
    with (
        joined_ranks(process, case.workers, machine.device, folder, sharded) as communicator,
        trainer_of(run, machine, communicator, **execution) as trainer,
    ):
        for step in range(_STEPS):
            trainer.step_workers()
            trainer.method.after_inner_step(trainer.state.step)
            losses[step] = communicator.sum_over_ranks(trainer.state.losses[:, step].mean().cpu().reshape(1))
    return (losses / process.num_ranks).tolist()
