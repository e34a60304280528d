"""Settings, parameter groups and saved states that cannot be meant are refused in one line, and change nothing."""

from __future__ import annotations

import copy
import math
import re
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from muloco_runner.optimizers import MuLoCo1, Muon


def matrix(*shape: int) -> nn.Parameter:
    return nn.Parameter(torch.randn(shape, generator=torch.Generator().manual_seed(0)))


@pytest.mark.parametrize(
    ("setting", "words"),
    [
        ({"lr": -0.1}, "lr=-0.1: must be at least 0 and finite"),
        ({"lr": math.nan}, "lr=nan"),
        ({"lr": "0.1"}, "lr='0.1'"),
        ({"weight_decay": -1.0}, "weight_decay=-1.0"),
        ({"weight_decay_form": "careful"}, "weight_decay_form='careful': must be one of decoupled, cautious"),
        ({"momentum": 1.5}, "momentum=1.5: must be at least 0 and below 1"),
        ({"momentum_form": "mean"}, "momentum_form='mean': must be one of sum, ema"),
        ({"nesterov": "no"}, "nesterov='no': must be True, False or 'corrected'"),
        ({"algorithm": "sgd"}, "algorithm='sgd': must be one of muon, adamw"),
        ({"lr_scale": "rms"}, "lr_scale='rms': must be one of spectral, keller_jordan, moonlight"),
        ({"coefficients": "svd"}, "coefficients='svd': must be one of muloco, keller_jordan, polar_express"),
        ({"num_iterations": 3}, "num_iterations=3: coefficients=muloco are five"),
        ({"num_iterations": 6, "coefficients": "polar_express"}, "num_iterations=6: coefficients=polar_express are"),
        ({"num_iterations": 0, "coefficients": "keller_jordan"}, "num_iterations=0: must be a whole number, at least"),
        ({"num_iterations": 2.5}, "num_iterations=2.5: must be a whole number, at least 1"),
        ({"betas": (0.9, 1.0)}, "betas=1.0"),
        ({"betas": (0.9,)}, "betas=(0.9,): must be two numbers"),
        ({"betas": 0.9}, "betas=0.9: must be two numbers"),
        ({"outer_momentum": 2.0}, "outer_momentum=2.0"),
        ({"sync_interval": 0}, "sync_interval=0"),
        ({"sync_interval": 2.5}, "sync_interval=2.5: must be a whole number, at least 1"),
    ],
    ids=str,
)
def test_a_setting_out_of_range_is_refused_also_of_a_group(setting: dict[str, Any], words: str) -> None:
    weight = matrix(4, 4)
    with pytest.raises(ValueError, match=re.escape(words)):
        MuLoCo1([{"params": [weight], **setting}])
    optimizer = MuLoCo1([matrix(4, 4)])
    with pytest.raises(ValueError, match=re.escape(words)):
        optimizer.add_param_group({"params": [weight], **setting})
    assert len(optimizer.param_groups) == len(optimizer.state) == 1
    if "algorithm" not in setting:
        with pytest.raises(ValueError, match=re.escape(words)):
            MuLoCo1([weight], **({"inner_lr": setting["lr"]} if "lr" in setting else setting))


@pytest.mark.parametrize(
    ("setting", "words"),
    [
        ({"lr_scale": "spectrall"}, "lr_scale='spectrall': must be one of spectral, keller_jordan, moonlight"),
        ({"coefficients": "svd"}, "coefficients='svd': must be one of muloco, keller_jordan, polar_express"),
        ({"momentum_form": "mean"}, "momentum_form='mean': must be one of sum, ema"),
        ({"nesterov": "no"}, "nesterov='no': must be True, False or 'corrected'"),
        ({"lr": -0.1}, "lr=-0.1: must be at least 0 and finite"),
        ({"lr": math.nan}, "lr=nan"),
        ({"momentum": 1.5}, "momentum=1.5: must be at least 0 and below 1"),
        ({"betas": (0.9,)}, "betas=(0.9,): must be two numbers"),
        ({"outer_momentum": 2.0}, "outer_momentum=2.0"),
        ({"momentumm": 0.5}, "'momentumm' in a parameter group: no such setting"),
        ({"mu": 0.5}, "'mu' in a parameter group of this optimizer: set 'momentum'"),
    ],
    ids=str,
)
def test_a_bad_setting_between_steps_is_refused_until_corrected(setting: dict[str, Any], words: str) -> None:
    optimizer = trained(MuLoCo1, (4, 4))
    group = optimizer.param_groups[0]
    good, before = dict(group), [parameter.detach().clone() for parameter in optimizer.state]
    group.update(setting)
    for _ in range(2):
        with pytest.raises(ValueError, match=re.escape(words)):
            optimizer.step()
    assert all(map(torch.equal, optimizer.state, before))
    group.clear()
    group.update(good)
    optimizer.step()
    assert not torch.equal(next(iter(optimizer.state)), before[0])


