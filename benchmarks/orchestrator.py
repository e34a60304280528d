"""What driving a sweep costs the scheduler, and what it wastes: RPCs, idle nodes, submissions a second.

Sixteen jobs of two seconds under a quota of four nodes, and a burst of thirty submissions to a full cluster, on the
real SLURM of eight emulated nodes that tests/cluster starts (root and Debian's packages). Contenders, in turn:
muloco-sweep; a shell loop of `sbatch` whose quota SLURM itself keeps, which is the floor; hydra-submitit-launcher,
installed for the occasion where pip finds it. RPCs are those that `sdiag` counts for clients, commands are counted by
scripts before them on PATH, times are read from slurmctld's own log.
"""

from __future__ import annotations

import argparse
import os
import re
import shlex
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path

from rich.console import Console
from rich.table import Table

CLUSTER = Path(__file__).parent.parent / "tests" / "cluster"
sys.path.insert(0, str(CLUSTER))
from emulated_slurm import OTHER_USER, EmulatedSlurm, wait_for, why_unavailable  # noqa: E402
from sweeping import GPU, SampleSweep, put_before  # noqa: E402

JOBS, SECONDS, QUOTA, BURST = 16, 2, 4, 30
TICK_SECONDS = 1.0
COMMANDS = ("sbatch", "squeue", "sacct", "scontrol", "sacctmgr", "scancel")
# What slurmctld hears from its own daemons.
_NOT_CLIENTS = ("NODE_REGISTRATION", "COMPLETE_", "EPILOG", "ACCT_", "STEP_", "PING", "STATS_INFO", "PERSIST", "DBD")
APP = """
import hydra, time
from omegaconf import DictConfig

@hydra.main(version_base=None, config_path=None)
def main(config: DictConfig) -> None:
    time.sleep(float(config.seconds))

main()
"""


@dataclass
class Figures:
    """One contender's figure, one number a round."""

    rpcs: list[float] = field(default_factory=list)
    commands: list[float] = field(default_factory=list)
    seconds: list[float] = field(default_factory=list)
    idle: list[float] = field(default_factory=list)
    """Seconds from a node's release to the start of the job that takes its place."""
    submissions: list[float] = field(default_factory=list)
    """A second."""
    ticks: list[float] = field(default_factory=list)


class Bench:
    """One cluster, looked at from outside while a contender is at work."""

    def __init__(self, slurm: EmulatedSlurm, place: Path) -> None:
        self.slurm, self.place = slurm, place
        self.counted = place / "commands"
        for command in COMMANDS:
            put_before(command, f'echo {command} >> {self.counted}\nexec $REAL "$@"', place / "bin")

    def measure(self, work: Callable[[], None], figures: Figures) -> None:
        """A whole sweep."""
        self.slurm.cancel_everything()
        self.counted.write_text("")
        self.slurm.run("sdiag", "--reset")
        began, size = time.monotonic(), self._log.stat().st_size
        work()
        figures.seconds.append(time.monotonic() - began)
        figures.commands.append(len(self.counted.read_text().splitlines()))
        figures.rpcs.append(client_rpcs(self.slurm.run("sdiag")))
        figures.idle += gaps(self._log.read_text(errors="replace")[size:])

    def measure_burst(self, submit: Callable[[], None], figures: Figures) -> None:
        """Submissions to a cluster without a free node."""
        self.slurm.cancel_everything()
        self.slurm.hold_nodes(8, OTHER_USER)
        wait_for(lambda: "RUNNING" in self.slurm.run("squeue", "-h", "-o", "%T"), 30, "full cluster")
        size = self._log.stat().st_size
        submit()
        accepted = times(self._log.read_text(errors="replace")[size:], "submit_batch_job: JobId")
        if len(accepted) > 1:
            figures.submissions.append((len(accepted) - 1) / (accepted[-1] - accepted[0]))

    @property
    def _log(self) -> Path:
        return self.slurm.state / "log" / "slurmctld.log"


def client_rpcs(sdiag: str) -> int:
    by_type = sdiag.partition("Remote Procedure Call statistics by message type")[2].partition("by user")[0]
    found = re.findall(r"(\w+)\s*\(\s*\d+\) count:(\d+)", by_type)
    return sum(int(count) for name, count in found if not any(word in name for word in _NOT_CLIENTS))


def times(log: str, words: str) -> list[float]:
    """Unix seconds of the log's lines that match."""
    lines = re.findall(rf"^\[(\S+)\] .*(?:{words})", log, re.MULTILINE)
    return sorted(datetime.fromisoformat(line).timestamp() for line in lines)


def ends_in(log: str) -> list[float]:
    return times(log, r"_job_complete: JobId=\S+ done")


def gaps(log: str) -> list[float]:
    """From the k-th end to the (QUOTA + k)-th start: it takes the released node."""
    starts = times(log, "Allocate JobId|Started JobId")
    ends = ends_in(log)
    return [max(0.0, start - end) for end, start in zip(ends, starts[QUOTA:], strict=False)]


def muloco_sweep(place: Path, number: int, quota: int) -> SampleSweep:
    root = Path(tempfile.mkdtemp(dir=place))
    plans = {f"w{n}": {"seconds": [SECONDS]} for n in range(number)}
    return SampleSweep(root, plans, {**GPU, "quota": {"nodes": quota}}, tick_seconds=TICK_SECONDS)


