"""Generalized Primal Averaging (GPA, arXiv 2512.17131): the steps of any optimizer, averaged as they are taken.

Three sequences: z takes the base optimizer's updates, x is the average of z and is evaluated, and gradients are taken
at y = mu_y x + (1 - mu_y) z. The parameters hold y, one buffer holds z, and x follows from both.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.optim.optimizer import ParamsT

from muloco_runner.config.averaging import INTERVAL, MU_Y, check_averaging, mu_x_of_interval
from muloco_runner.distributed.dtensor import copy_into, local
from muloco_runner.muon_rule.setting_checks import check_count
from muloco_runner.optimizers.target import has_two_sets
from muloco_runner.optimizers.validate import check_is_saved, check_state

_OWN_KEYS = ("mu_x", "mu_y", "holds_x")
"""What `GPA.state_dict` adds to each group."""


@contextlib.contextmanager
def averaged_update(parameters: Sequence[Tensor], z: Sequence[Tensor], mu_x: float, mu_y: float) -> Iterator[None]:
    """Have z take what is done to `parameters` within the context; afterwards these hold the next y.

    z <- z + update, x <- mu_x x + (1 - mu_x) z, y <- mu_y x + (1 - mu_y) z. A copy of the parameters lives as long as
    the context.
    """
    parameters, z = list(parameters), list(z)
    before = [parameter.detach().clone() for parameter in parameters]
    yield
    with torch.no_grad():
        torch._foreach_sub_(parameters, before)
        to_x(before, z, mu_y)
        torch._foreach_add_(z, parameters)
        torch._foreach_lerp_(before, z, 1 - mu_x)
        torch._foreach_copy_(parameters, before)
        to_y(parameters, z, mu_y)


@torch.no_grad()
def to_x(parameters: Sequence[Tensor], z: Sequence[Tensor], mu_y: float) -> None:
    """Make x of parameters that hold y."""
    parameters, z = list(parameters), list(z)
    torch._foreach_sub_(parameters, z)
    torch._foreach_div_(parameters, mu_y)
    torch._foreach_add_(parameters, z)


@torch.no_grad()
def to_y(parameters: Sequence[Tensor], z: Sequence[Tensor], mu_y: float) -> None:
    """Make y of parameters that hold x."""
    torch._foreach_lerp_(list(parameters), list(z), 1 - mu_y)


class GPA(torch.optim.Optimizer):
    """Any optimizer with its iterates averaged: train at y, evaluate at x (arXiv 2512.17131).

    y = mu_y x + (1 - mu_y) z; the base optimizer's update at y moves z; then x <- mu_x x + (1 - mu_x) z. Decoupled
    weight decay is part of that update, and so pulls at y. Call `eval()` before evaluation and before the weights are
    saved to be used, and `train()` before training goes on: in between the parameters hold x, and `step` is a
    `RuntimeError`. State beside the base's is z, as large as the parameters; a step takes as much again for a while.

    `param_groups` and `state` are those of the base, which schedulers drive as if it were alone. z starts at the
    parameters' values at their first step. `state_dict` holds z beside the base's state of each parameter, and mu_x,
    mu_y and whether the parameters hold x in each group.

    params: parameters or parameter groups, as the base takes them, float32 or wider: of narrower ones the average's
        small steps would be lost in rounding.
    base: class of the base optimizer, or a function of parameters and settings that returns one, such as `Muon`.
        Default `torch.optim.AdamW`.
    mu_x: share of x that a step keeps, in [0, 1). Default 0.9^(1/sync_interval), as in the paper.
    mu_y: share of x in y, in (0, 1]. Default 0.7: the paper. With mu_x = mu_y = mu it is `MuLoCo1` with an outer step
        after every step, outer momentum mu, and learning rate times outer learning rate of lr (1 - mu).
    sync_interval: steps between the outer steps of a DiLoCo that mu_x is to stand in for; without effect beside mu_x,
        so that both are a `ValueError`. Default 32.
    settings: keywords of the base.
    """

    def __init__(
        self,
        params: ParamsT,
        base: Callable[..., torch.optim.Optimizer] = torch.optim.AdamW,
        *,
        mu_x: float | None = None,
        mu_y: float = MU_Y,
        sync_interval: int | None = None,
        **settings: Any,
    ) -> None:
        if mu_x is not None and sync_interval is not None:
            raise ValueError(f"mu_x={mu_x} and sync_interval={sync_interval}: the interval only sets mu_x: give one")
        interval = INTERVAL if sync_interval is None else sync_interval
        check_count("sync_interval", interval)
        mu_x = mu_x_of_interval(interval) if mu_x is None else mu_x
        check_averaging("", mu_x, mu_y)
        optimizer = _built(base, params, settings)
        super().__init__([{"params": group["params"]} for group in optimizer.param_groups], {})
        self.base, self.mu_x, self.mu_y = optimizer, mu_x, mu_y
        self.holds_x = False
        """Whether the parameters hold x, to be evaluated."""
        self._z: dict[Tensor, Tensor] = {}
        self.defaults = optimizer.defaults
        self._share()

    def _share(self) -> None:
        """Have the base's groups and state as this one's."""
        self.param_groups, self.state = self.base.param_groups, self.base.state

    def _give_back(self) -> None:
        """Have this one's groups and state, which people may have replaced, as the base's."""
        self.base.param_groups, self.base.state = self.param_groups, self.state

    def add_param_group(self, param_group: dict[str, Any]) -> None:
        """Add a group to the base. One that GPA does not average is a `ValueError`, and is not added."""
        if "base" not in self.__dict__:  # torch's constructor, which knows nothing of it
            super().add_param_group(param_group)
            return
        self._give_back()
        self.base.add_param_group(param_group)
        self._share()
        try:
            _check_dtypes(self.base)
        except ValueError:
            self.param_groups.pop()
            raise

    def step(self, closure: Callable[[], float] | None = None) -> float | None:  # type: ignore[override]
        """Take one step of the base and average it; return what the base returns."""
        if self.holds_x:
            raise RuntimeError("step() while the parameters hold the averaged weights: call train() first")
        self._give_back()
        parameters = self._parameters()
        for parameter in parameters:
            if parameter not in self._z:
                self._z[parameter] = parameter.detach().clone()
        with averaged_update(*self._local(parameters), self.mu_x, self.mu_y):
            loss: float | None = self.base.step() if closure is None else self.base.step(closure)
        self._share()
        return loss

    def eval(self) -> None:
        """Put x into the parameters."""
        if not self.holds_x and (averaged := self._averaged()):
            to_x(*self._local(averaged), self.mu_y)
        self.holds_x = True

    def train(self) -> None:
        """Put y into the parameters."""
        if self.holds_x and (averaged := self._averaged()):
            to_y(*self._local(averaged), self.mu_y)
        self.holds_x = False

    def _parameters(self) -> list[Tensor]:
        return [parameter for group in self.param_groups for parameter in group["params"]]

    def _averaged(self) -> list[Tensor]:
        """The parameters that have taken a step; of all others x, y and z are one."""
        return [parameter for parameter in self._parameters() if parameter in self._z]

    @torch.no_grad()
    def _local(self, parameters: Sequence[Tensor]) -> tuple[list[Tensor], list[Tensor]]:
        """This rank's part of the parameters and of their z."""
        return [local(p).detach() for p in parameters], [local(self._z[p]) for p in parameters]

    def state_dict(self) -> dict[str, Any]:
        """Return the base's state with z beside it."""
        self._give_back()
        saved = self.base.state_dict()
        self._share()
        own = {"mu_x": self.mu_x, "mu_y": self.mu_y, "holds_x": self.holds_x}
        state = dict(saved["state"])
        for number, parameter in zip(_numbers(saved), self._parameters(), strict=True):
            if parameter in self._z:
                state[number] = {**state.get(number, {}), "z": self._z[parameter]}
        return {**saved, "state": state, "param_groups": [{**group, **own} for group in saved["param_groups"]]}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Load a state that `state_dict` returned, mu_x and mu_y included. Another optimizer's is a `ValueError`."""
        check_is_saved(state_dict)
        groups = state_dict["param_groups"]
        for key in _OWN_KEYS:
            if any(key not in group for group in groups):
                raise ValueError(f"the saved state has no {key} in its groups: it was saved by another optimizer")
        self._give_back()
        z = {
            parameter: values["z"]
            for number, parameter in zip(_numbers(state_dict), self._parameters(), strict=False)  # the base counts them
            if "z" in (values := state_dict["state"].get(number, {}))
        }
        for parameter, value in z.items():
            check_state("z", value, parameter, "the saved z of a parameter")
        self.base.load_state_dict(
            {
                **state_dict,
                "state": {number: _without(values, ("z",)) for number, values in state_dict["state"].items()},
                "param_groups": [_without(group, _OWN_KEYS) for group in groups],
            }
        )
        self._share()
        self.mu_x, self.mu_y, self.holds_x = (groups[0][key] for key in _OWN_KEYS)
        self._z = {parameter: _own_copy(value, parameter) for parameter, value in z.items()}

    def __getstate__(self) -> dict[str, Any]:
        own = {name: self.__dict__[name] for name in ("base", "mu_x", "mu_y", "holds_x", "_z")}
        return {**super().__getstate__(), **own}


