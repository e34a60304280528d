"""One optimizer step on the hidden matrices of a ladder model: this project's Muon, its peers, and the computed floor.

All peers step in turn, many times; the table gives medians, each peer's speed over Keller Jordan's loop (the median of
the ratios within a turn, with quartiles), and the error of a first step against the polynomial in float64. A peer that
is not installed, fails or runs out of memory says so in its row, and the others go on.

On a CPU: the 150m model. On a GPU: all six, as many layers as fit, scaled up to the whole model; the share of each of
our kernels; and AdamW on embedding and head.
"""

from __future__ import annotations

import argparse
import gc
import math
import statistics
import time
from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import bare_machine  # noqa: F401

# isort: split
import torch
from rich.console import Console
from rich.table import Table
from torch import nn

from benchmarks.muon_parts.floors import BYTES_A_PARAMETER, H100, Ladder, floor_seconds, measured_rates
from benchmarks.muon_parts.peers import Absent, MakeStep, Step, ours, peers, relative_error
from muloco_runner.optimizers import Muon

MODELS = ("150m", "416m", "914m", "1.76b", "3.1b", "15b")
LOOP = "Keller Jordan's loop"
RANK_SHARE = 8
NOISE = 0.1
"""Gradients are of rank side / `RANK_SHARE`, plus `NOISE` of full rank: an element's, of the signal's."""
BYTES_EACH = 14
"""A parameter with gradient, momentum and what a step needs on the way."""


@dataclass
class Peer:
    """One peer's times, or why it has none."""

    name: str
    step: Step | None = None
    words: str = ""
    error: float = math.nan
    """Of its first step, against the polynomial in float64."""
    seconds: list[float] = field(default_factory=list)

    def tries(self, call: Callable[[], object]) -> None:
        """Run `call`; a peer that fails is out, and the others go on."""
        try:
            call()
        except Absent as absent:
            self.words = str(absent)
        except torch.OutOfMemoryError:
            self.words = "out of memory"
        except Exception as error:
            self.words = f"failed: {type(error).__name__}: {' '.join(str(error).split())[:100]}"
        if self.words:
            self.step, self.seconds = None, []


def main() -> None:
    names = list(peers(torch.device("cuda")))
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", nargs="+", choices=MODELS, help="default: 150m on a CPU, all on a GPU")
    parser.add_argument("--turns", type=int, help="steps of each peer; default: 15 on a CPU, 30 on a GPU")
    parser.add_argument("--only", nargs="+", choices=names, metavar="PEER", help=f"of {'; '.join(names)}")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    arguments = parser.parse_args()
    device = torch.device(arguments.device)
    on_gpu = device.type == "cuda"
    rates = H100 if on_gpu else measured_rates()
    console = Console(width=150)
    if on_gpu:
        print(f"{torch.cuda.get_device_name(device)}, torch {torch.__version__}; floor: an H100's best rates")
    else:
        print(
            f"CPU, {torch.get_num_threads()} threads, torch {torch.__version__}; floor: products at the "
            f"{rates[0] / 1e9:.0f} Gflop/s of a 2048-wide one in bfloat16, copies at {rates[1] / 1e9:.1f} GB/s"
        )
    for name in arguments.models or (MODELS if on_gpu else MODELS[:1]):
        ladder = Ladder.of(name)
        found = measure(ladder, device, arguments.turns or (30 if on_gpu else 15), arguments.only)
        console.print()
        console.print(table_of(ladder, found, rates))
        if on_gpu:
            console.print(kernel_shares(that_fits(ladder, device, len(names))[0], device))
            console.print(adamw_table(ladder, device, arguments.turns or 30))


def measure(whole: Ladder, device: torch.device, turns: int, only: Sequence[str] | None = None) -> list[Peer]:
    """Return the times of each peer, or of those that `only` names, in turns; says a line of each at its first step."""
    candidates = {name: make for name, make in peers(device).items() if only is None or name in only}
    ladder, factor = that_fits(whole, device, len(candidates))
    parameters = matrices(ladder, device)
    found = []
    for name, make in candidates.items():
        peer = Peer(name)

        def prepare(peer: Peer = peer, make: MakeStep = make) -> None:
            peer.error = first_error(ladder, device, make)
            peer.step = make(parameters)
            peer.step()
            peer.step()
            once = factor * seconds(peer.step, device)
            print(f"{whole.name}, {peer.name}: {1e3 * once:.2f} ms, error {peer.error:.4f}", flush=True)

        peer.tries(prepare)
        if peer.words:
            print(f"{whole.name}, {name}: {peer.words}", flush=True)
        found.append(peer)
    for _ in range(turns):
        for peer in found:
            if peer.step is not None:
                peer.tries(lambda peer=peer: peer.seconds.append(factor * seconds(peer.step, device)))
    for peer in found:
        peer.step = None
    gc.collect()
    return found


def floors_of(whole: Ladder, rates: tuple[float, float]) -> dict[str, float]:
    """Return the least seconds that a step can take, by how the polynomial is computed."""
    return {
        "floor, as written": floor_seconds(whole, rates, symmetric=False, gram=False),
        "floor, symmetric": floor_seconds(whole, rates, symmetric=True, gram=False),
        "floor, symmetric and Gram form": floor_seconds(whole, rates, symmetric=True, gram=True),
    }


