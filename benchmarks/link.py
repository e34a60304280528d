"""Time to one validation loss on an emulated link, measured beside what the wall-clock model says.

Four gloo processes train each algorithm without the link, which gives the seconds of a step and the steps to the loss,
and right after it with the link; again and again in turn. A step counts with its median over the repeats. Losses are
the same each time. The loss to reach is the largest that any algorithm ends with, so that all reach it.
"""

from __future__ import annotations

import argparse
import dataclasses
import itertools
import json
import os
import statistics
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import get_args

import torch
from rich.console import Console
from rich.table import Table

from analysis.questions.wall_clock import Assumptions, Training, charles_seconds
from muloco_runner.compose import compose_app_config
from muloco_runner.config import DiLoCoConfig, ExecutionConfig, QuantisationConfig, Reduction, RunConfig
from muloco_runner.job import run_job
from muloco_runner.optimizers.orthogonalize import result_dtype
from muloco_runner.record import RunFolder, StepRecord

RANKS = 4
MULOCO = ["algorithm=muloco", "inner_optimizer.lr=0.022"]
FOUR_BITS = ["method/compression=statistical", "method.compression.bits=4"]
STREAMING = ["method.streaming.num_fragments=2", "method.streaming.delay_steps={delay}"]
ALGORITHMS = {
    "DDP-AdamW": ["algorithm=ddp_adamw", "inner_optimizer.lr=0.0156"],
    "DDP-Muon": ["algorithm=ddp_muon", "inner_optimizer.lr=0.022"],
    "DiLoCo": ["algorithm=diloco", "inner_optimizer.lr=0.0078"],
    "MuLoCo": MULOCO,
    "MuLoCo, 4 bits": [*MULOCO, *FOUR_BITS],
    "MuLoCo, streaming": [*MULOCO, *STREAMING],
    "MuLoCo, 4 bits, streaming": [*MULOCO, *FOUR_BITS, *STREAMING],
}


@dataclass
class Trained:
    """One algorithm, over all repeats."""

    run: RunConfig
    without: list[list[StepRecord]]
    with_link: list[list[StepRecord]]

    def __post_init__(self) -> None:
        losses = {tuple(step.loss for step in steps) for steps in (*self.without, *self.with_link)}
        if len(losses) > 1:
            sys.exit("the link changed the losses")

    @property
    def lowest_loss(self) -> float:
        return min(step.validation_loss for step in self.without[0] if step.validation_loss is not None)

    def steps_to(self, loss: float) -> int:
        steps = self.without[0]
        return next(s.step for s in steps if s.validation_loss is not None and s.validation_loss <= loss)

    def step_seconds(self) -> float:
        """Seconds of a step without the link."""
        return statistics.fmean(median_seconds(self.without))

    def seconds_to(self, step: int) -> float:
        """Seconds to that step on the link."""
        return sum(median_seconds(self.with_link)[:step])

    @property
    def bytes_per_step(self) -> float:
        """Bytes of a step that one rank sends."""
        last = self.with_link[0][-1]
        assert last.rank_bytes_sent is not None
        return last.rank_bytes_sent[0] / last.step

    @property
    def wait_share(self) -> float:
        """Share of the training time on the link that ranks wait."""
        last = [steps[-1] for steps in self.with_link]
        return statistics.median(
            statistics.fmean(step.rank_wait_seconds or [0.0]) / (step.train_seconds or 1.0) for step in last
        )