def test_a_tensor_filled_with_a_bad_number_is_refused() -> None:
    optimizer = Muon([matrix(4, 4)], torch.tensor(0.1))
    optimizer.step()
    optimizer.param_groups[0]["lr"].fill_(-1.0)
    with pytest.raises(ValueError, match=r"lr=-1\.0: must be at least 0"):
        optimizer.step()


def test_split_changed_in_place_is_followed() -> None:
    steps = []
    for numbers in ({"weight": 1}, {"weight": 2}):
        weight = matrix(4, 4)
        optimizer = Muon([("weight", weight)], split={"weight": 1})
        optimizer.param_groups[0]["split"].update(numbers)
        weight.grad = torch.arange(16.0).reshape(4, 4) ** 2
        optimizer.step()
        steps.append(weight.detach())
    assert not torch.equal(*steps)


def test_numbers_of_numpy_and_tensors_are_numbers() -> None:
    settings = {"momentum": np.float32(0.5), "betas": np.array([0.8, 0.9]), "nesterov": np.True_}
    optimizer = MuLoCo1([matrix(4, 4)], torch.tensor(0.1), sync_interval=np.int64(2), **settings)
    plain = MuLoCo1([matrix(4, 4)], 0.1, sync_interval=2, momentum=0.5, nesterov=True)
    for one in (optimizer, plain):
        (weight,) = one.param_groups[0]["params"]
        weight.grad = torch.ones(4, 4)
        one.step()
    torch.testing.assert_close(optimizer.param_groups[0]["params"], plain.param_groups[0]["params"])


@pytest.mark.parametrize("kind", [Muon, MuLoCo1])
@pytest.mark.parametrize("key", ["algoritm", "use_adamw", "maximize", "beta"])
def test_a_key_of_a_group_that_nothing_reads_is_refused(key: str, kind: type[Muon]) -> None:
    """It would leave the parameters to another algorithm than was meant."""
    with pytest.raises(ValueError, match=f"'{key}' in a parameter group: no such setting; known are params, lr, algor"):
        kind([{"params": [matrix(4, 4)], key: "adamw"}])


def test_groups_with_keys_of_anothers_schedulers_are_taken() -> None:
    first = MuLoCo1([{"params": [("weight", matrix(4, 4))], "name": "hidden"}])
    torch.optim.lr_scheduler.OneCycleLR(first, 0.1, total_steps=9)
    torch.optim.swa_utils.SWALR(first, 0.05)
    again = MuLoCo1([dict(group) for group in first.param_groups])
    assert again.param_groups[0] == first.param_groups[0]


def test_parameters_that_cannot_be_trained_are_refused() -> None:
    for dtype in (torch.complex64, torch.int64, torch.float8_e4m3fn, torch.float8_e5m2):
        weight = nn.Parameter(torch.zeros(4, 4, dtype=dtype), requires_grad=False)
        with pytest.raises(ValueError, match=f"a parameter of {dtype}: must be of a real floating-point dtype"):
            Muon([weight])
    with pytest.raises(ValueError, match="no matrix"):
        Muon([matrix(3)])
    with pytest.raises(ValueError, match='a group without parameters: algorithm; give it "params"'):
        Muon([{"algorithm": "muon"}])


@pytest.mark.parametrize("algorithm", ["muon", "adamw"])
def test_a_sparse_gradient_is_refused_before_anything_has_changed(algorithm: str) -> None:
    table, other = nn.Embedding(5, 4, sparse=True), matrix(4, 4)
    optimizer = Muon([{"params": [other]}, {"params": [table.weight], "algorithm": algorithm}])
    table(torch.tensor([1, 2])).sum().backward()
    other.grad = torch.ones(4, 4)
    before = other.detach().clone()
    with pytest.raises(ValueError, match="must be dense"):
        optimizer.step()
    assert torch.equal(other, before)
    assert not optimizer.state[other]["momentum"].any()


def trained(kind: type[Muon], *matrices: tuple[int, int], length: int = 3, seed: int = 0) -> Muon:
    """After two steps."""
    groups = [{"params": [matrix(*shape) for shape in matrices]}, {"params": [matrix(length)], "algorithm": "adamw"}]
    optimizer = kind(groups, 0.1)
    generator = torch.Generator().manual_seed(seed)
    for _ in range(2):
        for parameter in optimizer.state:
            parameter.grad = torch.randn(parameter.shape, generator=generator)
        optimizer.step()
    return optimizer


