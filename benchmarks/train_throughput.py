"""The trainer's inner step against a plain torch loop of the same model, in one process and in turns.

The plain loop is what one writes first: DistributedDataParallel, torch.optim.AdamW, clip_grad_norm_, the whole logits,
`loss.item()` each step. Both read the same batches. Given are medians over rounds, tokens/s, model FLOPs utilisation
in two views, 6N a token and the flops that devices compute (of the data sheet's peak, or where that is not known of
what a matrix product reaches here), and the peak of torch's allocator. The second table is what an outer step of MuLoCo
costs beside H inner steps; on a GPU a third one tells which kernels the trainer's step spends its time in.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from typing import Any

import bare_machine  # noqa: F401

# isort: split
import torch
import torch.distributed as dist
import torch.nn.functional as F
from rich.console import Console
from rich.table import Table
from torch.nn.parallel import DistributedDataParallel
from torch.profiler import ProfilerActivity, profile

from benchmarks.models import model_named
from benchmarks.train_parts.peak_memory import peak_bytes
from muloco_runner.config import ConfigError, DiLoCoConfig, ExecutionConfig, MuonConfig, RunConfig
from muloco_runner.data.batches import TrainingData
from muloco_runner.data.corpus import Corpus, load_corpus
from muloco_runner.distributed.communicator import Communicator
from muloco_runner.distributed.topology import Topology
from muloco_runner.model.transformer import build_model
from muloco_runner.record import RunFolder
from muloco_runner.training.loop import Trainer
from muloco_runner.training.mfu import peak_flops, utilisations_at
from muloco_runner.training.precision import DTYPES
from muloco_runner.training.session import Session

Step = Callable[[int], None]


def plain_loop(run: RunConfig, corpus: Corpus, device: torch.device) -> Step:
    """One step of the loop that people write first. The caller has opened a process group of one rank."""
    model = build_model(run.model, run.seed, device)
    parallel = DistributedDataParallel(model)
    beta1, beta2 = run.inner_optimizer.betas
    optimizer = torch.optim.AdamW(
        model.parameters(), run.inner_optimizer.lr, (beta1, beta2), weight_decay=run.weight_decay
    )
    data, dtype = TrainingData(corpus, run, device), DTYPES[run.precision]

    def step(number: int) -> None:
        batch = data.worker_batch(number, 0)
        with torch.autocast(device.type, dtype, enabled=dtype != torch.float32):
            logits = parallel(batch.tokens_BT, batch.documents_BT)
            loss = F.cross_entropy(logits.flatten(0, 1).float(), batch.targets_BT.flatten())
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), run.gradient_clip_norm)
        optimizer.step()
        optimizer.zero_grad()
        loss.item()

    return step


def trainer_of(run: RunConfig, corpus: Corpus, device: torch.device) -> Trainer:
    folder = RunFolder.of(tempfile.mkdtemp(), run.run_id)
    session = Session(folder, ExecutionConfig(device=device.type), Communicator(Topology(run.num_workers)), device)
    return Trainer(run, corpus, session)


def trainer_step(trainer: Trainer) -> Step:
    def step(number: int) -> None:
        trainer.step_workers()
        trainer.state.losses[:, number].sum().item()

    return step


def product_flops(precision: str, device: torch.device) -> float:
    """FLOP/s of a large square matrix product here, the best of some."""
    size = 1024 if device.type == "cpu" else 8192
    a = torch.randn(size, size, device=device, dtype=DTYPES[precision])
    times = []
    for _ in range(8):
        began = clock(device)
        a @ a
        times.append(clock(device) - began)
    return 2 * size**3 / min(times)


def clock(device: torch.device) -> float:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter()


def in_turns(steps: dict[str, Step], rounds: int, device: torch.device) -> dict[str, list[float]]:
    """Seconds of each step of each; the first two warm up."""
    seconds: dict[str, list[float]] = {name: [] for name in steps}
    for number in range(rounds + 2):
        for name, step in steps.items():
            began = clock(device)
            step(number)
            if number >= 2:
                seconds[name].append(clock(device) - began)
    return seconds


def compare(run: RunConfig, rounds: int, device: torch.device) -> list[list[str]]:
    """Rows of the table: the plain loop, then the trainer."""
    corpus = load_corpus(run.data)
    makers: dict[str, Callable[[], Step]] = {
        "plain torch loop": lambda: plain_loop(run, corpus, device),
        "muloco-train": lambda: trainer_step(trainer_of(run, corpus, device)),
    }

    def two_steps(make: Callable[[], Step]) -> Callable[[], None]:
        def both() -> None:
            step = make()
            step(0)
            step(1)

        return both

    memory = {name: peak_bytes(two_steps(make), device) for name, make in makers.items()}
    seconds = in_turns({name: make() for name, make in makers.items()}, rounds, device)
    peak = peak_flops(device, run.precision) or product_flops(run.precision, device)
    rows = []
    plain, plain_memory = seconds["plain torch loop"], memory["plain torch loop"]
    for name, times in seconds.items():
        median = statistics.median(times)
        speed = run.global_batch_tokens / median
        ratios = sorted(p / t for p, t in zip(plain, times, strict=True))
        spread = f"{statistics.median(ratios):.2f} ({ratios[len(ratios) // 4]:.2f}-{ratios[-1 - len(ratios) // 4]:.2f})"
        rows.append(
            [
                f"{run.num_params / 1e6:.2f}M {run.precision}",
                name,
                f"{speed:,.0f}",
                *(f"{share:.0%}" for share in utilisations_at(run, speed, peak).values()),
                spread,
                f"{memory[name] / 1e6:,.0f}",
                f"{memory[name] / plain_memory:.2f}",
            ]
        )
    return rows


def outer_overhead(run: RunConfig, rounds: int, device: torch.device) -> list[str]:
    """One row: an inner step, an outer step, and the second's share of H of the first."""
    trainer = trainer_of(run, load_corpus(run.data), device)
    assert isinstance(run.method, DiLoCoConfig)
    inner, outer = [], []
    for number in range(rounds + 1):
        began = clock(device)
        trainer.step_workers()
        between = clock(device)
        trainer.method.after_inner_step(run.method.sync_interval)
        if number:
            inner.append(between - began)
            outer.append(clock(device) - between)
    share = statistics.median(outer) / (run.method.sync_interval * statistics.median(inner))
    return [
        f"{run.num_params / 1e6:.1f}M {run.precision}",
        f"{run.worker_batch_tokens:,}",
        f"{statistics.median(inner):.3f}",
        f"{statistics.median(outer):.3f}",
        f"{share:.2%}",
    ]


