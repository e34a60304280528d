"""Inner optimizers from outside the package: built by their names, on the parameters that a config gives them."""

from __future__ import annotations

import contextlib
import inspect
import math
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from fnmatch import fnmatchcase
from typing import Any

import torch
from torch import Tensor, nn

from muloco_runner.config import ConfigError, DataParallelConfig, RunConfig, TargetConfig
from muloco_runner.model.target_model import load_class
from muloco_runner.optimizers.parameter_groups import parameter_groups


def build_target(model: nn.Module, run: RunConfig, **_: object) -> torch.optim.Optimizer:
    """The optimizer that a `TargetConfig` names, with another one on the parameters that it leaves to the rest.

    What cannot be built as it was asked for raises `ConfigError`.
    """
    config = run.inner_optimizer
    assert isinstance(config, TargetConfig)
    mine, rest = split_parameters(model, config)
    target = _built(config._target_, mine, config.arguments, run)
    if has_two_sets(target) and not isinstance(run.method, DataParallelConfig):
        raise ConfigError(
            f"{config._target_}: trains other weights than it evaluates (train() and eval()), and what an outer step "
            "would average is not defined: use it with method=data_parallel"
        )
    if not rest:
        return target
    if config.rest:
        other = _built(config.rest["_target_"], rest, config.rest.get("arguments", {}), run)
    else:
        beta1, beta2 = config.betas
        other = torch.optim.AdamW(
            rest, lr=config.lr, betas=(beta1, beta2), eps=config.eps, weight_decay=run.weight_decay
        )
    return Together([target, other])


def split_parameters(model: nn.Module, config: TargetConfig) -> tuple[list[Tensor], list[Tensor]]:
    """The target's parameters and the rest, each in the model's order."""
    named: list[tuple[str, Tensor]] = [(name, p) for name, p in model.named_parameters() if p.requires_grad]
    if config.applies_to == "all":
        return [parameter for _, parameter in named], []
    if config.applies_to == "matrices":
        matrices = {id(p) for g in parameter_groups(model) if g["algorithm"] == "muon" for p in g["params"]}
        is_mine = {name: id(parameter) in matrices for name, parameter in named}
    else:
        is_mine = {name: _group_of(name, config.applies_to) == "target" for name, _ in named}
        for pattern in config.applies_to:
            if not any(fnmatchcase(name, pattern) for name, _ in named):
                raise ConfigError(
                    f"inner_optimizer.applies_to: {pattern!r} matches no parameter; there are {named[0][0]}, ..., "
                    f"{named[-1][0]}"
                )
    mine = [parameter for name, parameter in named if is_mine[name]]
    if not mine:
        raise ConfigError(f"inner_optimizer.applies_to={config.applies_to!r}: leaves the target no parameter")
    return mine, [parameter for name, parameter in named if not is_mine[name]]


def _group_of(name: str, patterns: Mapping[str, str]) -> str:
    return next((group for pattern, group in patterns.items() if fnmatchcase(name, pattern)), "rest")


def _built(
    target: str, parameters: list[Tensor], arguments: Mapping[str, Any], run: RunConfig
) -> torch.optim.Optimizer:
    where = f"inner_optimizer._target_={target}"
    cls = load_class(where, target, torch.optim.Optimizer, "torch.optim.Optimizer")
    given = {"lr": run.inner_optimizer.lr, **arguments}
    if "weight_decay" in inspect.signature(cls).parameters:
        given["weight_decay"] = run.weight_decay
    elif run.weight_decay:
        raise ConfigError(f"{where}: takes no weight_decay: set inner_optimizer.weight_decay=0")
    optimizer = build_optimizer(cls, parameters, given)
    for group in optimizer.param_groups:
        if "initial_lr" in group:
            raise ConfigError(f"{where}: sets initial_lr of a group, which the schedule reads: leave it out")
        if "lr" in group and not math.isclose(float(group["lr"]), run.inner_optimizer.lr, rel_tol=1e-6):
            raise ConfigError(
                f"{where}: makes a group with lr={float(group['lr']):g} of inner_optimizer.lr="
                f"{run.inner_optimizer.lr:g}, and the schedule sets all groups to one rate: "
                "scale that group's update in step() instead"
            )
    return optimizer


def trial_rate(where: str, target: str, otherwise: float) -> float:
    """The learning rate at which a class is tried, whatever a run's is, at which it may diverge: its own default."""
    cls = load_class(where, target, torch.optim.Optimizer, "torch.optim.Optimizer")
    default = getattr(inspect.signature(cls).parameters.get("lr"), "default", None)
    is_rate = isinstance(default, int | float) and 0 < default < math.inf
    return float(default) if is_rate else otherwise  # type: ignore[arg-type]


