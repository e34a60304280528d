"""What people do with any torch optimizer, as a table of cases over torch's AdamW and Muon and ours, side by side.

`FAILS` says which of the four does not do it, and why. A case that begins to pass fails its test until it is taken out.
"""

from __future__ import annotations

import copy
import inspect
import io
import pickle
from collections import defaultdict
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import CyclicLR, LinearLR, OneCycleLR, ReduceLROnPlateau, SequentialLR, StepLR

from muloco_runner.optimizers import MuLoCo1, Muon

Build = Callable[..., Optimizer]
OPTIMIZERS: dict[str, Build] = {
    "torch AdamW": lambda params, lr=0.1, **others: torch.optim.AdamW(params, lr, **others),
    "torch Muon": lambda params, lr=0.1, **others: torch.optim.Muon(params, lr, **others),
    "Muon": lambda params, lr=0.1, **others: Muon(params, lr, **others),
    "Muon, AdamW group": lambda params, lr=0.1, **others: _as_adamw(Muon, params, lr, **others),
    "MuLoCo1": lambda params, lr=0.1, **others: MuLoCo1(params, lr, sync_interval=3, **others),
}


def _as_adamw(kind: type[Muon], params: Any, lr: Any, **others: Any) -> Muon:
    params = list(params)
    groups = params if isinstance(params[0], dict) else [{"params": params}]
    for group in groups:
        group["algorithm"] = "adamw"
    return kind(groups, lr, **others)


def matrices(count: int = 2, seed: int = 0) -> list[nn.Parameter]:
    generator = torch.Generator().manual_seed(seed)
    return [nn.Parameter(torch.randn(4, 6, generator=generator)) for _ in range(count)]


def train(optimizer: Optimizer, steps: range) -> list[Tensor]:
    """Steps on gradients that the number of the step alone decides; returns copies of all parameters."""
    for step in steps:
        generator = torch.Generator().manual_seed(100 + step)
        for group in optimizer.param_groups:
            for parameter in group["params"]:
                parameter.grad = torch.randn(parameter.shape, generator=generator).to(parameter)
        optimizer.step()
    return [p.detach().clone() for group in optimizer.param_groups for p in group["params"]]


def trained(build: Build, steps: int, count: int = 2) -> list[Tensor]:
    return train(build(matrices(count)), range(steps))


def equal(ours: list[Tensor], theirs: list[Tensor], tolerance: float = 0.0) -> None:
    for one, other in zip(ours, theirs, strict=True):
        torch.testing.assert_close(one, other, rtol=tolerance, atol=tolerance)


def through_a_file(state: Any) -> Any:
    file = io.BytesIO()
    torch.save(state, file)
    file.seek(0)
    return torch.load(file, weights_only=True)


def state_goes_through_a_file(build: Build) -> None:
    first = build(matrices())
    values = train(first, range(4))
    again = build([nn.Parameter(value) for value in values])
    again.load_state_dict(through_a_file(first.state_dict()))
    equal(train(again, range(4, 8)), trained(build, 8))


def state_before_any_step_loads(build: Build) -> None:
    first = build(matrices(seed=1), 0.3)
    again = build(matrices())
    again.load_state_dict(first.state_dict())
    assert again.param_groups[0]["lr"] == 0.3


def a_deepcopy_goes_its_own_way(build: Build) -> None:
    optimizer = build(matrices())
    train(optimizer, range(3))
    train(copy.deepcopy(optimizer), range(10, 13))
    equal(train(optimizer, range(3, 6)), trained(build, 6))


def a_pickle_continues(build: Build) -> None:
    optimizer = build(matrices())
    train(optimizer, range(3))
    equal(train(pickle.loads(pickle.dumps(optimizer)), range(3, 6)), trained(build, 6))


def hooks_run_once(build: Build) -> None:
    optimizer, calls = build(matrices()), []
    optimizer.register_step_pre_hook(lambda *_: calls.append("before step"))
    optimizer.register_step_post_hook(lambda *_: calls.append("after step"))
    optimizer.register_state_dict_pre_hook(lambda *_: calls.append("before saving"))
    optimizer.register_state_dict_post_hook(lambda *_: calls.append("after saving"))
    optimizer.register_load_state_dict_pre_hook(lambda *_: calls.append("before loading"))
    optimizer.register_load_state_dict_post_hook(lambda *_: calls.append("after loading"))
    train(optimizer, range(1))
    optimizer.load_state_dict(optimizer.state_dict())
    assert calls == [f"{when} {what}" for what in ("step", "saving", "loading") for when in ("before", "after")]