def _built(
    base: Callable[..., torch.optim.Optimizer], params: ParamsT, settings: Mapping[str, Any]
) -> torch.optim.Optimizer:
    if not callable(base):
        raise ValueError(f"base={type(base).__name__}: must be a class or a function of parameters, not an optimizer")
    optimizer = base(params, **settings)
    if has_two_sets(optimizer):
        raise ValueError(
            f"base={type(optimizer).__name__}: trains other weights than it evaluates (train() and eval()), and what "
            "its average would be is not defined"
        )
    _check_dtypes(optimizer)
    return optimizer


def _check_dtypes(optimizer: torch.optim.Optimizer) -> None:
    for group in optimizer.param_groups:
        for parameter in group["params"]:
            if parameter.dtype not in (torch.float32, torch.float64):
                raise ValueError(
                    f"a parameter of {parameter.dtype}: GPA averages in the parameters' dtype, where small steps would "
                    "be lost: keep float32 parameters and compute under torch.autocast"
                )


def _numbers(state_dict: Mapping[str, Any]) -> list[int]:
    """The numbers of all parameters of a saved state, in their order."""
    return [number for group in state_dict["param_groups"] for number in group["params"]]


def _without(values: Mapping[str, Any], keys: Sequence[str]) -> dict[str, Any]:
    return {key: value for key, value in values.items() if key not in keys}


@torch.no_grad()
def _own_copy(value: Tensor, parameter: Tensor) -> Tensor:
    own = parameter.detach().clone()
    copy_into(own, value)
    return own
