"""MuLoCo with one worker as an optimizer: its outer step, and a resumed state."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn

from muloco_runner.optimizers import MuLoCo1, Muon


def _train(weight: nn.Parameter, optimizer: torch.optim.Optimizer, steps: range) -> None:
    for step in steps:
        weight.grad = torch.randn(4, 6, generator=torch.Generator().manual_seed(step))
        optimizer.step()


def test_outer_lr_one_without_momentum_is_muon() -> None:
    ours, plain = (nn.Parameter(torch.eye(4, 6)) for _ in range(2))
    _train(ours, MuLoCo1([ours], 0.1, outer_lr=1.0, outer_momentum=0.0, sync_interval=2), range(7))
    _train(plain, Muon([plain], 0.1), range(7))
    torch.testing.assert_close(ours, plain, rtol=1e-5, atol=1e-6)


def test_the_outer_step_is_torchs_nesterov_on_the_pseudogradient() -> None:
    ours, inner, outer = (nn.Parameter(torch.eye(4, 6)) for _ in range(3))
    _train(ours, MuLoCo1([ours], 0.1, outer_lr=0.7, outer_momentum=0.6, sync_interval=3), range(9))
    muon = Muon([inner], 0.1)
    sgd = torch.optim.SGD([outer], lr=0.7, momentum=0.6, nesterov=True)
    for start in (0, 3, 6):
        _train(inner, muon, range(start, start + 3))
        outer.grad = (outer - inner).detach()
        sgd.step()
        inner.data.copy_(outer.data)
    torch.testing.assert_close(ours, inner, rtol=1e-5, atol=1e-6)


def test_a_resumed_state_continues_to_the_bit_between_outer_steps() -> None:
    whole = nn.Parameter(torch.eye(4, 6))
    optimizer = MuLoCo1([whole], 0.1, sync_interval=3)
    _train(whole, optimizer, range(4))
    resumed = nn.Parameter(whole.detach().clone())
    again = MuLoCo1([resumed], 0.1, sync_interval=3)
    again.load_state_dict(copy.deepcopy(optimizer.state_dict()))
    _train(whole, optimizer, range(4, 8))
    _train(resumed, again, range(4, 8))
    assert torch.equal(whole, resumed)


def test_an_interval_cut_below_the_steps_taken_ends_at_the_next() -> None:
    weight = nn.Parameter(torch.eye(4, 6))
    optimizer = MuLoCo1([weight], 0.1, sync_interval=30)
    _train(weight, optimizer, range(7))
    optimizer.param_groups[0]["sync_interval"] = 5
    synchronised = []
    for step in range(7, 20):
        anchor = optimizer.state[weight]["anchor"].clone()
        _train(weight, optimizer, range(step, step + 1))
        if not torch.equal(anchor, optimizer.state[weight]["anchor"]):
            synchronised.append(step)
    assert synchronised == [7, 12, 17]


def test_a_groups_inner_lr_is_its_lr() -> None:
    named, plain = (nn.Parameter(torch.eye(4, 6)) for _ in range(2))
    optimizer = MuLoCo1([{"params": [named], "inner_lr": 0.3}])
    assert optimizer.param_groups[0]["lr"] == 0.3
    _train(named, optimizer, range(2))
    _train(plain, MuLoCo1([plain], 0.3), range(2))
    assert torch.equal(named, plain)
    with pytest.raises(ValueError, match="both lr and inner_lr"):
        MuLoCo1([{"params": [named], "inner_lr": 0.3, "lr": 0.1}])
    with pytest.raises(TypeError, match="MuLoCo1 takes inner_lr and outer_lr, not lr"):
        MuLoCo1([named], lr=0.1)
