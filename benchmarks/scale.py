"""A sweep of a hundred thousand runs: what a tick of its controller, its memory and `muloco-sweep status` cost.

The runs are of the published study's shapes; nine tenths are done, the ledger holds their history, and the cluster is
made of numbers (64 nodes). Status is asked for as a person does, in a process of its own: with the controller's
snapshot, and after taking it away, when the whole ledger is replayed. The floor is a Python that imports the same and
does nothing.
"""

from __future__ import annotations

import argparse
import gc
import os
import random
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import psutil
from rich.console import Console
from rich.table import Table

from sweeps.controller import Controller
from sweeps.engine.cluster_config import AllocationConfig, ClusterConfig, QuotaConfig
from sweeps.engine.policy import Cause
from sweeps.engine.work import Need, Work
from sweeps.simulation.faults import FAIR
from sweeps.simulation.simulate import definition_of
from sweeps.simulation.simulated_cluster import SimulatedCluster
from sweeps.store.folder import SweepFolder
from sweeps.store.ledger import encode
from sweeps.training.adapter import TRAINING

NODES = 64
BEGIN = 1.8e9
KINDS = [(1, 1, 90.0), (1, 4, 120.0), (1, 8, 200.0), (1, 8, 500.0), (2, 8, 400.0), (8, 8, 600.0)]
SHARES = [0.4, 0.25, 0.15, 0.1, 0.08, 0.02]


def works_of(count: int, root: Path) -> list[Work]:
    rng = random.Random(0)
    found = []
    for n, (nodes, gpus, minutes) in enumerate(rng.choices(KINDS, SHARES, k=count)):
        labels = {
            "algorithm": rng.choice(["DDP-AdamW", "DDP-Muon", "DiLoCo", "MuLoCo"]),
            "num_params": rng.choice([150_000_000, 416_000_000, 914_000_000, 1_760_000_000, 3_100_000_000]),
            "num_workers": rng.choice([1, 2, 4, 8, 16]),
            "global_batch_tokens": 2 ** rng.randint(17, 22),
            "lr": 2.0 ** -rng.randint(4, 12),
            "seed": n,
        }
        need = Need(nodes, gpus, 12 * gpus, 0.0, minutes * rng.uniform(0.5, 2))
        settings = {"device": "cuda", "precision": "bf16", "checkpoint_minutes": 10.0}
        name = f"{n:012x}"
        found.append(
            Work(
                name, str(root / "runs" / name), "sweeps.training.entry:train", settings, need, labels, adapter=TRAINING
            )
        )
    # The widest go first, so it is the small ones that are left.
    return sorted(found, key=lambda work: -work.need.gpus)


def write_history(folder: SweepFolder, works: list[Work], share_done: float) -> int:
    """The ledger of a sweep whose first runs are done, one in thirty of them at the second attempt; its lines."""
    rng = random.Random(1)
    lines: list[bytes] = []
    number = 0

    def note(event: str, time: float, **values: object) -> None:
        lines.append(encode({"token": 1, "time": time, "event": event, **values}))

    for n, work in enumerate(works[: int(share_done * len(works))]):
        causes = [Cause.NODE_FAILURE, Cause.FINISHED] if rng.random() < 1 / 30 else [Cause.FINISHED]
        for attempt, cause in enumerate(causes, start=1):
            number += 1
            tag, at = f"{folder.tag_prefix}{number:06d}", BEGIN - 1e6 + n
            hours = work.need.gpus * work.need.expected_minutes / 60
            ended = at + 60 * work.need.expected_minutes
            ending = {"cause": cause.value, "detail": "", "checkpoint_step": 100, "started_at": at, "at": ended}
            note("intended", at, tag=tag, allocation="a", runs={work.name: attempt})
            note("submitted", at, tag=tag, job_id=str(number))
            note("started", at, tag=tag, at=at, nodes=[f"node{n % NODES:03d}"])
            note("ended", ended, tag=tag, endings={work.name: ending}, gpu_hours=hours, struck_nodes=[])
    folder.ledger_file.parent.mkdir(parents=True, exist_ok=True)
    folder.ledger_file.write_bytes(b"".join(lines))
    return len(lines)


