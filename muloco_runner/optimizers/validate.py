"""Checks of what `Muon` and `MuLoCo1` are given: settings, parameter groups, saved states. Errors are `ValueError`s."""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping
from numbers import Real
from typing import Any, get_args

from torch import Tensor

from muloco_runner.config.inner_optimizer import LrScale, MomentumForm, WeightDecayForm
from muloco_runner.muon_rule.matrix_view import matrix_view, splits_of
from muloco_runner.muon_rule.polynomial import polynomial_of
from muloco_runner.muon_rule.setting_checks import (
    check_choice,
    check_coefficients,
    check_count,
    check_nesterov,
    check_number,
)
from muloco_runner.optimizers.orthogonalize import TRITON_DTYPES, choose_backend
from muloco_runner.optimizers.update_rule import NUMBERS

_CHOICES = {
    "algorithm": ("muon", "adamw"),
    "momentum_form": get_args(MomentumForm),
    "lr_scale": get_args(LrScale),
    "weight_decay_form": get_args(WeightDecayForm),
}
"""The values of settings that are words."""
TORCHS_KEYS = ("params", "param_names", "differentiable", "name")
"""`name` is a label for people; nobody reads it."""
_SCHEDULERS_KEYS = ("initial_lr", "max_lr", "min_lr", "base_momentum", "max_momentum", "swa_lr")
"""In groups that an optimizer before this one was given, or that a scheduler is to continue with."""

SCHEDULED = (*NUMBERS, "betas")
"""Settings that may change from step to step, each checked by itself."""
COUNTERS = ("nesterov_steps", "steps_since_sync")
"""What optimizers themselves count in their groups."""


def check_range(name: str, value: Any, end: float = math.inf) -> None:
    """Check that a hyper-parameter is a number, or a tensor of one, not negative, and below `end`."""
    check_number(name, value.item() if isinstance(value, Tensor) and value.numel() == 1 else value, end)


def check_keys(group: dict[str, Any], settings: Collection[str]) -> None:
    """Refuse a key that nothing reads: misspelt, it would leave the parameters to another algorithm unnoticed."""
    if "params" not in group:
        raise ValueError(f'a group without parameters: {", ".join(group) or "empty"}; give it "params"')
    for key in group:
        if key not in (*settings, *TORCHS_KEYS, *_SCHEDULERS_KEYS):
            raise ValueError(f"{key!r} in a parameter group: no such setting; known are params, {', '.join(settings)}")


def check_scheduled(name: str, value: Any) -> None:
    """Check a setting that is one number, or `betas`."""
    if name != "betas":
        check_range(name, value, 1 if name == "momentum" else math.inf)
        return
    try:
        beta1, beta2 = value
    except (TypeError, ValueError):
        raise ValueError(f"betas={value!r}: must be two numbers") from None
    check_range("betas", beta1, 1)
    check_range("betas", beta2, 1)


def check_group(group: dict[str, Any]) -> None:
    """Check the settings of a group, and that its parameters can be trained with them."""
    for name, allowed in _CHOICES.items():
        check_choice(name, group[name], allowed)
    for name in SCHEDULED:
        check_scheduled(name, group[name])
    check_count("num_iterations", group["num_iterations"])
    check_coefficients(group["coefficients"])
    polynomial_of(group)
    if group["batched"] not in (True, False):
        raise ValueError(f"batched={group['batched']!r}: must be True or False")
    _check_nesterov(group)
    split = group["split"]
    for number in split.values() if isinstance(split, dict) else (split,):
        check_count("split", number)
    if group["algorithm"] == "muon":
        for parameter, number in zip(group["params"], splits_of(group), strict=True):
            matrix_view(parameter.shape, number, group["batched"])
    for parameter in group["params"]:
        choose_backend(group["backend"], parameter.device)
        if not parameter.is_floating_point() or parameter.dtype.itemsize < 2:  # no arithmetic on float8
            raise ValueError(
                f"a parameter of {parameter.dtype}: must be of a real floating-point dtype, 16 bits or more"
            )


def _check_nesterov(group: dict[str, Any]) -> None:
    check_nesterov(group["nesterov"], group["momentum_form"])
    if group["nesterov"] != "corrected":
        return
    for parameter in group["params"]:
        if choose_backend(group["backend"], parameter.device) in TRITON_DTYPES:
            raise ValueError("nesterov='corrected': no fused kernel has it: give backend='reference'")


def check_disjoint(groups: list[dict[str, Any]]) -> None:
    """Check that no parameter is in two groups, or twice in one: a step would update it twice."""
    parameters = [parameter for group in groups for parameter in group["params"]]
    if len(set(map(id, parameters))) < len(parameters):
        raise ValueError("a parameter is in more than one group, or twice in one: give each once")


def check_split_names(groups: list[dict[str, Any]]) -> None:
    """Check that every part of a name that `split` mentions is that of some parameter."""
    parts = {
        part
        for group in groups
        if group["algorithm"] == "muon"
        for name in group.get("param_names", ())
        for part in name.split(".")
    }
    for group in groups:
        for part in group["split"] if isinstance(group["split"], dict) else ():
            if part not in parts:
                raise ValueError(f"split={group['split']}: no parameter of a Muon group has {part!r} in its name")


def check_is_saved(state_dict: Mapping[str, Any]) -> None:
    """Check that it is the state of a torch optimizer, as far as its keys say."""
    missing = [name for name in ("state", "param_groups") if name not in state_dict]
    if missing:
        muloco1 = (
            ", but that of muloco-1's MuLoCo1, whose states are not taken over: begin anew at its model's parameters"
        )
        raise ValueError(
            f"the saved state is {', '.join(map(str, state_dict)) or 'empty'}, without {' and '.join(missing)}: it is "
            f"no torch optimizer's{muloco1 if 'param_snapshots' in state_dict else ''}"
        )


def check_saved_groups(saved: list[dict[str, Any]], groups: list[dict[str, Any]]) -> None:
    """Check that saved groups are as many as there are, of as many parameters, for the same algorithms."""
    sizes, own_sizes = ([len(group["params"]) for group in of] for of in (saved, groups))
    if sizes != own_sizes:
        raise ValueError(f"the saved state is of groups of {sizes} parameters; this optimizer's have {own_sizes}")
    for number, (theirs, own) in enumerate(zip(saved, groups, strict=True)):
        if theirs.get("algorithm", own["algorithm"]) != own["algorithm"]:
            raise ValueError(f"group {number} was saved with {theirs['algorithm']}; here it is of {own['algorithm']}")


def check_saved_state(number: int, saved: dict[str, Any], names: set[str], parameter: Tensor) -> None:
    """Check that the saved state of a parameter has these names and its shape; a step count is one number."""
    if saved.keys() != names:
        raise ValueError(
            f"the saved state of parameter {number} is {', '.join(sorted(saved))}; here it must be "
            f"{', '.join(sorted(names))}: it was saved by another optimizer"
        )
    for name, value in saved.items():
        check_state(name, value, parameter, f"the saved {name} of parameter {number}")


def check_state(name: str, value: Any, parameter: Tensor, what: str) -> None:
    """Check that a parameter's state has its shape; a step count is a number, or a tensor of one element."""
    if name == "step" and (isinstance(value, Real) or (isinstance(value, Tensor) and value.numel() == 1)):
        return
    shape = tuple(value.shape) if isinstance(value, Tensor) else type(value).__name__
    expected = () if name == "step" else tuple(parameter.shape)
    if shape != expected:
        raise ValueError(f"{what} is of shape {shape}; here it must be {expected}")