def run_sweep(place: Path, figures: Figures) -> None:
    ticks: list[object] = []
    state = muloco_sweep(place, JOBS, QUOTA).run(ticks.append)
    assert state.counts["done"] == JOBS
    figures.ticks.append(len(ticks))


def submit_sweep(place: Path) -> None:
    controller = muloco_sweep(place, BURST, BURST).controller()
    controller.cluster.start()
    controller.tick()
    controller.lease.release()


SBATCH = [
    "sbatch",
    "--parsable",
    "--account=lab",
    "--nodes=1",
    "--gres=gpu:8",
    "--cpus-per-task=8",
    "--output=/dev/null",
]


def shell_loop(number: int, *options: str) -> None:
    words = shlex.join([*SBATCH, *options, f"--wrap=sleep {SECONDS}"])
    subprocess.run(["bash", "-c", f"for n in $(seq {number}); do {words}; done"], check=True, stdout=subprocess.DEVNULL)


def run_loop(slurm: EmulatedSlurm) -> None:
    slurm.limit(GrpTRES=f"node={QUOTA}")
    size = (slurm.state / "log" / "slurmctld.log").stat().st_size
    shell_loop(JOBS, "--qos=capped")
    # A loop submits and leaves: its end is looked up without a command.
    log = slurm.state / "log" / "slurmctld.log"
    wait_for(lambda: len(ends_in(log.read_text(errors="replace")[size:])) >= JOBS, 300, "last end")


def install_submitit_launcher(place: Path) -> Path | None:
    """A folder to import it from; None where it cannot be had."""
    target = place / "hydra-submitit-launcher"
    words = [sys.executable, "-m", "pip", "install", "-q", "--no-deps", f"--target={target}", "hydra-submitit-launcher"]
    done = subprocess.run(words, capture_output=True, text=True, check=False)
    return target if done.returncode == 0 else None


def run_submitit_launcher(place: Path, target: Path) -> None:
    app = place / "app.py"
    app.write_text(APP)
    launcher = {"partition": "gpu", "account": "lab", "nodes": 1, "gpus_per_node": 8, "cpus_per_task": 8}
    launcher |= {"timeout_min": 5, "array_parallelism": QUOTA, "submitit_folder": str(place / "submitit")}
    words = [f"hydra.launcher.{name}={value}" for name, value in launcher.items()]
    words += ["hydra/launcher=submitit_slurm", f"+seconds={SECONDS}", f"+run=range({JOBS})"]
    environment = {**os.environ, "PYTHONPATH": f"{target}:{os.environ['PYTHONPATH']}"}
    folder = Path(tempfile.mkdtemp(dir=place))
    command = [sys.executable, str(app), "--multirun", *words]
    subprocess.run(command, cwd=folder, env=environment, check=True, stdout=subprocess.DEVNULL)


def row(name: str, figures: Figures, floor: Figures) -> list[str]:
    def median(values: Sequence[float], of: Sequence[float] | None = None) -> str:
        if not values:
            return "-"
        middle = statistics.median(values)
        spread = f"{middle:.2f} ({min(values):.2f} to {max(values):.2f})"
        return spread if not of else f"{spread}  x{middle / statistics.median(of):.2f}"

    per_tick = [rpcs / ticks for rpcs, ticks in zip(figures.rpcs, figures.ticks, strict=False)]
    return [
        name, median(figures.seconds, floor.seconds), median(figures.idle), median(figures.rpcs, floor.rpcs),
        median(figures.commands), median(per_tick), median(figures.submissions, floor.submissions),
    ]  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=2, help="of each contender, in turn")
    rounds = parser.parse_args().rounds
    reason = why_unavailable()
    if reason is not None:
        print(f"skipped: {reason}")
        return
    os.environ["PYTHONPATH"] = str(CLUSTER)
    place = Path(tempfile.mkdtemp(prefix="orchestrator-"))
    place.chmod(0o755)
    slurm = EmulatedSlurm(place / "slurm")
    found: dict[str, Figures] = {name: Figures() for name in ("muloco-sweep", "sbatch loop", "hydra-submitit-launcher")}
    ours, loop, launcher = found.values()
    try:
        slurm.start()
        bench = Bench(slurm, place)
        target = install_submitit_launcher(place)
        if target is None:
            print("hydra-submitit-launcher left out: pip does not find it")
        for number in range(rounds):
            print(f"round {number + 1} of {rounds}", flush=True)
            bench.measure(lambda: run_sweep(place, ours), ours)
            bench.measure(lambda: run_loop(slurm), loop)
            if target is not None:
                bench.measure(lambda: run_submitit_launcher(place, target), launcher)
            bench.measure_burst(lambda: submit_sweep(place), ours)
            bench.measure_burst(lambda: shell_loop(BURST), loop)
    finally:
        slurm.stop()
        shutil.rmtree(place, ignore_errors=True)
    columns = ("seconds", "idle s a node", "RPCs", "commands", "RPCs a tick", "submissions/s")
    table = Table("contender", *columns, title=f"{JOBS} jobs of {SECONDS} s on {QUOTA} nodes, median (least to most)")
    for name, figures in found.items():
        if figures.seconds:
            table.add_row(*row(name, figures, loop))
    Console(width=180).print(table)
    print(f"muloco-sweep looks every {TICK_SECONDS:g} s here, every 30 s by default; x: against the sbatch loop.")
    print("hydra-submitit-launcher submits one array, so it has no rate of submissions of its own.")


if __name__ == "__main__":
    main()
