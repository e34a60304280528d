"""How many graphs training compiles: one for all blocks and all workers, none more for other documents."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator
from functools import cache
from typing import Any

import pytest
import torch
from torch import Tensor

from muloco_runner.config import ModelConfig
from muloco_runner.model import attention, compile, transformer

LENGTH, VOCABULARY = 32, 256


@pytest.fixture
def graphs(monkeypatch: pytest.MonkeyPatch) -> Iterator[Counter[str]]:
    """Graphs compiled so far by function. They run as they are; FlexAttention, a GPU's, runs on the CPU."""
    counts: Counter[str] = Counter()
    backends: dict[str, Any] = {}
    compiles = torch.compile

    def compile_counting(function: Callable[..., Any], **options: Any) -> Callable[..., Any]:
        def count(graph: torch.fx.GraphModule, inputs: list[Tensor]) -> Callable[..., Any]:
            counts[function.__name__] += 1
            return graph.forward

        # One backend for each function's code: graphs made by another are not used again.
        return compiles(function, backend=backends.setdefault(function.__qualname__, count), **options)

    monkeypatch.setattr(torch, "compile", compile_counting)
    monkeypatch.setattr("torch.nn.attention.flex_attention._validate_device", lambda *tensors: None)
    compiled = cache(lambda function, device_type: compile.compile_each_shape(function))
    monkeypatch.setattr(attention, "_compiled_on_gpus", compiled)
    torch._dynamo.reset()
    yield counts
    torch._dynamo.reset()


def train(model: transformer.Transformer, sequences: int, seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    tokens = torch.randint(VOCABULARY, (sequences, LENGTH + 1), generator=generator)
    documents = torch.randint(0, 3, (sequences, LENGTH), generator=generator).cumsum(1)
    with torch.autocast("cpu", torch.bfloat16):
        loss = model(tokens[:, :-1], documents, tokens[:, 1:])
    loss.backward()
    assert loss.isfinite()


def test_blocks_and_workers_share_one_graph_whatever_the_documents(
    graphs: Counter[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("muloco_runner.model.logit_chunks.chunk_tokens", lambda *sizes: LENGTH)
    config = ModelConfig(width=32, num_layers=2, head_width=16, vocab_size=VOCABULARY, sequence_length=LENGTH)
    workers = [transformer.build_model(config, seed, torch.device("cpu")) for seed in (0, 1)]
    for model in workers:
        model.set_execution("flex", recompute=False, compiled=True)
    for step in range(2):
        for number, model in enumerate(workers):
            train(model, 4, seed=10 * step + number)
    assert graphs == {"add_branches": 1, "create_block_mask": 1, "fusible_loss_and_gradient": 1}
    train(workers[0], 3, seed=20)  # a remainder
    assert graphs["add_branches"] == 2