def schedulers_set_the_lr(build: Build) -> None:
    first, second, third = (build(matrices()) for _ in range(3))
    step, plateau = StepLR(first, 1, 0.5), ReduceLROnPlateau(second, factor=0.5, patience=0)
    sequence = SequentialLR(third, [LinearLR(third, 0.5, total_iters=2), StepLR(third, 1, 0.5)], [2])
    for number in range(3):
        for optimizer in (first, second, third):
            train(optimizer, range(number, number + 1))
        step.step()
        plateau.step(float(number))
        sequence.step()
    assert [optimizer.param_groups[0]["lr"] for optimizer in (first, second)] == [0.0125, 0.025]
    constant = build(matrices())
    for number in range(3):
        constant.param_groups[0]["lr"] = 0.1 * 0.5**number
        train(constant, range(number, number + 1))
    equal([p.detach() for p in first.param_groups[0]["params"]], train(constant, range(0)))


def cycled(build: Build, schedule: Callable[[Optimizer], Any], name: str) -> None:
    """The momentum that a step uses follows the schedule: the same steps with it set by hand give the same."""
    optimizer, by_hand = build(matrices()), build(matrices())
    scheduler = schedule(optimizer)
    seen = []
    for number in range(5):
        group, own = optimizer.param_groups[0], by_hand.param_groups[0]
        value = group["betas"][0] if name == "betas" or "betas" in group else group["momentum"]
        seen.append(value)
        own["lr"] = group["lr"]
        if name == "betas":
            own["betas"] = (value, own["betas"][1])
        else:
            own["momentum"] = value
        equal(train(optimizer, range(number, number + 1)), train(by_hand, range(number, number + 1)))
        scheduler.step()
    assert max(seen) > 0.94
    assert min(seen) < 0.87


def momentum_name(optimizer: Optimizer) -> str:
    group = optimizer.param_groups[0]
    is_muon = "momentum" in group and group.get("algorithm", "muon") == "muon"
    return "momentum" if is_muon else "betas"


def one_cycle_cycles_the_momentum(build: Build) -> None:
    cycled(build, lambda optimizer: OneCycleLR(optimizer, 0.1, total_steps=6), momentum_name(build(matrices())))


def cyclic_cycles_the_momentum(build: Build) -> None:
    cycled(
        build,
        lambda optimizer: CyclicLR(optimizer, 0.01, 0.1, 2, base_momentum=0.8, max_momentum=0.95),
        momentum_name(build(matrices())),
    )


def momentum_set_by_hand_after_a_cycle_is_used(build: Build) -> None:
    """Also while the scheduler goes on, after which it sets the next one, and after a state is loaded."""
    optimizer, by_hand = build(matrices()), build(matrices())
    name = momentum_name(optimizer)
    scheduler = OneCycleLR(optimizer, 0.1, total_steps=9)

    def by_hand_as_well(*steps: int, momentum: float | None = None) -> None:
        group, own = optimizer.param_groups[0], by_hand.param_groups[0]
        scheduled = group["betas"][0] if "betas" in group else group["momentum"]
        for one in (group, own) if momentum is not None else (own,):
            value = scheduled if momentum is None else momentum
            one[name] = (value, one["betas"][1]) if name == "betas" else value
        own["lr"] = group["lr"]
        equal(train(optimizer, range(*steps)), train(by_hand, range(*steps)))

    by_hand_as_well(0, 1, momentum=0.5)  # before any step
    for step in range(1, 6):
        scheduler.step()
        by_hand_as_well(step, step + 1, momentum=0.5 if step in (3, 4) else None)
    by_hand_as_well(6, 8, momentum=0.4)
    again = build([nn.Parameter(p.detach().clone()) for p in optimizer.param_groups[0]["params"]])
    again.load_state_dict(through_a_file(optimizer.state_dict()))
    optimizer = copy.deepcopy(again)
    equal(train(optimizer, range(8, 10)), train(by_hand, range(8, 10)))
    by_hand_as_well(10, 12, momentum=0.3)