def build_optimizer(cls: type, parameters: Sequence[Tensor], given: Mapping[str, Any]) -> torch.optim.Optimizer:
    """An optimizer of the class on just these parameters. An argument that the class does not name, and one that cannot
    be built, raise `ConfigError`."""
    where = f"{cls.__module__}.{cls.__qualname__}({', '.join(given)})"
    taken = inspect.signature(cls).parameters
    for key in given:
        # Whatever takes **anything may ignore it.
        if key not in taken:
            known = ", ".join(name for name in taken if name != "params")
            raise ConfigError(f"{where}: has no argument {key}; it takes {known}")
    try:
        optimizer: torch.optim.Optimizer = cls(list(parameters), **given)
    except Exception as error:
        values = ", ".join(f"{name}={value}" for name, value in given.items())
        raise ConfigError(
            f"{cls.__module__}.{cls.__qualname__} cannot be built with {values}: {type(error).__name__}: {error}"
        ) from error
    if not isinstance(optimizer, cls):
        made = f"{type(optimizer).__module__}.{type(optimizer).__qualname__}"
        raise ConfigError(f"{where}: its constructor makes a {made}, which is none of its class: name that one")
    held = {id(parameter) for group in optimizer.param_groups for parameter in group["params"]}
    if held != {id(parameter) for parameter in parameters}:
        raise ConfigError(f"{where}: its param_groups do not hold the parameters that it was given")
    return optimizer


class Together(torch.optim.Optimizer):
    """Several optimizers, each with parameters of its own, as one: their groups one after the other."""

    def __init__(self, parts: list[torch.optim.Optimizer]) -> None:
        super().__init__([{"params": g["params"]} for part in parts for g in part.param_groups], {})
        self.parts = parts
        self._share()

    def _share(self) -> None:
        """The groups and state of the parts are this one's."""
        self.param_groups = [group for part in self.parts for group in part.param_groups]
        self.state = defaultdict(dict)
        for part in self.parts:
            self.state.update(part.state)

    def step(self, closure: Callable[[], float] | None = None) -> None:  # type: ignore[override]
        assert closure is None, "the trainer has computed the gradients"
        for part in self.parts:
            part.step()

    def state_dict(self) -> dict[str, Any]:
        self._share()
        return super().state_dict()

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        first = 0
        for part in self.parts:
            groups = state_dict["param_groups"][first : first + len(part.param_groups)]
            first += len(groups)
            numbers = [index for group in groups for index in group["params"]]
            own = {index: state_dict["state"][index] for index in numbers if index in state_dict["state"]}
            part.load_state_dict({"state": own, "param_groups": groups})
        self._share()

    def train(self) -> None:
        for part in self.parts:
            if has_two_sets(part):
                part.train()  # type: ignore[attr-defined]

    def eval(self) -> None:
        for part in self.parts:
            if has_two_sets(part):
                part.eval()  # type: ignore[attr-defined]


def has_two_sets(optimizer: torch.optim.Optimizer) -> bool:
    """Whether an optimizer trains other weights than those it evaluates (schedule-free): it has `train` and `eval`."""
    if isinstance(optimizer, Together):
        return any(has_two_sets(part) for part in optimizer.parts)
    return callable(getattr(optimizer, "train", None)) and callable(getattr(optimizer, "eval", None))


def start_training(optimizer: torch.optim.Optimizer) -> None:
    """Put the weights that are trained into the parameters, where there are two sets."""
    if has_two_sets(optimizer):
        optimizer.train()  # type: ignore[attr-defined]


def end_training(optimizer: torch.optim.Optimizer) -> None:
    """Put the weights that are evaluated into the parameters for good."""
    if has_two_sets(optimizer):
        optimizer.eval()  # type: ignore[attr-defined]


@contextlib.contextmanager
def evaluated_weights(optimizer: torch.optim.Optimizer) -> Iterator[None]:
    """Have the weights that are evaluated in the parameters for a while.

    Those that are trained come back to the bit: how often a run is evaluated changes nothing.
    """
    if not has_two_sets(optimizer):
        yield
        return
    parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]
    trained = [parameter.detach().clone() for parameter in parameters]
    optimizer.eval()  # type: ignore[attr-defined]
    try:
        yield
    finally:
        optimizer.train()  # type: ignore[attr-defined]
        with torch.no_grad():
            for parameter, value in zip(parameters, trained, strict=True):
                parameter.copy_(value)
