"""What driving a sweep costs the scheduler, and what it wastes: time, RPCs, idle nodes, submissions a second.

Sixteen jobs of two seconds under a quota of four nodes, and sixteen of ten seconds under one of eight, on the real
SLURM of eight emulated nodes that tests/cluster starts (root and Debian's packages). Contenders, in turn: muloco-sweep
that looks every second and every 30 s; a shell loop of `sbatch` over the same scripts, whose jobs therefore start as
ours do, and whose quota SLURM itself keeps: the floor; the same loop with `sleep` for a job. With `--peers` also
hydra-submitit-launcher, installed for the occasion where pip finds it, and a burst of thirty submissions to a full
cluster. RPCs are those that `sdiag` counts for clients, commands are counted by scripts before them on PATH, times are
read from slurmctld's own log: from the first start of a job to the last end.
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
from dataclasses import dataclass, field, replace
from datetime import datetime
from functools import partial
from pathlib import Path

from rich.console import Console
from rich.table import Table

CLUSTER = Path(__file__).parent.parent / "tests" / "cluster"
sys.path.insert(0, str(CLUSTER))
from emulated_slurm import OTHER_USER, EmulatedSlurm, wait_for, why_unavailable  # noqa: E402
from sweeping import GPU, ONE_NODE, SampleSweep, put_before  # noqa: E402

from sweeps.clusters.slurm.batch_job import write_job  # noqa: E402
from sweeps.clusters.slurm.slurm_cluster import SlurmCluster  # noqa: E402
from sweeps.engine.cluster import JobRequest  # noqa: E402
from sweeps.engine.work import Attempt  # noqa: E402
from sweeps.node.code_snapshot import keep_source  # noqa: E402

JOBS, BURST = 16, 30
CASES = {2: 4, 10: 8}
"""Nodes of the quota, by the seconds of a job."""
TICKS = (1.0, 30.0)
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


class Bench:
    """One cluster, looked at from outside while a contender is at work."""

    def __init__(self, slurm: EmulatedSlurm, place: Path) -> None:
        self.slurm, self.place = slurm, place
        self.counted = place / "commands"
        for command in COMMANDS:
            put_before(command, f'echo {command} >> {self.counted}\nexec $REAL "$@"', place / "bin")

    def measure(self, work: Callable[[], None], figures: Figures, quota: int) -> None:
        """A whole sweep."""
        self.slurm.cancel_everything()
        self.counted.write_text("")
        self.slurm.run("sdiag", "--reset")
        size = self._log.stat().st_size
        work()
        figures.commands.append(len(self.counted.read_text().splitlines()))
        figures.rpcs.append(client_rpcs(self.slurm.run("sdiag")))
        log = self._log.read_text(errors="replace")[size:]
        figures.seconds.append(ends_in(log)[-1] - starts_in(log)[0])
        figures.idle += gaps(log, quota)

    def measure_burst(self, submit: Callable[[], None], figures: Figures) -> None:
        """Submissions to a cluster without a free node."""
        self.slurm.cancel_everything()
        self.slurm.hold_nodes(8, OTHER_USER)
        wait_for(lambda: "RUNNING" in self.slurm.run("squeue", "-h", "-o", "%T"), "full cluster")
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


def starts_in(log: str) -> list[float]:
    return times(log, "Allocate JobId|Started JobId")


def gaps(log: str, quota: int) -> list[float]:
    """From the k-th end to the (quota + k)-th start: it takes the released node."""
    return [max(0.0, start - end) for end, start in zip(ends_in(log), starts_in(log)[quota:], strict=False)]


def muloco_sweep(place: Path, number: int, seconds: int, quota: int, tick: float) -> SampleSweep:
    root = Path(tempfile.mkdtemp(dir=place))
    plans = {f"w{n}": {"seconds": [seconds]} for n in range(number)}
    needs = {name: replace(ONE_NODE, expected_minutes=seconds / 60) for name in plans}
    return SampleSweep(root, plans, {**GPU, "quota": {"nodes": quota}}, needs=needs, tick_seconds=tick)


def run_sweep(place: Path, seconds: int, quota: int, tick: float) -> None:
    sweep = muloco_sweep(place, JOBS, seconds, quota, tick)
    controller = sweep.controller()

    def sleep(seconds: float) -> None:
        """Until the next look; the last one need not be waited for."""
        until = time.monotonic() + seconds
        while time.monotonic() < until and len(list(sweep.root.glob("runs/*/result.json"))) < JOBS:
            time.sleep(0.05)
        if time.monotonic() < until:
            time.sleep(1.0)

    setattr(controller, "_sleep", sleep)  # noqa: B010
    assert controller.run().counts["done"] == JOBS


def run_scripts(slurm: EmulatedSlurm, place: Path, seconds: int, quota: int) -> None:
    """A loop of `sbatch` over the scripts that muloco-sweep would submit."""
    sweep = muloco_sweep(place, JOBS, seconds, quota, 1.0)
    config = sweep.definition.read_cluster()
    cluster = SlurmCluster(config, sweep.root / "cluster")
    cluster.start()
    code = str(keep_source(sweep.root))
    scripts = []
    for number, work in enumerate(sweep.definition.works):
        request = JobRequest(f"loop-{number:06d}", "gpu", (Attempt(work, 1),), 1, 8, 8, 5.0, code=code)
        scripts.append(str(write_job(request, config.allocations[0], (), cluster.folder)))
    submit_in_a_loop(
        slurm, quota, f"for script in {shlex.join(scripts)}; do sbatch --parsable --qos=capped $script; done"
    )


def submit_sweep(place: Path) -> None:
    controller = muloco_sweep(place, BURST, 2, BURST, 1.0).controller()
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


def shell_loop(number: int, seconds: int, *options: str) -> str:
    words = shlex.join([*SBATCH, *options, f"--wrap=sleep {seconds}"])
    return f"for n in $(seq {number}); do {words}; done"


def submit_in_a_loop(slurm: EmulatedSlurm, quota: int, loop: str) -> None:
    slurm.limit(GrpTRES=f"node={quota}")
    log = slurm.state / "log" / "slurmctld.log"
    size = log.stat().st_size
    in_shell(loop)
    # A loop submits and leaves: its end is looked up without a command.
    wait_for(lambda: len(ends_in(log.read_text(errors="replace")[size:])) >= JOBS, "last end")


def in_shell(words: str) -> None:
    subprocess.run(["bash", "-c", words], check=True, stdout=subprocess.DEVNULL)


def install_submitit_launcher(place: Path) -> Path | None:
    """A folder to import it from; None where it cannot be had."""
    target = place / "hydra-submitit-launcher"
    words = [sys.executable, "-m", "pip", "install", "-q", "--no-deps", f"--target={target}", "hydra-submitit-launcher"]
    done = subprocess.run(words, capture_output=True, text=True, check=False)
    return target if done.returncode == 0 else None


def run_submitit_launcher(place: Path, target: Path, seconds: int, quota: int) -> None:
    app = place / "app.py"
    app.write_text(APP)
    launcher = {"partition": "gpu", "account": "lab", "nodes": 1, "gpus_per_node": 8, "cpus_per_task": 8}
    launcher |= {"timeout_min": 5, "array_parallelism": quota, "submitit_folder": str(place / "submitit")}
    words = [f"hydra.launcher.{name}={value}" for name, value in launcher.items()]
    words += ["hydra/launcher=submitit_slurm", f"+seconds={seconds}", f"+run=range({JOBS})"]
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

    return [
        name, median(figures.seconds, floor.seconds), median(figures.idle), median(figures.rpcs, floor.rpcs),
        median(figures.commands), median(figures.submissions, floor.submissions),
    ]  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=2, help="of each contender, in turn")
    parser.add_argument("--peers", action="store_true", help="also hydra-submitit-launcher, and bursts of submissions")
    arguments = parser.parse_args()
    reason = why_unavailable()
    if reason is not None:
        print(f"skipped: {reason}")
        return
    os.environ["PYTHONPATH"] = str(CLUSTER)
    place = Path(tempfile.mkdtemp(prefix="orchestrator-"))
    place.chmod(0o755)
    os.environ["MULOCO_STATE"] = str(place / "state")
    slurm = EmulatedSlurm(place / "slurm")
    try:
        slurm.start()
        target = install_submitit_launcher(place) if arguments.peers else None
        if arguments.peers and target is None:
            print("hydra-submitit-launcher left out: pip does not find it")
        bench = Bench(slurm, place)
        for seconds, quota in CASES.items():
            measure_case(bench, seconds, quota, arguments.rounds, target, arguments.peers)
    finally:
        slurm.stop()
        shutil.rmtree(place, ignore_errors=True)


def measure_case(bench: Bench, seconds: int, quota: int, rounds: int, target: Path | None, bursts: bool) -> None:
    slurm, place = bench.slurm, bench.place
    plain = shell_loop(JOBS, seconds, "--qos=capped")
    contenders: dict[str, Callable[[], None]] = {
        **{f"muloco-sweep, a look every {tick:g} s": partial(run_sweep, place, seconds, quota, tick) for tick in TICKS},
        "sbatch loop, same runner": partial(run_scripts, slurm, place, seconds, quota),
        "sbatch loop, sleep": partial(submit_in_a_loop, slurm, quota, plain),
    }
    if target is not None:
        contenders["hydra-submitit-launcher"] = partial(run_submitit_launcher, place, target, seconds, quota)
    found = {name: Figures() for name in contenders}
    for number in range(rounds):
        print(f"jobs of {seconds} s, round {number + 1} of {rounds}", flush=True)
        for name, work in contenders.items():
            bench.measure(work, found[name], quota)
        if bursts:
            bench.measure_burst(lambda: submit_sweep(place), found[f"muloco-sweep, a look every {TICKS[0]:g} s"])
            bench.measure_burst(lambda: in_shell(shell_loop(BURST, seconds)), found["sbatch loop, same runner"])
    columns = ("seconds", "idle s a node", "RPCs", "commands", "submissions/s")
    table = Table("contender", *columns, title=f"{JOBS} jobs of {seconds} s on {quota} nodes, median (least to most)")
    for name, figures in found.items():
        table.add_row(*row(name, figures, found["sbatch loop, same runner"]))
    Console(width=180).print(table)
    print("x: against the loop with the same runner.")


if __name__ == "__main__":
    main()
