"""Tokens per second of sampling, with a cache of keys and values and without, at two sizes.

    .venv/bin/python benchmarks/sampling.py

Both ways draw the same tokens. The columns: the batch, tokens per second without and with the cache, their ratio.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable

import torch

from muloco_runner.compose import compose_model
from muloco_runner.inference.sample import SamplingOptions, sample
from muloco_runner.model.transformer import Transformer, build_model

NEW_TOKENS, PROMPT = 96, 32


@torch.no_grad()
def without_cache(model: Transformer, prompts: list[list[int]]) -> list[list[int]]:
    """The likeliest tokens, the whole sequence computed again for each."""
    tokens_BT = torch.tensor(prompts)
    for _ in range(NEW_TOKENS):
        tokens_BT = torch.cat((tokens_BT, model(tokens_BT)[:, -1].argmax(dim=1, keepdim=True)), dim=1)
    return tokens_BT[:, PROMPT:].tolist()


def measured(task: Callable[[], list[list[int]]]) -> tuple[list[list[int]], float]:
    """What it returns, and tokens per second: the fastest of three."""
    seconds = []
    for _ in range(3):
        started = time.perf_counter()
        found = task()
        seconds.append(time.perf_counter() - started)
    return found, sum(map(len, found)) / min(seconds)


def main() -> None:
    argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter).parse_args()
    print(f"{'model':6} {'batch':>5} {'plain':>9} {'cached':>9} {'ratio':>6}")
    for name in ("82k", "8.3m"):
        model = build_model(compose_model(name), 0, torch.device("cpu")).eval()
        for batch in (1, 8):
            generator = torch.Generator().manual_seed(batch)
            prompts = torch.randint(256, (batch, PROMPT), generator=generator).tolist()
            expected, plain = measured(lambda model=model, prompts=prompts: without_cache(model, prompts))
            found, cached = measured(
                lambda model=model, prompts=prompts: sample(model, prompts, NEW_TOKENS, SamplingOptions(temperature=0))
            )
            same = "" if found == expected else "  (other tokens, where two were about as likely)"
            print(f"{name:6} {batch:5} {plain:9,.0f} {cached:9,.0f} {cached / plain:6.1f}{same}")


if __name__ == "__main__":
    main()