def without(state: dict[str, Any], name: str) -> dict[str, Any]:
    kept = {number: {n: v for n, v in values.items() if n != name} for number, values in state["state"].items()}
    return {**state, "state": kept}


def of_groups(state: dict[str, Any], **settings: Any) -> dict[str, Any]:
    return {**state, "param_groups": [{**group, **settings} for group in state["param_groups"]]}


SAVED = {
    "groups of [1, 1, 1] parameters; this": lambda: MuLoCo1([{"params": matrix(n, 4)} for n in (4, 5, 6)]),
    "groups of [2, 1] parameters; this optimizer's have [1, 1]": lambda: trained(MuLoCo1, (4, 4), (4, 4)),
    "momentum of parameter 0 is of shape (5, 4); here it must be (4, 4)": lambda: trained(MuLoCo1, (5, 4)),
    "momentum of parameter 0 is of shape (1, 4); here it must be (4, 4)": lambda: trained(MuLoCo1, (1, 4)),
    "exp_avg of parameter 1 is of shape (1,); here it must be (3,)": lambda: trained(MuLoCo1, (4, 4), length=1),
    "parameter 0 is momentum; here it must be anchor, momentum, outer_momentum": lambda: trained(Muon, (4, 4)),
}


@pytest.mark.parametrize("words", SAVED)
def test_a_saved_state_that_does_not_fit_changes_nothing(words: str) -> None:
    refuse(SAVED[words]().state_dict(), words)


def test_a_saved_state_with_a_missing_or_bad_value_changes_nothing() -> None:
    saved = trained(MuLoCo1, (4, 4)).state_dict()
    refuse(without(saved, "exp_avg_sq"), "parameter 1 is anchor, exp_avg, outer_momentum, step; here it must be")
    refuse(of_groups(saved, algorithm="adamw"), "group 0 was saved with adamw; here it is of muon")
    refuse(of_groups(saved, lr=-1.0), "lr=-1.0: must be at least 0")
    refuse(of_groups(saved, sync_interval=0), "sync_interval=0: must be a whole number")


def refuse(state: dict[str, Any], words: str) -> None:
    optimizer = trained(MuLoCo1, (4, 4), seed=1)
    before = copy.deepcopy(optimizer.state_dict())
    with pytest.raises(ValueError, match=re.escape(words)):
        optimizer.load_state_dict(state)
    after = optimizer.state_dict()
    assert after["param_groups"] == before["param_groups"]
    for number, values in before["state"].items():
        assert all(torch.equal(value, after["state"][number][name]) for name, value in values.items())


def test_a_saved_lr_is_taken_over_and_a_saved_backend_is_not() -> None:
    optimizer = trained(MuLoCo1, (4, 4), seed=1)
    optimizer.load_state_dict(of_groups(trained(MuLoCo1, (4, 4)).state_dict(), backend="reference", lr=0.7))
    assert [group["backend"] for group in optimizer.param_groups] == ["auto"] * 2
    assert [group["lr"] for group in optimizer.param_groups] == [0.7] * 2


def test_a_parameter_of_which_nothing_was_saved_begins_anew() -> None:
    optimizer = trained(MuLoCo1, (4, 4))
    optimizer.load_state_dict({**optimizer.state_dict(), "state": {}})
    for parameter, state in optimizer.state.items():
        for name, value in state.items():
            expected = parameter if name == "anchor" else torch.zeros_like(value)
            assert torch.equal(value, expected), name


def test_hooks_of_loading_see_and_change_what_is_loaded() -> None:
    saved, optimizer = trained(Muon, (4, 4)).state_dict(), trained(Muon, (4, 4), seed=1)
    weight = optimizer.param_groups[0]["params"][0]
    seen: list[Tensor] = []

    def halved(_: torch.optim.Optimizer, given: dict[str, Any]) -> dict[str, Any]:
        state = {**given["state"], 0: {"momentum": given["state"][0]["momentum"] / 2}}
        return {**given, "state": state}

    optimizer.register_load_state_dict_pre_hook(halved)
    optimizer.register_load_state_dict_post_hook(lambda _: seen.append(optimizer.state[weight]["momentum"].clone()))
    for _ in range(2):
        optimizer.load_state_dict(saved)
        assert torch.equal(seen.pop(), saved["state"][0]["momentum"] / 2)
    hooks = optimizer._optimizer_load_state_dict_pre_hooks, optimizer._optimizer_load_state_dict_post_hooks
    assert [len(those) for those in hooks] == [1, 1]
