"""The sections one after the other, each in a process of its own; one table, a verdict, and a JSON file."""

from __future__ import annotations

import contextlib
import json
import multiprocessing
import platform
import shlex
import sys
import tempfile
import time
import traceback
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from importlib import metadata
from pathlib import Path
from typing import Any

from muloco_runner.config import ConfigError
from muloco_runner.flags import Parser, any_path, one_of
from muloco_runner.machine_check import attention_kernels, ceilings, kernels, ranks, speed, tile_sweep, workers
from muloco_runner.machine_check.findings import Finding, Findings, read_findings
from muloco_runner.record import ExitCode, write_atomically
from muloco_sweeps import environment_variable

Check = Callable[[Any, Findings], None]


@dataclass(frozen=True)
class Section:
    """A check, and the seconds that it may take on a GPU."""

    check: Check
    limit: float


SECTIONS: Mapping[str, Section] = {
    "ceilings": Section(ceilings.check, 30),
    "kernels": Section(kernels.check, 90),
    "attention": Section(attention_kernels.check, 60),
    "workers": Section(workers.check, 90),
    "speed": Section(speed.check, 120),
    "ranks": Section(ranks.check, 90),
    "tiles": Section(tile_sweep.check, 60),
}
"""In this order: what tells most comes before what may be cut off."""


@dataclass
class Outcome:
    """What became of a section."""

    section: str
    seconds: float
    failure: str = ""
    """In one line; empty where it came to its end."""
    findings: list[Finding] = field(default_factory=list)

    @property
    def is_right(self) -> bool:
        return not self.failure and all(finding.verdict != "wrong" for finding in self.findings)


def main(arguments: Sequence[str], sections: Mapping[str, Section] = SECTIONS, program: str = "check-gpu") -> ExitCode:
    """Check this machine as the command line says, and return how it ended: `CRASH` where something is wrong."""
    try:
        given = _parser(sections, program).parse_args(arguments)
    except ConfigError as error:
        print(f"{program}: {error}", file=sys.stderr)
        return ExitCode.USAGE
    device = _device(given.device)
    if device is None:
        print(f"{program}: --device cuda: torch finds no GPU here: use auto or cpu", file=sys.stderr)
        return ExitCode.USAGE
    if device == "cpu":
        print("No GPU: tiny sizes on the CPU. They tell whether the code works, and nothing about speed.", flush=True)
    began = time.time()
    chosen = {name: sections[name] for name in given.sections or sections}
    outcomes = [_run(name, section, device) for name, section in chosen.items()]
    report = {
        "began_at": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(began)),
        "command": shlex.join([program, *arguments]),
        "machine": machine_words(device),
        "seconds": time.time() - began,
        "sections": [asdict(outcome) for outcome in outcomes],
    }
    write_atomically(given.out, json.dumps(report, indent=1))
    print(summary(outcomes, device))
    print(f"{report['seconds']:.0f} s in all; all figures are in {given.out}")
    return ExitCode.FINISHED if all(outcome.is_right for outcome in outcomes) else ExitCode.CRASH


def _parser(sections: Mapping[str, Section], program: str) -> Parser:
    parser = Parser(
        prog=program,
        description="Is this machine fit to train, and how fast will it be? Minutes on a GPU; tiny sizes on a CPU, "
        "which tell whether the code works and nothing about speed.",
        epilog="Exit codes: 0 all is right (a speed that misses what was hoped for too), 1 something is wrong, 2 a "
        "mistake in the command.",
    )
    parser.add_argument(
        "sections", nargs="*", type=one_of(*sections), metavar="SECTION",
        help=f"of {', '.join(sections)}; default: all, in this order",
    )  # fmt: skip
    parser.add_argument(
        "--out", type=any_path("a file"), default=Path("gpu_check.json"), help="JSON file; default: %(default)s"
    )
    parser.add_argument(
        "--device", type=one_of("auto", "cpu", "cuda"), default="auto", help="auto, cpu or cuda; default: auto"
    )
    return parser