def seconds_of(command: list[str]) -> float:
    began = time.perf_counter()
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
    return time.perf_counter() - began


def megabytes() -> float:
    return psutil.Process().memory_info().rss / 1e6


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=int, default=100_000)
    parser.add_argument("--ticks", type=int, default=60)
    parser.add_argument("--repeats", type=int, default=5, help="of each status, taken in turn")
    arguments = parser.parse_args()
    root = Path(tempfile.mkdtemp(prefix="scale"))
    try:
        measure(arguments, root)
    finally:
        shutil.rmtree(root, ignore_errors=True)


def measure(arguments: argparse.Namespace, root: Path) -> None:
    quota = QuotaConfig(nodes=NODES)
    allocation = AllocationConfig("a", gpus_per_node=8, cpus_per_node=96, whole_nodes=True, quota=quota)
    config = ClusterConfig("c", "slurm", [allocation])
    folder = SweepFolder(root, "large")
    works = works_of(arguments.runs, root)
    lines = write_history(folder, works, 0.9)
    definition = definition_of(folder, works, config)
    folder.write_definition(definition)
    before = megabytes()

    began = time.perf_counter()
    cluster = SimulatedCluster(config, FAIR, NODES, BEGIN)
    controller = Controller(folder, folder.read_definition(), lambda _config, _path: cluster, lambda: cluster.world.now)
    controller.take_stock()
    started = time.perf_counter() - began
    ticks = []
    # As `Controller.run` does.
    gc.freeze()
    for _ in range(arguments.ticks):
        submitted = controller.state.num_jobs
        began = time.perf_counter()
        controller.tick()
        ticks.append((time.perf_counter() - began, controller.state.num_jobs - submitted))
        cluster.world.advance(cluster.world.now + 3600.0)
    memory = megabytes() - before

    status = [sys.executable, "-m", "sweeps", "status", str(root)]
    floor = [sys.executable, "-c", "import sweeps.cli.queries"]
    aside = folder.path / "aside"
    times: dict[str, list[float]] = {"floor": [], "snapshot": [], "replay": []}
    for _ in range(arguments.repeats):
        times["floor"].append(seconds_of(floor))
        times["snapshot"].append(seconds_of(status))
        os.rename(folder.snapshot_file, aside)
        times["replay"].append(seconds_of(status))
        os.rename(aside, folder.snapshot_file)

    table = Table(title=f"{arguments.runs:,} runs, {lines:,} lines of history", box=None, title_justify="left")
    for name in ("what", "median", "least", "most"):
        table.add_column(name, justify="left" if name == "what" else "right")
    quiet = [seconds for seconds, jobs in ticks[1:] if not jobs]
    busy = [(seconds, jobs) for seconds, jobs in ticks[1:] if jobs]
    table.add_row("controller starts: ledger replayed, first snapshot", f"{started:.2f} s", "", "")
    table.add_row("first tick: fills the nodes", f"{ticks[0][0]:.2f} s", "", "")
    table.add_row(f"tick that submits nothing ({len(quiet)})", *_spread(quiet))
    mean = sum(jobs for _, jobs in busy) / len(busy)
    table.add_row(
        f"tick that submits jobs ({len(busy)}, of {mean:.0f} jobs)", *_spread([seconds for seconds, _ in busy])
    )
    table.add_row("memory of the controller, the sweep's share", f"{memory:,.0f} MB", "", "")
    table.add_row("status, from the snapshot on", *_spread(times["snapshot"]))
    table.add_row("status, whole ledger replayed", *_spread(times["replay"]))
    table.add_row("floor: imports alone", *_spread(times["floor"]))
    Console(width=110).print(table)
    ratios = [whole / snapshot for whole, snapshot in zip(times["replay"], times["snapshot"], strict=True)]
    print(f"replay over snapshot: {statistics.median(ratios):.1f} times ({min(ratios):.1f} to {max(ratios):.1f})")


def _spread(seconds: list[float]) -> tuple[str, str, str]:
    return f"{statistics.median(seconds):.3f} s", f"{min(seconds):.3f} s", f"{max(seconds):.3f} s"


if __name__ == "__main__":
    main()
