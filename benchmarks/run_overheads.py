"""What a run pays beside training: records as a share of a step, and how long a checkpoint holds training up.

Trains MuLoCo with K = 2 on the interpreter's standard library, on the CPU, with checkpoints far more often than any
run would have. A checkpoint in the background holds training up only while the state is copied; the peer is the same
checkpoint written while training waits, which is the sum of both.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.table import Table

from muloco_runner.compose import compose_app_config
from muloco_runner.config import ExecutionConfig
from muloco_runner.data.corpus import load_corpus
from muloco_runner.distributed.communicator import Communicator
from muloco_runner.distributed.topology import Topology
from muloco_runner.record import RunFolder
from muloco_runner.training.loop import Trainer
from muloco_runner.training.session import Session


def timed(owner: Any, name: str, seconds: list[float]) -> None:
    """Replaces a method by itself with a stopwatch."""
    method: Callable[..., Any] = getattr(owner, name)

    def measured(*arguments: Any, **named: Any) -> Any:
        began = time.perf_counter()
        try:
            return method(*arguments, **named)
        finally:
            seconds.append(time.perf_counter() - began)

    setattr(owner, name, measured)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="503k")
    parser.add_argument("--steps", type=int, default=100)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    words = ["algorithm=muloco", f"model={arguments.model}", "method.num_workers=2", "method.sync_interval=10"]
    run = compose_app_config(words).run
    budget = arguments.steps * run.global_batch_tokens / run.num_params
    run = compose_app_config([*words, f"tokens_per_parameter={budget}"]).run
    seconds: dict[str, list[float]] = {"log": [], "begin": [], "_write": [], "_commit": []}
    with tempfile.TemporaryDirectory() as directory:
        folder = RunFolder.of(directory, run.run_id)
        folder.write_config(run.to_dict())
        execution = ExecutionConfig(device="cpu", checkpoint_interval_seconds=1.0)
        session = Session(folder, execution, Communicator(Topology(run.num_workers)), torch.device("cpu"))
        trainer = Trainer(run, load_corpus(run.data), session)
        for name, into in seconds.items():
            timed(trainer.metrics if name == "log" else trainer.checkpointing.store, name, into)
        trainer.train()
        newest = sorted(Path(folder.checkpoint_dir).iterdir())[-1]
        size = sum(file.stat().st_size for file in newest.iterdir())
    step = trainer.clock.seconds / run.num_steps
    table = Table(title=f"MuLoCo, N={run.num_params:,}, K=2, {run.num_steps} steps", box=None, title_justify="left")
    for name in ("what", "times", "median", "least", "most"):
        table.add_column(name, justify="left" if name == "what" else "right")
    labels = {
        "log": "one line of the record, heartbeat included",
        "begin": f"checkpoint of {size / 1e6:.1f} MB: training held up",
        "_write": "checkpoint written and synced, in the background",
        "_commit": "checkpoint made whole, in the background",
    }
    for name, values in seconds.items():
        spread = (f"{1e3 * v:.1f} ms" for v in (statistics.median(values), min(values), max(values)))
        table.add_row(labels[name], str(len(values)), *spread)
    Console(width=110).print(table)
    held, written, whole = (statistics.median(seconds[n]) for n in ("begin", "_write", "_commit"))
    print(f"a step: {1e3 * step:.1f} ms; records: {sum(seconds['log']) / trainer.clock.seconds:.2%} of training")
    print(f"checkpoints hold training up for {held / (held + written + whole):.1%} of what they would if it waited")


if __name__ == "__main__":
    main()