def _device(name: str) -> str | None:
    import torch

    has_gpu = torch.cuda.is_available()
    if name == "cuda" and not has_gpu:
        return None
    return "cuda" if has_gpu and name != "cpu" else "cpu"


def machine_words(device: str) -> dict[str, str]:
    """Return what the figures depend on: the device and the versions."""
    import torch

    words = {"host": platform.platform(), "python": platform.python_version(), "torch": torch.__version__}
    if device == "cuda":
        properties = torch.cuda.get_device_properties(0)
        words |= {
            "device": f"{properties.name}, {properties.multi_processor_count} processors, "
            f"{properties.total_memory / 2**30:.0f} GiB, {torch.cuda.device_count()} of them",
            "cuda": str(torch.version.cuda),
        }
    else:
        words["device"] = f"CPU, {torch.get_num_threads()} threads"
    try:
        words["triton"] = metadata.version("triton")
    except metadata.PackageNotFoundError:
        words["triton"] = "absent"
    return words


def _run(name: str, section: Section, device: str) -> Outcome:
    """Run one section; it is killed at its limit, and may crash."""
    print(f"== {name}", flush=True)
    began = time.monotonic()
    with tempfile.TemporaryDirectory(prefix="check-") as folder:
        file, error = Path(folder) / "findings.jsonl", Path(folder) / "error.txt"
        # Spawned: CUDA does not survive a fork. It finds this project where this process does.
        process = multiprocessing.get_context("spawn").Process(
            target=_section, args=(name, section.check, device, file, error)
        )
        # Triton reads it when it is first imported: without a GPU its kernels are interpreted.
        with environment_variable("TRITON_INTERPRET", "1") if device == "cpu" else contextlib.nullcontext():
            process.start()
        process.join(section.limit if device == "cuda" else None)
        if process.is_alive():
            process.kill()
            process.join()
            failure = f"killed after its {section.limit:.0f} s"
        elif process.exitcode:
            failure = error.read_text() if error.exists() else f"its process ended with {process.exitcode}"
        else:
            failure = ""
        outcome = Outcome(name, time.monotonic() - began, failure, read_findings(file))
    print(f"-- {name}: {outcome.seconds:.0f} s{'; ' + failure if failure else ''}", flush=True)
    return outcome


def _section(name: str, check: Check, device: str, file: Path, error: Path) -> None:
    """In its own process: run the check, and leave why it failed in `error`."""
    import torch

    from muloco_runner.machine_check.timing import Machine

    try:
        check(Machine(torch.device(device, 0) if device == "cuda" else torch.device(device)), Findings(name, file))
    except Exception as exception:
        traceback.print_exc()
        error.write_text(f"{type(exception).__name__}: {' '.join(str(exception).split())[:200]}")
        sys.exit(1)


def summary(outcomes: Sequence[Outcome], device: str) -> str:
    """Return a table of the sections, what is wrong or misses its bar, and one line that says whether all is well."""
    lines = ["", f"{'section':10} {'s':>5} {'right':>6} {'wrong':>6} {'meets':>6} {'misses':>6} {'absent':>6}"]
    for outcome in outcomes:
        verdicts = [finding.verdict for finding in outcome.findings]
        counts = " ".join(f"{verdicts.count(v):6}" for v in ("ok", "wrong", "meets", "misses", "absent"))
        lines.append(f"{outcome.section:10} {outcome.seconds:5.0f} {counts}  {outcome.failure}".rstrip())
    found = [finding for outcome in outcomes for finding in outcome.findings]
    lines += [f"{f.section}: {f}" for f in found if f.verdict in ("wrong", "misses", "absent")]
    wrong = [outcome.section for outcome in outcomes if not outcome.is_right]
    if wrong:
        lines.append(f"Not fit: see {', '.join(wrong)}.")
    elif device == "cpu":
        lines.append("The code works here.")
    else:
        lines.append("Fit.")
    return "\n".join(lines)
