"""Reading shuffled sequences of 2,048 tokens from prepared data: tokens a second, and is it enough for an H100?

In turns, on the same files of 32-bit tokens: the trainer's `TrainingData`; torch's `DataLoader` over the same files
with no process of its own and with one (a map-style dataset, its own shuffle, default collation); and the floor, a
plain copy of as many tokens from memory to 64-bit numbers. Every page is in memory: what a disk or a network adds is
not measured here. Consumption is worked out: tokens a second of an H100 at 45% of its bfloat16 peak, 6N flops a token.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import bare_machine  # noqa: F401

# isort: split
import numpy as np
import torch
from rich.console import Console
from rich.table import Table
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from muloco_runner.config import DataConfig, ModelConfig, RunConfig
from muloco_runner.data.batches import TrainingData
from muloco_runner.data.corpus import load_corpus
from muloco_runner.data.prepared.input_chunk import TokenWriter
from muloco_runner.data.prepared.manifest import Manifest, SplitManifest, TokenFiles, TokenizerManifest
from muloco_runner.data.prepared.read import PreparedSplit
from muloco_runner.training.mfu import peak_flops_by_name

LENGTH = 2048
BATCH = 32
MFU = 0.45
PUBLISHED = {"150m": 150_616_064, "416m": 416_862_208, "914m": 914_343_936}


def write_prepared(folder: Path, num_tokens: int, num_files: int) -> None:
    """Random tokens of a vocabulary of 128,256 in documents of a thousand tokens on average."""
    generator = np.random.default_rng(0)
    files, written = [], 0
    for number in range(num_files + 1):
        name = f"train-{number:05d}" if number < num_files else "validation-00000"
        wanted = num_tokens // num_files if number < num_files else 4 * LENGTH
        with TokenWriter(folder / name, np.dtype("<u4")) as writer:
            left = wanted
            while left:
                size = min(left, int(generator.exponential(1000)) + 1)
                writer.add(generator.integers(0, 128_256, size, dtype=np.uint32), 4 * size)
                left -= size
            part = writer.close()
        written += part.pop("num_bytes")
        files.append(TokenFiles(**part))
    splits = []
    for group in (files[:-1], files[-1:]):
        tokens, documents = sum(s.num_tokens for s in group), sum(s.num_documents for s in group)
        splits.append(SplitManifest(tokens, documents, 4 * tokens, group))
    manifest = Manifest(128_256, "uint32", TokenizerManifest("bytes"), *splits, options={}, inputs=[])
    manifest.content_hash = manifest.hash_of_content()
    (folder / "manifest.json").write_text(manifest.to_json())


class Sequences(Dataset[tuple[Tensor, Tensor]]):
    """What people write: one item a sequence."""

    def __init__(self, split: PreparedSplit) -> None:
        self.split = split

    def __len__(self) -> int:
        return (self.split.num_tokens - 1) // LENGTH

    def __getitem__(self, number: int) -> tuple[Tensor, Tensor]:
        tokens, documents = self.split.gather(np.array([number * LENGTH]), LENGTH)
        return torch.from_numpy(tokens[0]), torch.from_numpy(documents[0])


def endless(loader: DataLoader[tuple[Tensor, Tensor]]) -> Iterator[object]:
    while True:
        yield from loader


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tokens", type=int, default=64_000_000)
    parser.add_argument("--files", type=int, default=8)
    parser.add_argument("--batches", type=int, default=100, help="of 32 sequences, in one turn")
    parser.add_argument("--turns", type=int, default=7)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as directory:
        folder = Path(directory)
        write_prepared(folder, arguments.tokens, arguments.files)
        run = RunConfig(ModelConfig(), DataConfig("prepared", str(folder)), global_batch_tokens=BATCH * LENGTH)
        data = TrainingData(load_corpus(run.data), run, torch.device("cpu"))
        split = data.split
        assert isinstance(split, PreparedSplit)
        tokens = split.read(0, split.num_tokens)
        steps = iter(range(10**9))
        loaders = [
            endless(DataLoader(Sequences(split), BATCH, shuffle=True, num_workers=count, persistent_workers=count > 0))
            for count in (0, 1)
        ]
        copied = np.empty(BATCH * (LENGTH + 1), np.int64)

        def copy() -> None:
            start = next(steps) * len(copied) % (len(tokens) - len(copied))
            copied[:] = tokens[start : start + len(copied)]

        readers: dict[str, Callable[[], object]] = {
            "TrainingData": lambda: data.worker_batch(next(steps), 0),
            "DataLoader, same process": lambda: next(loaders[0]),
            "DataLoader, one process": lambda: next(loaders[1]),
            "floor: copy in memory": copy,
        }
        speeds: dict[str, list[float]] = {name: [] for name in readers}
        for turn in range(arguments.turns + 1):
            for name, read in readers.items():
                began = time.perf_counter()
                for _ in range(arguments.batches):
                    read()
                if turn:  # the first one warms up
                    speeds[name].append(arguments.batches * BATCH * LENGTH / (time.perf_counter() - began))
    ours = statistics.median(speeds["TrainingData"])
    table = Table(title=f"{arguments.tokens:,} tokens, {arguments.files} files", box=None, title_justify="left")
    for name in ("reader", "million tokens/s", "least", "most", "TrainingData is"):
        table.add_column(name, justify="left" if name == "reader" else "right")
    for name, values in speeds.items():
        median = statistics.median(values)
        table.add_row(name, *(f"{v / 1e6:.1f}" for v in (median, min(values), max(values))), f"{ours / median:.2f}x")
    peak = peak_flops_by_name("NVIDIA H100 80GB HBM3", "bfloat16")
    assert peak is not None
    for size, num_params in PUBLISHED.items():
        consumed = MFU * peak / (6 * num_params)
        table.add_row(f"one H100 consumes, {size}", f"{consumed / 1e6:.2f}", "", "", f"{ours / consumed:.0f}x")
    Console(width=100).print(table)


if __name__ == "__main__":
    main()