def table_of(whole: Ladder, found: Sequence[Peer], rates: tuple[float, float]) -> Table:
    """Return one model's table: a row a peer, then the floors."""
    floors = floors_of(whole, rates)
    best_floor = min(floors.values())
    loop = next((peer.seconds for peer in found if peer.name == LOOP), [])
    title = f"{whole.name}: {whole.num_params / 1e6:.0f}M parameters in matrices"
    table = Table(title=title, title_justify="left")
    for column in ("step", "ms", "quartiles", f"speed over {LOOP}", "quartiles", "of the floor", "error"):
        table.add_column(column, justify="left" if column == "step" else "right")
    for peer in found:
        if peer.words:
            table.add_row(peer.name, f"[dim]{peer.words}[/dim]")
            continue
        ratios = [other / own for other, own in zip(loop, peer.seconds, strict=False)]
        median = statistics.median(peer.seconds)
        table.add_row(
            peer.name, f"{1e3 * median:.2f}", quartiles(peer.seconds, 1e3),
            f"{statistics.median(ratios):.2f}" if ratios else "", quartiles(ratios) if ratios else "",
            f"{median / best_floor:.2f}", f"{peer.error:.4f}",
        )  # fmt: skip
    for name, floor in floors.items():
        table.add_row(name, f"{1e3 * floor:.2f}", end_section=False)
    return table


def that_fits(whole: Ladder, device: torch.device, num_peers: int) -> tuple[Ladder, float]:
    """As many layers as the device holds for all peers at once, and by how much to scale times up."""
    if device.type != "cuda":
        return whole, 1.0
    # Every peer keeps a momentum of its own; stacked updates come on top.
    needed = whole.num_params * (BYTES_EACH + 4.0 * (num_peers + 2))
    fraction = 0.8 * torch.cuda.get_device_properties(device).total_memory / needed
    if fraction >= 1:
        return whole, 1.0
    ladder = whole.part(fraction)
    return ladder, whole.num_params / ladder.num_params


def matrices(ladder: Ladder, device: torch.device) -> list[nn.Parameter]:
    """Return parameters of a model's shapes, with gradients of low rank under some noise, as a training run's are."""
    generator = torch.Generator(device).manual_seed(0)
    parameters = []
    for (rows, columns), count in ladder.shapes.items():
        for _ in range(count):
            parameter = nn.Parameter(0.02 * torch.randn(rows, columns, device=device, generator=generator))
            rank = max(1, min(rows, columns) // RANK_SHARE)
            left = torch.randn(rows, rank, device=device, generator=generator)
            right = torch.randn(rank, columns, device=device, generator=generator)
            noise = torch.randn(rows, columns, device=device, generator=generator)
            parameter.grad = left @ right / rank**0.5 + NOISE * noise
            parameters.append(parameter)
    return parameters


def first_error(ladder: Ladder, device: torch.device, make: Callable[[list[nn.Parameter]], Step]) -> float:
    """Relative error of a peer's first step on one matrix of each shape."""
    parameters = matrices(Ladder(ladder.name, dict.fromkeys(ladder.shapes, 1), 0), device)
    before = [parameter.detach().clone() for parameter in parameters]
    step = make(parameters)
    for parameter, start in zip(parameters, before, strict=True):
        parameter.data.copy_(start)
    step()
    return relative_error(before, parameters, [p.grad for p in parameters if p.grad is not None])


def seconds(step: Step, device: torch.device) -> float:
    if device.type == "cuda":
        begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        torch.cuda.synchronize(device)
        begin.record()
        step()
        end.record()
        torch.cuda.synchronize(device)
        return begin.elapsed_time(end) / 1e3
    began = time.perf_counter()
    step()
    return time.perf_counter() - began


def quartiles(values: list[float], factor: float = 1.0) -> str:
    low, _, high = statistics.quantiles(values, n=4) if len(values) > 1 else values * 3
    return f"{factor * low:.2f} to {factor * high:.2f}"


def kernel_shares(ladder: Ladder, device: torch.device) -> Table:
    """Where our step's time on the GPU goes."""
    from torch.profiler import ProfilerActivity, profile

    step = ours()(matrices(ladder, device))
    step()
    with profile(activities=[ProfilerActivity.CUDA], acc_events=True) as profiler:
        for _ in range(3):
            step()
        torch.cuda.synchronize(device)
    micros: dict[str, float] = defaultdict(float)
    for event in profiler.key_averages():
        micros[event.key] += event.device_time_total
    total = sum(micros.values())
    table = Table(title=f"{ladder.name}: kernels of our step", title_justify="left")
    table.add_column("kernel")
    table.add_column("share", justify="right")
    for name, time_spent in sorted(micros.items(), key=lambda item: -item[1])[:8]:
        table.add_row(name[:80], f"{time_spent / total:.1%}")
    return table


def adamw_table(ladder: Ladder, device: torch.device, turns: int) -> Table:
    """AdamW on embedding and head: ours against torch's fused kernel, in turn."""
    times: dict[str, list[float]] = {"torch.optim.AdamW, fused": [], "ours": []}
    parameter = nn.Parameter(torch.zeros(ladder.embedding_and_head, device=device))
    parameter.grad = torch.randn_like(parameter)
    steps: dict[str, Step] = {
        "torch.optim.AdamW, fused": torch.optim.AdamW([parameter], fused=True).step,
        "ours": Muon([{"params": [parameter], "algorithm": "adamw"}]).step,
    }
    for step in steps.values():
        step()
    for _ in range(turns):
        for name, step in steps.items():
            times[name].append(seconds(step, device))
    table = Table(title=f"{ladder.name}: AdamW on embedding and head", title_justify="left")
    for column in ("step", "ms", "quartiles", "of the floor"):
        table.add_column(column, justify="left" if column == "step" else "right")
    # Gradient, both moments and the weight read; the last three written.
    floor = (BYTES_A_PARAMETER + 4) * ladder.embedding_and_head / H100[1]
    for name, taken in times.items():
        median = statistics.median(taken)
        table.add_row(name, f"{1e3 * median:.3f}", quartiles(taken, 1e3), f"{median / floor:.2f}")
    return table


if __name__ == "__main__":
    main()