def a_group_added_late_is_trained(build: Build) -> None:
    one, other = matrices()
    optimizer = build([one])
    train(optimizer, range(2))
    group: dict[str, Any] = {"params": [other], "lr": 0.2}
    if "algorithm" in optimizer.param_groups[0]:
        group["algorithm"] = optimizer.param_groups[0]["algorithm"]
    optimizer.add_param_group(group)
    before = other.detach().clone()
    train(optimizer, range(2, 4))
    assert not torch.equal(other, before)
    assert optimizer.param_groups[1]["lr"] == 0.2


def an_lr_may_be_a_tensor_of_one_element(build: Build) -> None:
    expected = trained(build, 3)
    for shape in ((), (1,), (1, 1)):
        optimizer = build(matrices(), torch.full(shape, 0.1, dtype=torch.float64))
        equal(train(optimizer, range(3)), expected, 1e-6)
        assigned = build(matrices(), 0.7)
        assigned.param_groups[0]["lr"] = torch.full(shape, 0.1, dtype=torch.float64)
        equal(train(assigned, range(3)), expected, 1e-6)


def an_lr_of_several_elements_is_refused(build: Build) -> None:
    with pytest.raises(ValueError, match=r"lr"):
        build(matrices(), torch.tensor([0.1, 0.2]))


def a_parameter_without_a_gradient_stays(build: Build) -> None:
    one, other = matrices()
    optimizer, before = build([one, other], weight_decay=0.1), other.detach().clone()
    for _ in range(3):
        one.grad = torch.ones(4, 6)
        optimizer.step()
    assert torch.equal(other, before)


def a_closure_is_called_once_with_gradients_on(build: Build) -> None:
    one, other = matrices()
    optimizer, calls = build([one, other]), []

    def closure() -> Tensor:
        calls.append(torch.is_grad_enabled())
        optimizer.zero_grad()
        loss = (one * other).sum()
        loss.backward()
        return loss

    before = float((one * other).sum().detach())
    with torch.no_grad():
        assert float(optimizer.step(closure)) == before  # type: ignore[arg-type]
    assert calls == [True]
    assert not torch.equal(one, matrices()[0])


def a_replaced_parameter_moves(build: Build) -> None:
    optimizer = build(matrices())
    optimizer.param_groups[0]["params"] = matrices()[:1] + optimizer.param_groups[0]["params"][1:]
    equal(train(optimizer, range(4)), trained(build, 4))
    optimizer.param_groups[0]["params"][0] = matrices()[0]
    before = optimizer.param_groups[0]["params"][0].detach().clone()
    assert not torch.equal(train(optimizer, range(1))[0], before)
    optimizer.state_dict()


def groups_may_be_assigned_popped_and_appended(build: Build) -> None:
    one, other, third = matrices(3)
    optimizer = build([{"params": [one]}, {"params": [other]}])
    train(optimizer, range(2))
    popped = optimizer.param_groups.pop()
    before = other.detach().clone()
    train(optimizer, range(2, 3))
    assert torch.equal(other, before)
    optimizer.param_groups.append({**popped, "params": [third]})
    before = third.detach().clone()
    train(optimizer, range(3, 4))
    assert not torch.equal(third, before)
    optimizer.param_groups = [popped]
    train(optimizer, range(4, 5))
    assert not torch.equal(other, matrices(3)[1])
    optimizer.param_groups[0]["params"].append(third)
    optimizer.step()


def a_group_that_comes_back_has_its_state(build: Build) -> None:
    optimizer = build([{"params": [matrix]} for matrix in matrices()])
    train(optimizer, range(3))
    popped = optimizer.param_groups.pop()
    optimizer.step()  # on the gradients of before
    optimizer.param_groups.append(popped)
    whole = build([{"params": [matrix]} for matrix in matrices()])
    train(whole, range(3))
    whole.param_groups[1]["params"][0].grad = None
    whole.step()
    if isinstance(whole, MuLoCo1):  # a group counts its own steps to the next outer one
        popped["steps_since_sync"] = whole.param_groups[1]["steps_since_sync"]
    equal(train(optimizer, range(4, 6)), train(whole, range(4, 6)))


