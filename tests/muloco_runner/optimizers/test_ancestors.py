"""Muon and MuLoCo1 with other implementations' defaults, names and saved states do what those implementations do."""

from __future__ import annotations

import copy
import re
from collections.abc import Callable
from typing import Any

import ancestor_rules as rules
import pytest
import torch
from torch import Tensor, nn

from muloco_runner.optimizers import MuLoCo1, Muon

SHAPES = [(12, 8), (9, 20), (16, 16), (12, 8)]
Rule = Callable[[Tensor, Tensor, dict[str, Any]], None]


def start(shapes: list[tuple[int, ...]]) -> list[Tensor]:
    generator = torch.Generator().manual_seed(0)
    return [torch.randn(shape, generator=generator) for shape in shapes]


def gradients(shapes: list[tuple[int, ...]], step: int) -> list[Tensor]:
    generator = torch.Generator().manual_seed(1000 + step)
    return [torch.randn(shape, generator=generator) for shape in shapes]


def by_rules(shapes: list[tuple[int, ...]], apply: list[Rule], steps: int, outer: bool = False) -> list[Tensor]:
    weights = start(shapes)
    states: list[dict[str, Any]] = [{"anchor": weight.clone()} for weight in weights]
    for step in range(steps):
        for weight, gradient, state, rule in zip(weights, gradients(shapes, step), states, apply, strict=True):
            rule(weight, gradient, state)
            if outer:
                rules.muloco1_outer(weight, state, step + 1)
    return weights


def trained(optimizer: torch.optim.Optimizer, steps: range) -> list[Tensor]:
    parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]
    for step in steps:
        for parameter, gradient in zip(parameters, gradients([tuple(p.shape) for p in parameters], step), strict=True):
            parameter.grad = gradient
        optimizer.step()
    return [parameter.detach() for parameter in parameters]


def agree(ours: list[Tensor], theirs: list[Tensor]) -> None:
    for one, other in zip(ours, theirs, strict=True):
        assert float((one - other).norm() / other.norm()) < 1e-6


def parameters(shapes: list[tuple[int, ...]] = SHAPES) -> list[nn.Parameter]:
    return [nn.Parameter(weight) for weight in start(shapes)]


@pytest.mark.parametrize("name", ["nanochat", "keller_jordan"])
def test_like_nanochat_and_keller_jordan_is_their_rule(name: Any) -> None:
    expected = by_rules(SHAPES, [rules.nanochat] * 4, 40)
    agree(trained(Muon.like(name, parameters(), backend="reference"), range(40)), expected)


def test_like_keller_jordan_flattens_convolutions() -> None:
    shapes = [(8, 4, 3, 3), (16, 5, 2), (12, 8)]
    expected = by_rules(shapes, [rules.nanochat] * 3, 20)
    agree(trained(Muon.like("keller_jordan", parameters(shapes), backend="reference"), range(20)), expected)


@pytest.mark.parametrize("kind", [Muon, MuLoCo1])
def test_like_muloco1_is_its_rule_also_on_batches(kind: type[Muon]) -> None:
    shapes = [(12, 8), (9, 20), (3, 6, 10), (2, 2, 7, 5), (11,), (4, 6)]
    apply: list[Rule] = [rules.muloco1_muon] * 4 + [rules.muloco1_adamw] * 2
    weights = parameters(shapes)
    groups = [{"params": weights[:4]}, {"params": weights[4:], "algorithm": "adamw"}]
    ours = trained(kind.like("muloco-1", groups, backend="reference"), range(70))
    agree(ours, by_rules(shapes, apply, 70, outer=kind is MuLoCo1))


def test_like_the_paper_has_the_trainers_defaults() -> None:
    paper, ours = Muon.like("paper", parameters()).defaults, Muon(parameters(), weight_decay=0.01).defaults
    assert {name: value for name, value in paper.items() if value != ours[name]} == {"epsilon": 1e-8}