def kernel_shares(run: RunConfig, device: torch.device) -> Table:
    """Where the trainer's steps spend a GPU's time."""
    step = trainer_step(trainer_of(run, load_corpus(run.data), device))
    for number in range(2):
        step(number)
    with profile(activities=[ProfilerActivity.CUDA], acc_events=True) as profiler:
        for number in range(2, 5):
            step(number)
    kernels = sorted(profiler.key_averages(), key=lambda event: -event.device_time_total)
    total = sum(event.device_time_total for event in kernels)
    table = Table("kernel", "share", title=f"{run.num_params / 1e6:.0f}M {run.precision}, {run.algorithm}")
    for event in kernels[:12]:
        table.add_row(event.key[:90], f"{event.device_time_total / total:.1%}")
    return table


def run_of(model: str, batch_tokens: int, **choices: Any) -> RunConfig:
    """With the algorithm's defaults; `choices` are fields of `RunConfig`."""
    config = model_named(model)
    # Long enough for every round.
    budget = 1000 * batch_tokens / config.num_params
    return RunConfig(config, global_batch_tokens=batch_tokens, tokens_per_parameter=budget, **choices)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", nargs="+", default=["82k", "503k"], help="names under conf/model")
    parser.add_argument("--precisions", nargs="+", default=["float32", "bfloat16"])
    parser.add_argument("--batch-tokens", type=int, default=4096, help="tokens in a step")
    parser.add_argument("--rounds", type=int, default=11, help="steps of each that count")
    parser.add_argument("--outer-model", default="503k", help="model of the outer step's table")
    parser.add_argument("--outer-batch-tokens", type=int, default=16384)
    parser.add_argument("--outer-rounds", type=int, default=3)
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    arguments = parser.parse_args()
    device = torch.device(arguments.device)
    backend = "nccl" if device.type == "cuda" else "gloo"
    dist.init_process_group(backend, init_method=f"file://{tempfile.mkdtemp()}/meeting", rank=0, world_size=1)
    console = Console(width=120)
    try:
        table = Table(
            "model", "loop", "tokens/s", "MFU, 6N", "MFU, hardware", "speed, ratio", "peak MB", "memory, ratio"
        )
        for model in arguments.models:
            for precision in arguments.precisions:
                run = run_of(model, arguments.batch_tokens, precision=precision)
                for row in compare(run, arguments.rounds, device):
                    table.add_row(*row)
        outer = Table("model", "tokens a step", "inner step s", "outer step s", "share of H inner steps")
        muloco = {"method": DiLoCoConfig(), "inner_optimizer": MuonConfig()}
        run = run_of(arguments.outer_model, arguments.outer_batch_tokens, precision="bfloat16", **muloco)
        outer.add_row(*outer_overhead(run, arguments.outer_rounds, device))
    except ConfigError as error:
        sys.exit(f"train_throughput: {error}")
    finally:
        dist.destroy_process_group()
    console.print(f"torch {torch.__version__}, {torch.get_num_threads()} threads, {device.type}")
    console.print(table)
    console.print(outer)
    if device.type == "cuda":
        for model in arguments.models:
            run = run_of(model, arguments.batch_tokens, precision="bfloat16", inner_optimizer=MuonConfig())
            console.print(kernel_shares(run, device))


if __name__ == "__main__":
    main()