def a_cleared_state_starts_anew(build: Build) -> None:
    for clear in (
        lambda optimizer: optimizer.state.clear(),
        lambda optimizer: setattr(optimizer, "state", defaultdict(dict)),
        lambda optimizer: [optimizer.state.pop(p) for p in list(optimizer.state)],
    ):
        optimizer = build(matrices())
        values = train(optimizer, range(4))
        clear(optimizer)
        fresh = build([nn.Parameter(value) for value in values])
        if isinstance(fresh, MuLoCo1):  # when its next outer step comes is a setting of the group
            fresh.param_groups[0]["steps_since_sync"] = optimizer.param_groups[0]["steps_since_sync"]
        equal(train(optimizer, range(4, 8)), train(fresh, range(4, 8)))


def an_assigned_state_takes_effect(build: Build) -> None:
    first, second = build(matrices()), build(matrices())
    train(first, range(3))
    train(second, range(3))
    for optimizer in (first, second):
        for values in optimizer.state.values():
            for name, value in values.items():
                if name == "step":
                    continue
                if optimizer is first:
                    values[name] = value * 0.5
                else:
                    value.mul_(0.5)
    equal(train(first, range(3, 6)), train(second, range(3, 6)))


def a_model_cast_after_construction_trains(build: Build) -> None:
    for dtype in (torch.float64, torch.bfloat16):
        model = nn.ParameterList(matrices())
        optimizer = build(list(model))
        model.to(dtype)
        built_after = build([nn.Parameter(value.detach().to(dtype)) for value in matrices()])
        # State of what was built before the cast stays float32; of what was built after it is as wide as parameters.
        tolerance = 1e-6 if dtype == torch.float64 else 0.05
        ours, theirs = train(optimizer, range(4)), train(built_after, range(4))
        assert ours[0].dtype == dtype
        equal(ours, theirs, tolerance)


def a_model_cast_in_between_goes_on(build: Build) -> None:
    model = nn.ParameterList(matrices())
    optimizer = build(list(model))
    train(optimizer, range(4))
    model.double()
    equal([value.float() for value in train(optimizer, range(4, 8))], trained(build, 8), 1e-5)


def a_swapped_tensor_is_trained(build: Build) -> None:
    one, other = matrices()
    optimizer = build([one])
    train(optimizer, range(2))
    one.grad = None
    torch.utils.swap_tensors(one, nn.Parameter(other.detach().double()))
    before = one.detach().clone()
    (after,) = train(optimizer, range(2, 3))
    assert after.dtype == torch.float64
    assert not torch.equal(after, before)


def a_resized_parameter_is_refused_or_trained_anew(build: Build) -> None:
    (one,) = matrices(1)
    optimizer = build([one])
    train(optimizer, range(2))
    one.data = torch.ones(5, 6)
    one.grad = torch.ones(5, 6)
    with pytest.raises((ValueError, RuntimeError), match=r"shape|size"):
        optimizer.step()
    optimizer.state.clear()
    optimizer.step()
    assert not torch.equal(one, torch.ones(5, 6))


def a_saved_step_may_be_a_number(build: Build) -> None:
    first = build(matrices())
    values = train(first, range(4))
    saved = copy.deepcopy(first.state_dict())
    for state in saved["state"].values():
        if "step" in state:
            state["step"] = float(state["step"])
    again = build([nn.Parameter(value) for value in values])
    again.load_state_dict(saved)
    equal(train(again, range(4, 6)), trained(build, 6))


def an_empty_group_is_none(build: Build) -> None:
    optimizer = build([{"params": []}, {"params": matrices()}])
    equal(train(optimizer, range(3)), trained(build, 3))
    again = build([{"params": []}, {"params": matrices()}])
    again.load_state_dict(optimizer.state_dict())


def a_matrix_without_elements_is_none(build: Build) -> None:
    optimizer = build([*matrices(), nn.Parameter(torch.zeros(4, 0)), nn.Parameter(torch.zeros(0, 4))])
    equal(train(optimizer, range(3))[:2], trained(build, 3))
    optimizer.load_state_dict(optimizer.state_dict())


def huge_gradients_move_parameters_as_small_ones_do(build: Build) -> None:
    for size in (1e18, 1e30, 1e38):  # of the last the norm alone is above all float32
        (one,), (other,) = matrices(1), matrices(1)
        huge, small = build([one], weight_decay=0.0), build([other], weight_decay=0.0)
        direction = torch.randn(4, 6, generator=torch.Generator().manual_seed(7)).clamp(-3, 3)
        one.grad, other.grad = direction * size, direction.clone()
        huge.step()
        small.step()
        torch.testing.assert_close(one, other, rtol=1e-3, atol=1e-3)