def median_seconds(repeats: list[list[StepRecord]]) -> list[float]:
    """Seconds of each step, the median over the repeats."""
    totals = [[0.0, *(step.train_seconds or 0.0 for step in steps)] for steps in repeats]
    return [
        statistics.median(seconds)
        for seconds in zip(*([b - a for a, b in itertools.pairwise(total)] for total in totals), strict=True)
    ]


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").strip(), formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--megabits", type=float, default=100.0, help="bandwidth of each rank's link (default 100)")
    parser.add_argument("--latency", type=float, default=5.0, help="its latency, milliseconds (default 5)")
    parser.add_argument("--model", default="134k", help="a file under conf/model (default 134k)")
    parser.add_argument("--steps", type=int, default=60, help="inner steps of each training (default 60)")
    parser.add_argument("--sync-interval", type=int, default=10, help="H (default 10)")
    parser.add_argument("--delay", type=int, default=3, help="tau of streaming (default 3)")
    parser.add_argument("--repeats", type=int, default=3, help="trainings of each kind (default 3)")
    parser.add_argument(
        "--reduction",
        choices=get_args(Reduction),
        default="auto",
        help="execution.reduction (default auto); the model does not know that overlapped hides some of what is sent",
    )
    parser.add_argument("--jobs", type=Path, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.jobs:
        train_as_rank(arguments.jobs)
        return
    with tempfile.TemporaryDirectory() as root:
        trained = train_all(Path(root), arguments)
    console = Console()
    console = console if console.is_terminal else Console(width=120)
    console.print(report(trained, arguments))


def train_all(root: Path, arguments: argparse.Namespace) -> dict[str, Trained]:
    """Every algorithm without and with the link, in turn."""
    common = {"device": "cpu", "log_interval_steps": 1, "reduction": arguments.reduction}
    plain = ExecutionConfig(**common, evaluate_interval_steps=arguments.sync_interval)
    link = {"link_megabits_per_second": arguments.megabits, "link_latency_milliseconds": arguments.latency}
    executions = {"without": plain, "with": ExecutionConfig(**common, **link)}
    runs = {name: make_run(overrides, arguments) for name, overrides in ALGORITHMS.items()}
    jobs, folders = [], {}
    for repeat in range(arguments.repeats):
        for name, run in runs.items():
            for kind, execution in executions.items():
                folder = RunFolder.of(root / f"{kind}-{repeat}", run.run_id)
                folder.write_config(run.to_dict())
                folders[name, kind, repeat] = folder
                label = f"{name}, {kind} the link, {repeat + 1} of {arguments.repeats}"
                jobs.append({"label": label, "folder": str(folder.path), "execution": dataclasses.asdict(execution)})
    (root / "jobs.json").write_text(json.dumps(jobs))
    start_ranks(root / "jobs.json")
    repeats = range(arguments.repeats)
    return {
        name: Trained(run, *([folders[name, kind, n].read_steps() for n in repeats] for kind in executions))
        for name, run in runs.items()
    }


def make_run(overrides: list[str], arguments: argparse.Namespace) -> RunConfig:
    overrides = [override.format(delay=arguments.delay) for override in overrides]
    if not overrides[0].startswith("algorithm=ddp"):
        overrides += [f"method.num_workers={RANKS}", f"method.sync_interval={arguments.sync_interval}"]
    shared = [f"model={arguments.model}", "global_batch_tokens=2048", "data.validation_tokens=16384"]
    run = compose_app_config([*overrides, *shared]).run
    tokens_per_parameter = arguments.steps * run.global_batch_tokens / run.num_params
    return dataclasses.replace(run, tokens_per_parameter=tokens_per_parameter)


def start_ranks(jobs: Path) -> None:
    """One process a rank, each training all jobs in turn."""
    processes = []
    for rank in range(RANKS):
        place = {
            "RANK": str(rank),
            "LOCAL_RANK": str(rank),
            "WORLD_SIZE": str(RANKS),
            "MULOCO_RDZV_ID": str(os.getpid()),
        }
        environment = {**os.environ, **place, "OMP_NUM_THREADS": "1"}
        command = [sys.executable, __file__, "--jobs", str(jobs)]
        processes.append(subprocess.Popen(command, env=environment, stderr=subprocess.PIPE, text=True))
    errors = [process.communicate()[1] for process in processes]
    if any(process.returncode for process in processes):
        sys.exit("a rank failed:\n" + "\n".join(errors))


def train_as_rank(jobs: Path) -> None:
    """What each of the processes does."""
    for job in json.loads(jobs.read_text()):
        if os.environ["RANK"] == "0":
            print(job["label"], flush=True)
        code = run_job(RunFolder(job["folder"]), ExecutionConfig(**job["execution"]))
        if code:
            sys.exit(code)


def predicted_seconds(run: RunConfig, steps: int, step_seconds: float, arguments: argparse.Namespace) -> float:
    """The wall-clock model's word, given the seconds of a step without the link."""
    method = run.method
    # The speed of a device as the step without the link shows it.
    flops = 6 * run.num_params * run.global_batch_tokens / (RANKS * step_seconds)
    training = Training(run.num_params, steps * run.global_batch_tokens, run.global_batch_tokens)
    bits, rounds = 32.0, 2
    if run.algorithm == "DDP-Muon":
        # Gradients of matrices go to their owners, norms to all, and results come back in their own precision.
        width = run.model.width
        results = 8 * result_dtype("cpu", width, width, torch.float32).itemsize
        bits -= (32 - results) / 2 * run.model.num_hidden_params / run.num_params
        rounds += 1 + 2 + 1
    if isinstance(method, DiLoCoConfig):
        training = dataclasses.replace(
            training,
            num_workers=RANKS,
            sync_interval=method.sync_interval,
            num_fragments=method.streaming.num_fragments,
            delay_steps=method.streaming.delay_steps,
        )
        if isinstance(method.compression, QuantisationConfig):
            # Every payload goes to every worker: K - 1 of them, where an all-reduce moves 2 (K - 1) / K.
            training = dataclasses.replace(training, compression=32 / method.compression.bits * 2 / RANKS)
            rounds = 1
    assume = Assumptions(
        bits_per_value=bits, num_devices=RANKS, device_flops=flops, latency_seconds=rounds * arguments.latency / 1e3
    )
    return charles_seconds(training, arguments.megabits * 1e6, assume)


def report(trained: dict[str, Trained], arguments: argparse.Namespace) -> Table:
    goal = max(one.lowest_loss for one in trained.values())
    table = Table(
        title=f"Seconds to a validation loss of {goal:.3f} (median; fastest and slowest of {arguments.repeats})\n"
        f"{RANKS} workers, {arguments.megabits:g} Mbit/s, {arguments.latency:g} ms, {arguments.model} parameters, "
        f"H = {arguments.sync_interval}, {arguments.delay} steps of delay with streaming"
    )
    headings = ("steps", "ms a step,\nno link", "kB sent\na step", "waiting", "measured", "model", "off", "speed")
    for heading in ("algorithm", *headings):
        table.add_column(heading, justify="left" if heading == "algorithm" else "right")
    baseline = 0.0
    for name, one in trained.items():
        steps = one.steps_to(goal)
        measured = one.seconds_to(steps)
        model = predicted_seconds(one.run, steps, one.step_seconds(), arguments)
        totals = [sum(median_seconds([repeat])[:steps]) for repeat in one.with_link]
        baseline = baseline or measured
        table.add_row(
            name,
            str(steps),
            f"{1e3 * one.step_seconds():.1f}",
            f"{one.bytes_per_step / 1e3:.0f}",
            f"{one.wait_share:.0%}",
            f"{measured:.2f} ({min(totals):.2f}-{max(totals):.2f})",
            f"{model:.2f}",
            f"{model / measured - 1:+.0%}",
            f"{baseline / measured:.2f}x",
        )
    return table


if __name__ == "__main__":
    main()