def test_eps_of_a_group_like_torchs_is_its_least_norm() -> None:
    groups = [{"params": parameters(), "eps": 1e-3}, {"params": parameters(), "eps": 1e-4, "use_muon": False}]
    optimizer = Muon.like("torch", groups)
    optimizer.add_param_group({"params": parameters(), "eps": 1e-2})
    assert [group["norm_floor"] for group in optimizer.param_groups] == [1e-3, 1e-7, 1e-2]
    assert optimizer.param_groups[1]["eps"] == 1e-4
    for same in (optimizer, copy.deepcopy(optimizer)):
        same.param_groups[0]["eps"] = 0.1
        same.step()
        assert same.param_groups[0]["norm_floor"] == 0.1
    ours = Muon([{"params": parameters(), "eps": 1e-3}])
    assert ours.param_groups[0]["norm_floor"] == 0


def test_like_torch_is_torchs_muon(monkeypatch: pytest.MonkeyPatch) -> None:
    """In float32: torch's own orthogonalises in bfloat16, which is all that the patch takes from it."""
    monkeypatch.setattr(Tensor, "bfloat16", Tensor.clone)
    theirs = trained(torch.optim.Muon(parameters()), range(40))
    agree(trained(Muon.like("torch", parameters(), backend="reference"), range(40)), theirs)
    theirs = trained(torch.optim.Muon(parameters(), adjust_lr_fn="match_rms_adamw", nesterov=False), range(10))
    changed = Muon.like("torch", parameters(), backend="reference", adjust_lr_fn="match_rms_adamw", nesterov=False)
    agree(trained(changed, range(10)), theirs)
    other = {"ns_coefficients": (3.4, -4.7, 2.0), "ns_steps": 6, "eps": 1e-3}
    theirs = trained(torch.optim.Muon(parameters(), **other), range(10))
    agree(trained(Muon.like("torch", parameters(), backend="reference", **other), range(10)), theirs)


def optaxs(steps: int, nesterov: bool) -> list[Tensor]:
    """optax.contrib.muon 0.2.8, which this follows to 1e-6: matrices are (in, out), and biases are corrected."""
    weights = [weight.T.clone() for weight in start(SHAPES)]
    momenta = [torch.zeros_like(weight) for weight in weights]
    for step in range(steps):
        for weight, momentum, gradient in zip(weights, momenta, gradients(SHAPES, step), strict=True):
            momentum.mul_(0.95).add_(gradient.T, alpha=0.05)
            ahead = momentum / (1 - 0.95 ** (step + 1))
            if nesterov:
                ahead = 0.95 * momentum / (1 - 0.95 ** (step + 2)) + 0.05 * gradient.T / (1 - 0.95 ** (step + 1))
            update = rules.newton_schulz(ahead, rules.KELLER_JORDAN, 1e-8)
            fan_in, fan_out = weight.shape
            weight.sub_(0.02 * max(1, fan_out / fan_in) ** 0.5 * update)
    return [weight.T for weight in weights]


@pytest.mark.parametrize("nesterov", [True, False])
def test_like_optax_is_optaxs_muon(nesterov: bool) -> None:
    settings: dict[str, Any] = {} if nesterov else {"nesterov": False}
    agree(trained(Muon.like("optax", parameters(), **settings), range(40)), optaxs(40, nesterov))
    # The start at zero makes a difference.
    if nesterov:
        with pytest.raises(AssertionError):
            agree(trained(Muon.like("optax", parameters(), nesterov=True), range(40)), optaxs(40, nesterov))


def test_corrected_nesterov_goes_on_from_a_saved_state() -> None:
    first = Muon.like("optax", parameters())
    trained(first, range(3))
    second = Muon.like("optax", [p.detach().clone().requires_grad_() for p in first.param_groups[0]["params"]])
    second.load_state_dict(first.state_dict())
    assert second.param_groups[0]["nesterov_steps"] == 3
    agree(trained(second, range(3, 6)), trained(first, range(3, 6)))