def a_sparse_gradient_is_refused(build: Build) -> None:
    table = nn.Embedding(5, 4, sparse=True)
    optimizer = build([table.weight])
    table(torch.tensor([1])).sum().backward()
    with pytest.raises((ValueError, RuntimeError), match=r"sparse|dense"):
        optimizer.step()


def a_parameter_given_twice_is_refused(build: Build) -> None:
    one, other = matrices()
    optimizer = build([one])
    with pytest.raises(ValueError, match="more than one"):
        optimizer.add_param_group({"params": [other, one]})
    assert len(optimizer.param_groups) == 1


def names_are_kept(build: Build) -> None:
    optimizer = build([("one", matrices()[0]), ("other", matrices()[1])])
    again = build([("one", matrices()[0]), ("other", matrices()[1])])
    again.load_state_dict(optimizer.state_dict())
    assert again.param_groups[0]["param_names"] == ["one", "other"]
    equal(train(optimizer, range(2)), trained(build, 2))


def zero_grad_forgets_gradients(build: Build) -> None:
    optimizer = build(matrices())
    train(optimizer, range(1))
    optimizer.zero_grad()
    assert all(p.grad is None for p in optimizer.param_groups[0]["params"])


def settings_assigned_to_a_group_are_used(build: Build) -> None:
    optimizer = build(matrices(), weight_decay=0.0)
    optimizer.param_groups[0]["weight_decay"] = 0.5
    equal(train(optimizer, range(3)), train(build(matrices(), weight_decay=0.5), range(3)))


CASES = [
    found
    for found in list(globals().values())
    if inspect.isfunction(found) and [*inspect.signature(found).parameters] == ["build"]
]
"""Every function above that takes an optimizer's constructor alone."""
_STATE_OF_WHAT_LEFT = "state_dict() raises a KeyError: the state of a parameter that was replaced stays"
_STATE_KEEPS_ITS_DTYPE = "the momentum keeps the dtype of before, which the step refuses"
_SQUARES_OVERFLOW = "the second moment of a gradient above 1e19 is infinite in float32"
FAILS: dict[tuple[str, str], str] = {
    ("a_replaced_parameter_moves", "torch AdamW"): _STATE_OF_WHAT_LEFT,
    ("a_replaced_parameter_moves", "torch Muon"): _STATE_OF_WHAT_LEFT,
    ("a_model_cast_in_between_goes_on", "torch AdamW"): _STATE_KEEPS_ITS_DTYPE,
    ("a_model_cast_in_between_goes_on", "torch Muon"): _STATE_KEEPS_ITS_DTYPE,
    ("a_swapped_tensor_is_trained", "torch AdamW"): _STATE_KEEPS_ITS_DTYPE,
    ("a_swapped_tensor_is_trained", "torch Muon"): _STATE_KEEPS_ITS_DTYPE,
    ("a_matrix_without_elements_is_none", "torch Muon"): "divides rows by columns",
    ("huge_gradients_move_parameters_as_small_ones_do", "torch AdamW"): _SQUARES_OVERFLOW,
    ("huge_gradients_move_parameters_as_small_ones_do", "Muon, AdamW group"): _SQUARES_OVERFLOW,
    ("huge_gradients_move_parameters_as_small_ones_do", "torch Muon"): "bfloat16 rounds otherwise at another scale",
}


def _cases() -> list[Any]:
    parameters = []
    for case in CASES:
        for optimizer in OPTIMIZERS:
            reason = FAILS.get((case.__name__, optimizer))
            marks = () if reason is None else (pytest.mark.xfail(strict=True, reason=reason),)
            parameters.append(pytest.param(case, optimizer, marks=marks, id=f"{case.__name__}-{optimizer}"))
    return parameters


@pytest.mark.parametrize(("case", "optimizer"), _cases())
def test_contract(case: Callable[[Build], None], optimizer: str) -> None:
    case(OPTIMIZERS[optimizer])


def test_the_table_names_cases_and_optimizers_that_exist() -> None:
    names = {case.__name__ for case in CASES}
    assert len(names) > 30
    assert all(case in names and optimizer in OPTIMIZERS for case, optimizer in FAILS)
