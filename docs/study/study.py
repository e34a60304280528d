"""Continues the study of this folder from its records, and reports it: `make study`.

    python docs/study/study.py [SLICE ...] [--root FOLDER] [--minutes M]

A slice is a sweep file under `sweeps/`. One that is over trains nothing; one that the time cuts off goes on next time.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import platform
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path

import figure
import page
import records

from muloco_runner.record import ExitCode, write_atomically
from muloco_sweeps import python_command

HERE = Path(__file__).parent
SLICES = ("29k", "29k_workers", "29k_budgets", "42k", "42k_workers", "82k", "134k")
"""In the order in which they run."""
_KEPT = (
    "report.html",
    "report.json",
    "figures/loss_vs_batch_*.svg",
    "figures/loss_vs_tokens_*.svg",
    "figures/training_curves_*.svg",
)
"""Of the report's files, those that the repository keeps."""
_PATIENCE_SECONDS = 60.0
"""For a launch that was asked to stop."""


def main(words: Sequence[str]) -> int:
    """Run what the command line names and return its exit code."""
    arguments = _parser().parse_args(words)
    slices = arguments.slices or SLICES
    stop_at = time.monotonic() + 60 * arguments.minutes
    restore(arguments.root)
    for name in slices:
        left = stop_at - time.monotonic()
        code = launch(name, arguments.root, left) if left > 0 else ExitCode.CRASH
        if code == ExitCode.USAGE:
            return code
        keep(name, arguments.root)
        if code != ExitCode.FINISHED:
            print(f"study: slice {name} is not over; the same command continues it")
            break
    return report(arguments.root)


def restore(root: Path) -> None:
    """Unpack the records of all slices below `root`."""
    for archive in sorted((HERE / "records").glob("*.tar.xz")):
        records.unpack(root, archive)


def keep(name: str, root: Path) -> None:
    """Pack what a slice has recorded, where it has begun, and note on what machine that grew."""
    archive, machines = HERE / "records" / f"{name}.tar.xz", HERE / "records" / "machines.json"
    if not (root / "sweeps" / name / "definition.jsonl").exists():
        return
    before = archive.read_bytes() if archive.exists() else None
    size = records.pack(root, name, archive)
    print(f"records/{name}.tar.xz: {size:,} bytes")
    if archive.read_bytes() != before:
        known = json.loads(machines.read_text()) if machines.exists() else {}
        write_atomically(machines, json.dumps({**known, name: machine()}, indent=1, sort_keys=True) + "\n")


def machine() -> dict[str, str]:
    """What the last bits of a loss depend on."""
    import torch

    found = None
    with contextlib.suppress(OSError):
        found = re.search(r"^model name\s*: (.*)$", Path("/proc/cpuinfo").read_text(), re.MULTILINE)
    return {
        "torch": str(torch.__version__),
        "instructions": torch.backends.cpu.get_cpu_capability(),
        "processor": found[1] if found else platform.processor(),
    }


def launch(name: str, root: Path, seconds: float) -> int:
    """Run a slice, for so many seconds at most, and return the exit code of `muloco-sweep launch`."""
    words = [str(HERE / "sweeps" / f"{name}.yaml"), "cluster=local", f"root={root}", "execution.log_interval_steps=100"]
    with subprocess.Popen([*python_command("sweeps"), "launch", *words], env=_one_thread()) as process:
        try:
            return process.wait(seconds)
        except (subprocess.TimeoutExpired, KeyboardInterrupt):
            process.send_signal(signal.SIGTERM)
            return process.wait(_PATIENCE_SECONDS)


def report(root: Path) -> int:
    """Write the report, the headline figure and the numbers of the pages, and return the report's exit code."""
    words = [str(root), "--out", str(root / "report"), "--title", "Four optimizers at small sizes"]
    code = subprocess.run([*python_command("analysis"), *words], env=_one_thread(), check=False).returncode
    if code == ExitCode.FINISHED:
        shutil.rmtree(HERE / "report", ignore_errors=True)
        (HERE / "report").mkdir()
        for pattern in _KEPT:
            for path in (root / "report").glob(pattern):
                shutil.copy(path, HERE / "report" / path.name)
        figure.write(page.read_report(), HERE / "headline.svg")
        page.write()
    return code


def _one_thread() -> dict[str, str]:
    """The environment, with one thread a process: losses to the bit depend on it."""
    return {**os.environ, "OMP_NUM_THREADS": "1"}


def _slice(name: str) -> str:
    """Not `choices`: argparse would hold an empty list against them too."""
    if name not in SLICES:
        raise argparse.ArgumentTypeError(f"{name}: no such slice; there are {', '.join(SLICES)}")
    return name


def _parser() -> argparse.ArgumentParser:
    assert __doc__ is not None
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("slices", nargs="*", type=_slice, metavar="SLICE", help=f"of {', '.join(SLICES)}; all")
    parser.add_argument("--root", type=Path, default=Path("study"), help="of the runs (study)")
    parser.add_argument("--minutes", type=float, default=150.0, help="after which training stops (150)")
    return parser


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