@pytest.mark.parametrize(("other", "words"), [({"momentum_form": "sum"}, "ema"), ({"backend": "triton"}, "reference")])
def test_corrected_nesterov_is_refused_where_it_is_not_had(other: dict[str, Any], words: str) -> None:
    with pytest.raises(ValueError, match=words):
        Muon.like("optax", parameters(), **other)


def test_an_unknown_ancestor_is_refused() -> None:
    with pytest.raises(
        ValueError, match="like 'adam': must be one of muloco-1, nanochat, keller_jordan, torch, optax, paper"
    ):
        Muon.like("adam", parameters())  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("theirs", "ours"),
    [
        ({"mu": 0.5}, {"momentum": 0.5}),
        ({"adjust_lr": "rms_norm"}, {"lr_scale": "moonlight"}),
        ({"adjust_lr": "spectral_norm"}, {"lr_scale": "spectral"}),
        ({"adjust_lr": None}, {"lr_scale": "none"}),
        ({"adjust_lr_fn": None}, {"lr_scale": "keller_jordan"}),
        ({"epsilon": 3.0}, {"epsilon": 3.0}),
        (
            {"ns_steps": 3, "ns_coefficients": (3.4445, -4.7750, 2.0315)},
            {"num_iterations": 3, "coefficients": "keller_jordan"},
        ),
        ({"use_muon": False}, {"algorithm": "adamw"}),
    ],
    ids=str,
)
def test_settings_have_the_names_of_other_implementations(theirs: dict[str, Any], ours: dict[str, Any]) -> None:
    expected = trained(Muon([{"params": parameters(), **ours}]), range(3))
    agree(trained(Muon([{"params": parameters(), **theirs}]), range(3)), expected)
    if "use_muon" not in theirs:
        agree(trained(MuLoCo1(parameters(), **theirs), range(3)), expected)
        plain = trained(Muon(parameters()), range(3))
        assert ours == {"lr_scale": "spectral"} or not torch.equal(plain[1], expected[1])


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"mu": 0.5, "momentum": 0.8}, "momentum=0.8 is given under another name as well"),
        ({"adjust_lr": "rms"}, "adjust_lr='rms': must be one of 'spectral_norm', 'rms_norm', None"),
        (
            {"ns_coefficients": (1, 2)},
            "coefficients=(1, 2): must be one of muloco, keller_jordan, polar_express, or three",
        ),
        ({"split": 5}, "split=5: does not divide the 12 rows"),
        ({"split": {"qkv": 3}}, "by name, but the parameters have none"),
        ({"average": True}, "average=True: over which ranks?"),
    ],
    ids=str,
)
def test_names_and_values_that_cannot_be_meant_are_refused(settings: dict[str, Any], words: str) -> None:
    with pytest.raises(ValueError, match=re.escape(words)):
        Muon(parameters(), **settings)


def test_a_setting_that_nobody_has_is_refused() -> None:
    with pytest.raises(TypeError, match=r"moment=0\.9: no such setting"):
        Muon(parameters(), moment=0.9)
    optimizer = Muon(parameters())
    optimizer.param_groups[0]["mu"] = 0.5
    with pytest.raises(ValueError, match="'mu' in a parameter group of this optimizer: set 'momentum'"):
        optimizer.step()


def test_a_fused_projection_is_split_before_it_is_orthogonalised() -> None:
    fused, plain = parameters([(24, 8), (6, 8)])
    parts = [nn.Parameter(part.clone()) for part in fused.detach().chunk(3)]
    optimizer = Muon(
        [("blocks.0.qkv.weight", fused), ("blocks.0.out.weight", plain)], split={"qkv": 3}, backend="reference"
    )
    apart = Muon(parts, backend="reference")
    for step in range(4):
        fused.grad, plain.grad = gradients([(24, 8), (6, 8)], step)
        for part, gradient in zip(parts, fused.grad.chunk(3), strict=True):
            part.grad = gradient
        optimizer.step()
        apart.step()
    torch.testing.assert_close(fused.detach(), torch.cat([part.detach() for part in parts]), rtol=1e-6, atol=1e-6)
    assert optimizer.state[fused]["momentum"].shape == (24, 8)
    with pytest.raises(ValueError, match="no parameter of a Muon group has 'kqv' in its name"):
        Muon([("blocks.0.qkv.weight", fused)], split={"kqv": 3})


