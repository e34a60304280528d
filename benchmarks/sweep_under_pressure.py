"""Records what a user sees of a sweep under pressure, for docs/under_pressure.md.

    python benchmarks/sweep_under_pressure.py > docs/under_pressure.md     # needs root and SLURM, see tests/cluster

Real commands on a real `slurmctld` with four emulated nodes, 80 columns wide. The runs only sleep and report progress.
In some minutes: a quota of three nodes, a run that cannot be, a lost node, a preemption.
"""

from __future__ import annotations

import argparse
import json
import os
import pty
import re
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[1]
COLUMNS = 80
SIZES = {"29k": 29120, "82k": 82112}
ALGORITHMS = ("DDP-AdamW", "DDP-Muon", "DiLoCo", "MuLoCo")


def sleep(folder: str, attempt: int, seconds: float, is_broken: bool = False, memory_halvings: int = 0) -> int:
    """One run: goes on from its checkpoint, reports as the trainer does, and checkpoints when asked to stop."""
    from muloco_runner.record import AttemptTimes, RunFolder, RunStatus

    begun_at = time.time()
    place = RunFolder(Path(folder))
    place.path.mkdir(parents=True, exist_ok=True)
    if is_broken:
        cause = "data.path=/data/wbe: no such folder: correct data.path"
        place.write_status(RunStatus(place.path.name, "failed", attempt=attempt, exit_code=65, exit_cause=cause))
        return 65
    asked: list[int] = []
    for number in (signal.SIGTERM, signal.SIGUSR1, signal.SIGUSR2):
        signal.signal(number, lambda number, frame: asked.append(number))
    before = place.read_status()
    first = step = before.checkpoint_step if before is not None else 0
    num_steps = int(2 * seconds)

    def report(state: str) -> None:
        saved = step if state == "stopped" else 10 * (step // 10)
        times = AttemptTimes(time.time(), begun_at, unsaved_seconds=(step - saved) / 2, ended=state != "running")
        place.write_status(
            RunStatus(
                place.path.name, state, step, num_steps, 512 * step, saved, attempt, loss=5.5 - 2.5 * step / num_steps,
                resumed_step=first, times=times.to_dict(),
            )
        )  # fmt: skip

    while step < num_steps and not asked:
        time.sleep(0.5)
        step += 1
        report("running")
    report("stopped" if asked else "finished")
    if asked:
        return 75
    (place.path / "result.json").write_text("{}")
    return 0


class Recording:
    """A sweep in a folder `demo` below `home`, the commands given to it, and what they printed."""

    def __init__(self, home: Path) -> None:
        from sweeps.engine.work import Need, Work
        from sweeps.store.definition import Definition
        from sweeps.store.folder import SweepFolder
        from sweeps.training.adapter import TRAINING

        self.home = home
        self.folder = SweepFolder(home / "demo", "demo")
        works = []
        for number, (algorithm, size) in enumerate((a, s) for s in SIZES for a in ALGORITHMS):
            name = f"{0x3FA1B20C55D0 + 0x9E3779B97F * number:012x}"
            seconds = 120.0 if size == "29k" else 180.0
            need = Need(1, 8, 8, wall_minutes=10, expected_minutes=seconds / 60)
            arguments = {"seconds": seconds, "is_broken": number == 0}
            labels = {"algorithm": algorithm, "num_params": SIZES[size]}
            place = str(home / "demo" / "runs" / name)
            works.append(Work(name, place, "sweep_under_pressure:sleep", arguments, need, labels, adapter=TRAINING))
        allocation = {"name": "gpu", "partition": "gpu", "account": "lab", "qos": "low", "gpus_per_node": 8}
        allocation |= {"cpus_per_node": 8, "quota": {"nodes": 3}}
        cluster = {"kind": "slurm", "tick_seconds": 1.0, "allocations": [allocation]}
        self.folder.write_definition(Definition("demo", "cluster", cluster, works))

    def start(self) -> subprocess.Popen[bytes]:
        command = [sys.executable, "-m", "sweeps.background", "demo", "demo"]
        with open(self.home / "launched", "wb") as file:
            return subprocess.Popen(command, cwd=self.home, stdout=file, stderr=subprocess.STDOUT)

    def launched(self) -> str:
        return self._shown((self.home / "launched").read_text())

    def say(self, *words: str) -> str:
        """A command and its output, as a terminal of 80 columns shows them."""
        command = [sys.executable, "-m", "sweeps", *words]
        done = subprocess.run(command, cwd=self.home, capture_output=True, text=True, check=False)
        return self._shown(f"$ muloco-sweep {' '.join(words)}\n{done.stdout}{done.stderr}")

    def watch(self, seconds: float) -> str:
        """The last picture of `watch` on a terminal, ended with Ctrl-C."""
        process, terminal = pty.fork()
        if process == 0:
            os.chdir(self.home)
            os.execv(sys.executable, [sys.executable, "-m", "sweeps", "watch", "demo"])
        until, text = time.monotonic() + seconds, b""
        is_asked = False
        with suppress(OSError):  # the terminal's end
            while read := os.read(terminal, 65536):
                text += read
                if time.monotonic() > until and not is_asked:
                    os.kill(process, signal.SIGINT)
                    is_asked = True
        os.waitpid(process, 0)
        # Each picture begins by going up over the one before.
        picture = re.split(rb"(?:\x1b\[1A\x1b\[2K)+", text)[-1].decode()
        plain = re.sub(r"\x1b\[[?\d;]*[a-zA-Z]", "", picture).replace("\r", "")
        return self._shown(f"$ muloco-sweep watch demo\n{plain}")

    def _shown(self, text: str) -> str:
        """Without the names of this machine."""
        text = text.replace(str(self.home.resolve()), "/home/you").replace(socket.gethostname(), "login1")
        return "\n".join(line.rstrip() for line in text.strip("\n").splitlines())

    def status(self) -> dict[str, Any]:
        command = [sys.executable, "-m", "sweeps", "status", "demo", "--json"]
        found: dict[str, Any] = json.loads(subprocess.check_output(command, cwd=self.home))
        return found

    def wait(self, happens: Callable[[dict[str, int]], bool], what: str) -> None:
        deadline = time.monotonic() + 240
        while not happens(counts := self.status()["counts"]):
            if time.monotonic() > deadline:
                raise TimeoutError(f"no {what}: {counts}")
            time.sleep(0.5)

    def run_in(self, status: str) -> str:
        """Some run of that status."""
        return str(next(one["run"] for one in self.status()["runs"] if one["standing"] == status))


def record(home: Path) -> list[tuple[str, str]]:
    """What is shown, each with the sentence before it."""
    from emulated_slurm import EmulatedSlurm

    with tempfile.TemporaryDirectory(prefix="slurm-", ignore_cleanup_errors=True) as state:
        os.chmod(state, 0o755)
        slurm = EmulatedSlurm(Path(state), num_nodes=4)
        found = []
        try:
            slurm.start()
            sweep = Recording(home)
            controller = sweep.start()
            sweep.wait(lambda counts: counts.get("running", 0) >= 2 and counts.get("held", 0) == 1, "first runs")
            found.append(
                (
                    "Eight runs, a quota of three nodes. One run names a folder of data that is not there; it is held, "
                    "the others go on:",
                    sweep.say("status", "demo"),
                )
            )
            found.append(("Why is it held?", sweep.say("explain", sweep.run_in("held"), "demo")))
            lost = sweep.run_in("running")
            state_now = sweep.folder.read_state(sweep.folder.read_definition()).state
            node = state_now.runs[lost].attempts[-1].nodes[0]
            slurm.declare_down(node)
            time.sleep(8)
            found.append((f"Node {node} fails. Its run is submitted again:", sweep.watch(5)))
            found.append(("", sweep.say("explain", lost, "demo")))
            slurm.hold_nodes(3, "nobody", qos="high")
            time.sleep(20)
            found.append(("Somebody's job of a higher QOS preempts three nodes:", sweep.say("status", "demo")))
            slurm.run("scancel", "--user=nobody")
            with suppress(subprocess.SubprocessError):  # it may have come back by itself
                slurm.declare_up(node)
            sweep.wait(lambda counts: counts.get("running", 0) >= 2, "new start")
            found.append(
                ("The nodes are free again, and runs go on from their checkpoints:", sweep.say("status", "demo"))
            )
            found.append(("The limits, and what is used of them:", sweep.say("quota", "demo")))
            controller.wait(timeout=600)
            found.append(("It is over:", sweep.say("status", "demo")))
            found.append(("What `launch` has printed from beginning to end:", sweep.launched()))
        finally:
            slurm.stop()
    return found


def main() -> None:
    argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter).parse_args()
    sys.path[:0] = [str(ROOT / "tests" / "cluster"), str(ROOT / "benchmarks")]
    from emulated_slurm import why_unavailable

    reason = why_unavailable()
    if reason is not None:
        print(f"skipped: {reason}", file=sys.stderr)
        return
    os.environ["PYTHONPATH"] = os.pathsep.join([str(ROOT / "benchmarks"), os.environ.get("PYTHONPATH", "")])
    os.environ["COLUMNS"], os.environ["LINES"] = str(COLUMNS), "40"
    with tempfile.TemporaryDirectory(prefix="home-", ignore_cleanup_errors=True) as home:
        os.environ["MULOCO_STATE"] = f"{home}/state"
        parts = record(Path(home))
    print("# A sweep under pressure\n")
    print("Recorded by `benchmarks/sweep_under_pressure.py` on a SLURM of four emulated nodes with 8 GPUs each, in a")
    print("terminal of 80 columns. The runs only sleep; all else is real.\n")
    for sentence, text in parts:
        print(f"{sentence}\n\n" if sentence else "", f"```text\n{text}\n```\n", sep="")


if __name__ == "__main__":
    main()
