"""Generalized Primal Averaging as an optimizer: its equations written out, MuLoCo1 as an oracle, saved states."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from muloco_runner.config.averaging import mu_x_of_interval
from muloco_runner.optimizers import GPA, MuLoCo1, Muon

LR, DECAY, BETAS, EPS = 0.02, 0.1, (0.9, 0.99), 1e-8
ADAMW: dict[str, Any] = {"lr": LR, "betas": BETAS, "eps": EPS, "weight_decay": DECAY}


def weights(dtype: torch.dtype = torch.float64) -> nn.Parameter:
    return nn.Parameter(torch.randn(4, 6, generator=torch.Generator().manual_seed(9)).to(dtype) / 5)


def train(weight: nn.Parameter, optimizer: torch.optim.Optimizer, steps: range) -> None:
    """Steps on a quadratic with noise, so that where the gradient is taken matters."""
    for step in steps:
        noise = torch.randn(4, 6, generator=torch.Generator().manual_seed(step)).to(weight)
        weight.grad = (weight - 0.1 * noise).detach()
        optimizer.step()


def written_out(y: Tensor, mu_x: float, mu_y: float, steps: int) -> tuple[Tensor, Tensor]:
    """x and y after so many steps of AdamW, by the equations, in float64."""
    x, z, m, v = y.clone(), y.clone(), torch.zeros_like(y), torch.zeros_like(y)
    for step in range(steps):
        y = mu_y * x + (1 - mu_y) * z
        g = y - 0.1 * torch.randn(4, 6, generator=torch.Generator().manual_seed(step)).to(y)
        m = BETAS[0] * m + (1 - BETAS[0]) * g
        v = BETAS[1] * v + (1 - BETAS[1]) * g * g
        m_hat, v_hat = m / (1 - BETAS[0] ** (step + 1)), v / (1 - BETAS[1] ** (step + 1))
        z = z - LR * (m_hat / (v_hat.sqrt() + EPS) + DECAY * y)
        x = mu_x * x + (1 - mu_x) * z
    return x, mu_y * x + (1 - mu_y) * z


@pytest.mark.parametrize(("mu_x", "mu_y"), [(0.9967, 0.7), (0.9, 0.9), (0.5, 1.0), (0.0, 0.3)])
def test_it_is_its_equations(mu_x: float, mu_y: float) -> None:
    weight = weights()
    x, y = written_out(weight.detach().clone(), mu_x, mu_y, 40)
    optimizer = GPA([weight], mu_x=mu_x, mu_y=mu_y, **ADAMW)
    train(weight, optimizer, range(40))
    torch.testing.assert_close(weight.detach(), y, rtol=1e-12, atol=1e-13)
    optimizer.eval()
    torch.testing.assert_close(weight.detach(), x, rtol=1e-12, atol=1e-13)
    optimizer.train()
    torch.testing.assert_close(weight.detach(), y, rtol=1e-12, atol=1e-13)


@pytest.mark.parametrize("mu", [0.6, 0.9])
def test_outer_steps_after_every_step_are_gpa(mu: float) -> None:
    ours, oracle = weights(), weights()
    outer_lr = 0.7
    gpa = GPA([ours], mu_x=mu, mu_y=mu, **{**ADAMW, "lr": LR * outer_lr / (1 - mu)})
    groups = [{"params": [oracle], "algorithm": "adamw"}]
    settings = {"betas": BETAS, "eps": EPS, "weight_decay": DECAY, "backend": "reference"}
    muloco = MuLoCo1(groups, LR, outer_lr=outer_lr, outer_momentum=mu, sync_interval=1, **settings)
    train(ours, gpa, range(60))
    train(oracle, muloco, range(60))
    torch.testing.assert_close(ours, oracle, rtol=1e-14, atol=1e-15)


def test_the_papers_mu_x_by_interval() -> None:
    published = {1: 0.9, 4: 0.974, 8: 0.9869, 16: 0.9934, 32: 0.9967, 64: 0.9984}
    assert {interval: round(mu_x_of_interval(interval), 4) for interval in published} == published
    assert GPA([weights()]).mu_x == mu_x_of_interval(32)
    assert GPA([weights()], sync_interval=8).mu_x == mu_x_of_interval(8)


def adamw(weight: nn.Parameter) -> GPA:
    return GPA([weight], **ADAMW)


def muon(weight: nn.Parameter) -> GPA:
    return GPA([weight], Muon, lr=LR, weight_decay=DECAY, backend="reference")


@pytest.mark.parametrize("build", [adamw, muon])
@pytest.mark.parametrize("evaluates", [False, True])
def test_a_resumed_state_continues_to_the_bit(build: Callable[[nn.Parameter], GPA], evaluates: bool) -> None:
    weight = weights(torch.float32)
    optimizer = build(weight)
    train(weight, optimizer, range(4))
    if evaluates:
        optimizer.eval()
    resumed = nn.Parameter(weight.detach().clone())
    again = build(resumed)
    again.load_state_dict(copy.deepcopy(optimizer.state_dict()))
    copied_weight, copied = copy.deepcopy((weight, optimizer))
    for one, its in ((weight, optimizer), (resumed, again), (copied_weight, copied)):
        its.train()
        train(one, its, range(4, 9))
        its.eval()
    assert torch.equal(weight, resumed)
    assert torch.equal(weight, copied_weight)


def test_a_scheduler_drives_the_base() -> None:
    ours, by_hand = weights(), weights()
    optimizer, other = adamw(ours), adamw(by_hand)
    scheduler = torch.optim.lr_scheduler.StepLR(optimizer, 1, 0.5)
    for step in range(5):
        other.param_groups[0]["lr"] = LR * 0.5**step
        train(ours, optimizer, range(step, step + 1))
        train(by_hand, other, range(step, step + 1))
        scheduler.step()
    assert torch.equal(ours, by_hand)


def test_weights_loaded_before_the_first_step_are_where_it_starts() -> None:
    late, weight = nn.Parameter(torch.zeros(4, 6, dtype=torch.float64)), weights()
    optimizer, expected = adamw(late), adamw(weight)
    late.data.copy_(weight.data)
    train(late, optimizer, range(3))
    train(weight, expected, range(3))
    assert torch.equal(late, weight)


def test_a_step_on_the_averaged_weights_is_refused() -> None:
    weight = weights()
    optimizer = adamw(weight)
    optimizer.eval()
    with pytest.raises(RuntimeError, match=r"call train\(\) first"):
        train(weight, optimizer, range(1))


def test_what_cannot_be_averaged_is_refused() -> None:
    weight = weights()
    with pytest.raises(ValueError, match="mu_y=0: must be above 0"):
        GPA([weight], mu_y=0)
    with pytest.raises(ValueError, match="below 1"):
        GPA([weight], mu_x=1.0)
    with pytest.raises(ValueError, match="give one"):
        GPA([weight], mu_x=0.9, sync_interval=8)
    with pytest.raises(ValueError, match=r"under torch\.autocast"):
        GPA([weights(torch.bfloat16)])
    optimizer = adamw(weight)
    with pytest.raises(ValueError, match=r"under torch\.autocast"):
        optimizer.add_param_group({"params": [weights(torch.bfloat16)]})
    assert len(optimizer.param_groups) == len(optimizer.base.param_groups) == 1
    with pytest.raises(ValueError, match="not an optimizer"):
        GPA([weight], torch.optim.AdamW([weight]))  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="trains other weights"):
        GPA([weight], GPA)
    with pytest.raises(ValueError, match="saved by another optimizer"):
        adamw(weight).load_state_dict(torch.optim.AdamW([weight]).state_dict())
    with pytest.raises(ValueError, match="no torch optimizer's"):
        adamw(weight).load_state_dict({"model": {}})
