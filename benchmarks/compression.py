"""Speed of compression: GB/s of float32 into payloads and back, and the links on which it pays.

Each codec takes turns with a plain copy of the same values. Sending a value exactly takes 32 bits of the link; sending
it compressed takes fewer bits and the time to write and read them. Below the last column's bandwidth compression is the
faster of the two, for two workers; each further worker is one more payload to send, and one more to read.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable

import bare_machine  # noqa: F401

# isort: split
import torch
from rich.console import Console
from rich.table import Table

from muloco_runner.diloco.compression.codecs import AnyCodec, Exact, Linear, Statistical, TopK
from muloco_runner.diloco.compression.payload import decode, encode

CODECS: dict[str, AnyCodec] = {
    "exact": Exact(),
    **{f"statistical, {bits} bits": Statistical(bits) for bits in (2, 4, 8)},
    "statistical, 4 bits, by row": Statistical(4, by_row=True),
    **{f"linear, {bits} bits": Linear(bits) for bits in (2, 4, 8)},
    "linear, 4 bits, by row": Linear(4, by_row=True),
    "top 1%": TopK(0.01),
    "top 1%, 4 bits": TopK(0.01, Statistical(4)),
}


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").strip(), formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--rows", type=int, default=1408, help="of each matrix (default 1408)")
    parser.add_argument("--columns", type=int, default=512, help="of each matrix (default 512)")
    parser.add_argument("--matrices", type=int, default=12, help="in a payload (default 12)")
    parser.add_argument("--repeats", type=int, default=7, help="turns of each codec (default 7)")
    parser.add_argument("--threads", type=int, default=1, help="CPU threads (default 1)")
    parser.add_argument("--device", default="cpu", help="cpu or cuda (default cpu)")
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    generator = torch.Generator().manual_seed(0)
    shape = (arguments.rows, arguments.columns)
    tensors = [torch.randn(shape, generator=generator).to(arguments.device) for _ in range(arguments.matrices)]
    console = Console()
    console = console if console.is_terminal else Console(width=120)
    console.print(measure(tensors, arguments.repeats))


def measure(tensors: list[torch.Tensor], repeats: int) -> Table:
    num_bytes = sum(tensor.nbytes for tensor in tensors)
    device = tensors[0].device
    times: dict[str, list[tuple[float, float]]] = {name: [] for name in CODECS}
    copies: list[float] = []
    sizes: dict[str, int] = {}
    for repeat in range(repeats + 1):
        copied = seconds(lambda: [tensor.clone() for tensor in tensors], device)[0]
        measured = {}
        for name, codec in CODECS.items():
            writing, payload = seconds(lambda codec=codec: encode(tensors, [codec] * len(tensors)), device)
            reading, _ = seconds(lambda payload=payload: decode(payload), device)
            measured[name], sizes[name] = (writing, reading), payload.numel()
        if repeat:  # the first turn warms up
            copies.append(copied)
            for name, pair in measured.items():
                times[name].append(pair)

    copy_seconds = statistics.median(copies)
    table = Table(
        title=f"{num_bytes / 1e6:.0f} MB of float32 on {device.type}, {torch.get_num_threads()} thread(s); median, and "
        f"fastest to slowest, of {repeats}\na copy: {num_bytes / copy_seconds / 1e9:.1f} GB/s"
    )
    for heading in ("codec", "bytes", "write", "read", "both", "of a copy's\nspeed", "pays below"):
        table.add_column(heading, justify="left" if heading == "codec" else "right")
    for name, pairs in times.items():
        writing, reading = (statistics.median(pair[side] for pair in pairs) for side in (0, 1))
        both = [sum(pair) for pair in pairs]
        median = statistics.median(both)
        share = sizes[name] / sizes["exact"]
        extra = median - sum(statistics.median(pair[side] for pair in times["exact"]) for side in (0, 1))
        # share * n / link + median < n / link + exact, with n bytes.
        pays = (1 - share) * num_bytes / extra if extra > 0 else float("inf")
        table.add_row(
            name,
            f"{share:.1%}",
            f"{num_bytes / writing / 1e9:.2f}",
            f"{num_bytes / reading / 1e9:.2f}",
            f"{num_bytes / median / 1e9:.2f} ({num_bytes / max(both) / 1e9:.2f}-{num_bytes / min(both) / 1e9:.2f})",
            f"{copy_seconds / median:.0%}",
            "-" if name == "exact" else "any link" if extra <= 0 else f"{pays * 8 / 1e9:.1f} Gbit/s",
        )
    table.caption = "GB/s of float32"
    return table


def seconds(work: Callable[[], object], device: torch.device) -> tuple[float, object]:
    """Wall time of a call, and what it returned."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    began = time.perf_counter()
    result = work()
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter() - began, result


if __name__ == "__main__":
    main()