def test_states_of_other_implementations_are_taken_over(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Tensor, "bfloat16", Tensor.clone)
    theirs = torch.optim.Muon(parameters(), lr=0.03, weight_decay=0.2, nesterov=False)
    values = trained(theirs, range(5))
    ours = Muon.like("torch", [nn.Parameter(value.clone()) for value in values], backend="reference")
    ours.load_state_dict(copy.deepcopy(theirs.state_dict()))
    assert ours.param_groups[0]["lr"] == 0.03
    assert ours.param_groups[0]["eps"] == 1e-8
    agree(trained(ours, range(5, 10)), trained(theirs, range(5, 10)))


def saved_by(group: dict[str, Any], **state: Any) -> dict[str, Any]:
    return {"state": {0: state}, "param_groups": [{"params": [0], **group}]}


def test_a_state_of_nanochats_goes_on_as_there() -> None:
    weight, state = start(SHAPES[:1])[0], {}
    for step in range(5):
        rules.nanochat(weight, gradients(SHAPES[:1], step)[0], state)
    ours = Muon.like("nanochat", [nn.Parameter(weight.clone())], backend="reference")
    saved = {"lr": 0.02, "momentum": 0.95, "nesterov": True, "ns_steps": 5}
    ours.load_state_dict(saved_by(saved, momentum_buffer=state["momentum_buffer"].clone()))
    for step in range(5, 9):
        rules.nanochat(weight, gradients(SHAPES[:1], step)[0], state)
    agree(trained(ours, range(5, 9)), [weight])


@pytest.mark.parametrize(
    ("group", "words"),
    [
        ({"momentum": 0.95, "ns_steps": 5}, "saved momentum_buffer is of momentum_form='ema'; here it is 'sum'"),
        ({"mu": 0.95, "flavour": 1}, "'flavour' in a parameter group: no such setting"),
        ({"mu": 0.95, "ns_steps": 3}, "num_iterations=3: coefficients=muloco are five"),
    ],
    ids=str,
)
def test_a_foreign_state_that_does_not_fit_is_refused(group: dict[str, Any], words: str) -> None:
    optimizer = Muon(parameters(SHAPES[:1]))
    before = copy.deepcopy(optimizer.param_groups)
    with pytest.raises(ValueError, match=re.escape(words)):
        optimizer.load_state_dict(saved_by(group, momentum_buffer=torch.ones(12, 8)))
    assert optimizer.param_groups[0].keys() == before[0].keys()
    assert not optimizer.state[optimizer.param_groups[0]["params"][0]]["momentum"].any()


def test_a_state_of_adams_is_refused() -> None:
    adam = torch.optim.AdamW(parameters(SHAPES[:1]))
    trained(adam, range(1))
    with pytest.raises(ValueError, match="it was saved by another optimizer"):
        Muon(parameters(SHAPES[:1])).load_state_dict(adam.state_dict())


def test_a_state_of_muloco1s_own_is_refused() -> None:
    """It holds its inner optimizer's beside the anchors, and none of the keys of a torch optimizer's."""
    saved: dict[str, Any] = {"inner_optimizer": {}, "param_snapshots": [], "outer_momentum_buffers": []}
    words = r"without state and param_groups: .* muloco-1's MuLoCo1, whose states are not taken over"
    with pytest.raises(ValueError, match=words):
        MuLoCo1(parameters(SHAPES[:1])).load_state_dict(saved)
    with pytest.raises(ValueError, match="the saved state is empty, without"):
        Muon(parameters(SHAPES[:1])).load_state_dict({})
