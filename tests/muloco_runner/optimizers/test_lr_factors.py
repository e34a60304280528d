"""Factors on the learning rate by kind of parameter: as if that kind were trained with another lr."""

from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor

from muloco_runner.config import ConfigError, RunConfig
from muloco_runner.diloco.worker import Worker
from muloco_runner.model.transformer import build_model
from muloco_runner.optimizers import build_inner_optimizer, parameter_kinds
from muloco_runner.training.inner_step import InnerStep

FACTORS = {"embedding_lr_factor": 10.0, "head_lr_factor": 0.2, "scalar_lr_factor": 2.0}


def trained(run: RunConfig) -> tuple[dict[str, Tensor], dict[str, str]]:
    """Parameters after three inner steps on the same random gradients, and their kinds."""
    model = build_model(run.model, 0, torch.device("cpu"))
    worker = Worker(0, model, build_inner_optimizer(model, run, "reference"), list(model.parameters()))
    generator = torch.Generator().manual_seed(0)

    def gradient(*_: Any) -> Tensor:
        for parameter in model.parameters():
            parameter.grad = torch.randn(parameter.shape, generator=generator)
        return torch.tensor(0.0)

    batch = SimpleNamespace(split=lambda size: [])
    data: Any = SimpleNamespace(worker_batch=lambda *_: batch)
    replicas: Any = SimpleNamespace(gradient=gradient, gradient_norm=lambda _: torch.tensor(0.5))
    ranks: Any = SimpleNamespace(topology=SimpleNamespace(replica=0, replicas=1))
    method: Any = SimpleNamespace(updating=lambda _: nullcontext())
    steps = InnerStep(run, data, replicas, ranks, 1, method)
    for step in range(3):
        steps.step(worker, step)
    return {name: p.detach() for name, p in model.named_parameters()}, parameter_kinds(model)


@pytest.mark.parametrize("optimizer", ["adamw", "muon"])
def test_a_kind_with_a_factor_trains_as_with_another_lr(optimizer: str, tiny_run: Callable[..., RunConfig]) -> None:
    run = tiny_run("data_parallel", optimizer, num_steps=30)
    inner = run.inner_optimizer
    found, kinds = trained(replace(run, inner_optimizer=replace(inner, **FACTORS)))
    assert set(kinds.values()) == {"embedding", "head", "hidden", "other"}
    names = {"embedding": "embedding_lr_factor", "head": "head_lr_factor", "other": "scalar_lr_factor"}
    for kind in ("embedding", "head", "other", "hidden"):
        lr = inner.lr * FACTORS.get(names.get(kind, ""), 1.0)
        expected, _ = trained(replace(run, inner_optimizer=replace(inner, lr=lr)))
        assert all(torch.equal(found[name], expected[name]) for name in kinds if kinds[name] == kind), kind


def test_factors_name_a_run_where_there_are_any(tiny_run: Callable[..., RunConfig]) -> None:
    run = tiny_run("data_parallel", "muon")
    key = "inner_optimizer.embedding_lr_factor"
    assert run.with_values({key: 1.0}).run_id == run.run_id != run.with_values({key: 2.0}).run_id
    for value in (0.0, -1.0):
        with pytest.raises(ConfigError, match=rf"{key}={value}: must be a positive number"):
            run.with_values({key: value})


@pytest.mark.parametrize("optimizer", ["adamw", "muon"])
def test_a_factor_of_no_parameter_is_refused(optimizer: str, tiny_run: Callable[..., RunConfig]) -> None:
    model = torch.nn.Sequential(torch.nn.Embedding(50, 8), torch.nn.Linear(8, 8), torch.nn.Linear(8, 50))
    model[2].weight = model[0].weight  # a tied head
    run = tiny_run("data_parallel", optimizer)
    tied = run.with_values({"inner_optimizer.head_lr_factor": 2.0})
    with pytest.raises(ConfigError, match=r"inner_optimizer.head_lr_factor=2.0 has no effect"):
        build_inner_optimizer(model, tied, "reference")
    build_inner_optimizer(model, run.with_values({"inner_optimizer.embedding_lr_factor": 2.0}), "reference")
