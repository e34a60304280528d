"""Outer optimizers from outside the package: a `torch.optim.Optimizer` whose parameters are the anchor's tensors."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from muloco_runner.config import ConfigError, TargetOuterConfig
from muloco_runner.diloco.flat import flatten, views
from muloco_runner.diloco.outer_optimizer import SharedTensors
from muloco_runner.model.target_model import load_class
from muloco_runner.optimizers.target import build_optimizer, has_two_sets

_PREFIX = "outer_"
"""Before the names of its state in checkpoints: a method has names of its own there."""


class TargetOuter:
    """Each tensor is a parameter of its own, so that matrices have their shape; its gradient is the pseudogradient.

    Of its state it keeps tensors shaped like their parameter, and single numbers; whoever tries it refuses others.
    """

    def __init__(self, config: TargetOuterConfig, tensors: Sequence[Tensor]) -> None:
        self.like = tensors
        self.parameters = [nn.Parameter(tensor.detach()) for tensor in tensors]
        where = f"method.outer_optimizer._target_={config._target_}"
        cls = load_class(where, config._target_, torch.optim.Optimizer, "torch.optim.Optimizer")
        self.optimizer = build_optimizer(cls, self.parameters, {"lr": config.lr, **config.arguments})
        if has_two_sets(self.optimizer):
            raise ConfigError(f"{where}: trains other weights than it evaluates (train() and eval()): an anchor is one")

    @torch.no_grad()
    def step(self, anchor: Tensor, pseudogradient: Tensor, number: int) -> None:
        # An optimizer may write into its gradients; whoever called still reads this one.
        deltas = views(pseudogradient.clone(), self.like)
        for parameter, values, delta in zip(self.parameters, views(anchor, self.like), deltas, strict=True):
            parameter.data, parameter.grad = values, delta
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        for parameter, values in zip(self.parameters, views(anchor, self.like), strict=True):
            if parameter.data_ptr() != values.data_ptr():  # it has put other tensors in their place
                values.copy_(parameter)

    @property
    def state(self) -> dict[str, Tensor]:
        """Empty before the first step."""
        names = {name: None for p in self.parameters for name, value in self._kept(p).items() if _is_like(value, p)}
        return {_PREFIX + name: flatten([self._kept(p)[name] for p in self.parameters]) for name in names}

    @property
    def numbers(self) -> list[dict[str, Any]]:
        if not any(self._kept(p) for p in self.parameters):
            return []
        return [{n: value for n, value in self._kept(p).items() if not _is_like(value, p)} for p in self.parameters]

    def load(self, state: Mapping[str, Tensor], numbers: Sequence[Mapping[str, Any]]) -> None:
        if not numbers:
            return
        kept: list[dict[str, Any]] = [dict(own) for own in numbers]
        for name, flat in state.items():
            for own, value in zip(kept, views(flat.clone(), self.like), strict=True):
                own[name.removeprefix(_PREFIX)] = value
        groups = self.optimizer.state_dict()["param_groups"]
        self.optimizer.load_state_dict({"state": dict(enumerate(kept)), "param_groups": groups})

    def _kept(self, parameter: Tensor) -> dict[str, Any]:
        kept: dict[str, Any] = self.optimizer.state.get(parameter, {})
        return kept


def _is_like(value: Any, parameter: Tensor) -> bool:
    return isinstance(value, Tensor) and value.shape == parameter.shape


def build_target_outer(config: TargetOuterConfig, shared: SharedTensors) -> TargetOuter:
    """The optimizer that a `TargetOuterConfig` names. What cannot be built as it was asked for raises `ConfigError`."""
    return TargetOuter(config, shared.tensors)
