"""Muon and MuLoCo against the published rule, written down once more as plainly as it can be, over 100 random steps."""

import dataclasses
from collections.abc import Callable, Iterator

import pytest
import torch
from torch import Tensor

from muloco_runner.config import (
    AdamWConfig,
    DiLoCoConfig,
    ModelConfig,
    MuonConfig,
    OuterSgdConfig,
    RunConfig,
)
from muloco_runner.diloco.method import build_method
from muloco_runner.diloco.worker import Worker
from muloco_runner.distributed.communicator import Communicator
from muloco_runner.distributed.topology import Topology
from muloco_runner.model.transformer import Transformer, build_model
from muloco_runner.optimizers import MuLoCo1, Muon, build_inner_optimizer
from muloco_runner.optimizers.parameter_groups import parameter_groups

MODEL = ModelConfig(width=32, num_layers=2, head_width=16, vocab_size=50, sequence_length=16)
LR, DECAY, MOMENTUM, BETAS, EPS = 0.02, 0.1, 0.9, (0.9, 0.99), 1e-8
OUTER_LR, OUTER_MOMENTUM, INTERVAL = 0.7, 0.6, 10
STEPS = 100
TRIPLES = [
    (4.0848, -6.8946, 2.9270),
    (3.9505, -6.3029, 2.6377),
    (3.7418, -5.5913, 2.3037),
    (2.8769, -3.1427, 1.2046),
    (2.8366, -3.0525, 1.2012),
]


def random_gradients(model: Transformer) -> Iterator[dict[str, Tensor]]:
    generator = torch.Generator().manual_seed(5)
    for _ in range(STEPS):
        yield {name: torch.randn(p.shape, generator=generator) for name, p in model.named_parameters()}


def newton_schulz(matrix: Tensor) -> Tensor:
    x = matrix.T if matrix.shape[0] > matrix.shape[1] else matrix
    x = x / (x.norm() + 1e-8)
    for a, b, c in TRIPLES:
        product = x @ x.T
        x = a * x + b * product @ x + c * product @ product @ x
    return x.T if matrix.shape[0] > matrix.shape[1] else x


def by_the_rule(model: Transformer, muon: bool, outer: bool) -> dict[str, Tensor]:
    weights = {name: p.detach().clone() for name, p in model.named_parameters()}
    anchors = {name: w.clone() for name, w in weights.items()}
    first = {name: torch.zeros_like(w) for name, w in weights.items()}
    second = {name: torch.zeros_like(w) for name, w in weights.items()}
    velocity = {name: torch.zeros_like(w) for name, w in weights.items()}
    for step, gradients in enumerate(random_gradients(model), start=1):
        for name, w in weights.items():
            g, m, v = gradients[name], first[name], second[name]
            w.mul_(1 - LR * DECAY)
            if muon and name.startswith("blocks") and w.ndim == 2:
                m.copy_(MOMENTUM * m + g)
                fan_out, fan_in = w.shape
                w.sub_(LR * (fan_out / fan_in) ** 0.5 * newton_schulz(m))
            else:
                m.copy_(BETAS[0] * m + (1 - BETAS[0]) * g)
                v.copy_(BETAS[1] * v + (1 - BETAS[1]) * g**2)
                m_hat, v_hat = m / (1 - BETAS[0] ** step), v / (1 - BETAS[1] ** step)
                w.sub_(LR * m_hat / (v_hat**0.5 + EPS))
        if outer and step % INTERVAL == 0:
            for name, w in weights.items():
                delta = anchors[name] - w
                velocity[name] = OUTER_MOMENTUM * velocity[name] + OUTER_LR * delta
                w.copy_(anchors[name] - OUTER_MOMENTUM * velocity[name] - OUTER_LR * delta)
                anchors[name] = w.clone()
    return weights


def with_muon(model: Transformer) -> Callable[[int], None]:
    optimizer = Muon(parameter_groups(model), LR, weight_decay=DECAY, betas=BETAS, eps=EPS, backend="reference")
    return lambda step: optimizer.step() and None


def with_muloco1(model: Transformer) -> Callable[[int], None]:
    optimizer = MuLoCo1(
        parameter_groups(model),
        LR,
        OUTER_LR,
        OUTER_MOMENTUM,
        INTERVAL,
        weight_decay=DECAY,
        betas=BETAS,
        eps=EPS,
        backend="reference",
    )
    return lambda step: optimizer.step() and None


def with_the_trainers_parts(inner: type[AdamWConfig | MuonConfig]) -> Callable[[Transformer], Callable[[int], None]]:
    def start(model: Transformer) -> Callable[[int], None]:
        method = DiLoCoConfig(
            sync_interval=INTERVAL, outer_optimizer=OuterSgdConfig(lr=OUTER_LR, momentum=OUTER_MOMENTUM)
        )
        optimizer_config = inner(lr=LR, betas=list(BETAS), eps=EPS, weight_decay=DECAY, weight_decay_rule="constant")
        run = RunConfig(model=MODEL, method=method, inner_optimizer=optimizer_config, global_batch_tokens=16)
        run = dataclasses.replace(run, tokens_per_parameter=1000 * 16 / run.num_params)
        optimizer = build_inner_optimizer(model, run, "reference")
        worker = Worker(0, model, optimizer, list(model.parameters()))
        diloco = build_method(run, [worker], Communicator(Topology(1)))

        def step(number: int) -> None:
            optimizer.step()
            diloco.after_inner_step(number)

        return step

    return start


@pytest.mark.parametrize(
    ("start", "muon", "outer"),
    [
        (with_muon, True, False),
        (with_muloco1, True, True),
        (with_the_trainers_parts(MuonConfig), True, True),
        (with_the_trainers_parts(AdamWConfig), False, True),
    ],
    ids=["Muon", "MuLoCo1", "MuLoCo", "DiLoCo"],
)
def test_a_hundred_steps_are_those_of_the_published_rule(
    start: Callable[[Transformer], Callable[[int], None]], muon: bool, outer: bool
) -> None:
    model = build_model(MODEL, 0, torch.device("cpu"))
    expected = by_the_rule(model, muon, outer)
    step = start(model)
    for number, gradients in enumerate(random_gradients(model), start=1):
        for name, parameter in model.named_parameters():
            parameter.grad = gradients[name].clone()
        step(number)
    for name, parameter in model.named_parameters():
        difference = (parameter.detach() - expected[name]).norm() / expected[name].norm()
        assert difference < 1e-5, name
