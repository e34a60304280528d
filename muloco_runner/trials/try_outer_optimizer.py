"""Tries outer optimizers from outside the package: small tensors take outer steps with made-up pseudogradients."""

from __future__ import annotations

import io
from dataclasses import replace
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor

from muloco_runner.config import ConfigError, TargetOuterConfig
from muloco_runner.config.checks import require
from muloco_runner.diloco.flat import flatten, views
from muloco_runner.diloco.target_outer import TargetOuter
from muloco_runner.optimizers.target import trial_rate
from muloco_runner.trials.own_process import in_own_process

_SHAPES = ((6, 4), (4, 6), (5,), (6, 4))
_ROWS = (0, 4, 6)
"""Bounds of the rows of two replicas; the second one has none of the tensor of four."""
_STEPS = 3
_LR = 0.1
"""At which a class is tried that has no default of its own."""
_IT = "trying it"


def try_outer_optimizer(config: TargetOuterConfig) -> dict[str, Any]:
    """What is wrong with it, if anything, and whether it takes tensors whose rows lie apart."""
    torch.manual_seed(0)
    config = in_own_process(lambda: _at_trial_rate(config), _IT)
    in_own_process(lambda: _check(config), _IT)
    saved, end = in_own_process(lambda: _trained(config), _IT)
    in_own_process(lambda: _check_resume(config, saved, end), _IT)
    why_not = in_own_process(lambda: _rows_problem(config), _IT)
    return {"takes_dtensors": not why_not, "why_not": why_not}


def _at_trial_rate(config: TargetOuterConfig) -> TargetOuterConfig:
    where = f"method.outer_optimizer._target_={config._target_}"
    at_its_own = replace(config, lr=trial_rate(where, config._target_, _LR))
    try:
        _built(at_its_own)
    except ConfigError:
        return config  # a class may refuse rates
    return at_its_own


def _check(config: TargetOuterConfig) -> None:
    """A class that moves nothing, keeps what a checkpoint cannot hold, or draws random numbers raises `ConfigError`."""
    anchor, optimizer = _built(config)
    tensors = views(anchor, _tensors())
    before = anchor.clone()
    _steps(optimizer, anchor, _STEPS)
    for index, (moved, start) in enumerate(zip(tensors, views(before, tensors), strict=True)):
        require(bool(torch.isfinite(moved).all()), f"tensor {index} is not finite after {_STEPS} outer steps")
        require(
            not torch.equal(moved, start),
            f"it never moves a tensor of shape {tuple(moved.shape)} ({_STEPS} steps with gradients that are not zero)",
        )
    _check_state(config, optimizer)
    again, other = _built(config)
    torch.manual_seed(1)
    _steps(other, again, _STEPS)
    require(torch.equal(again, anchor), "its steps differ from time to time: every rank takes them, and must agree")


def build_outer(config: TargetOuterConfig) -> dict[str, Any]:
    """Build it at the rate that it has. What cannot be built raises `ConfigError`."""
    _built(config)
    return {}


def _tensors() -> list[Tensor]:
    generator = torch.Generator().manual_seed(0)
    return [torch.randn(shape, generator=generator) for shape in _SHAPES]


def _built(config: TargetOuterConfig) -> tuple[Tensor, TargetOuter]:
    tensors = _tensors()
    return flatten(tensors), TargetOuter(config, tensors)


def _pseudogradient(number: int, size: int) -> Tensor:
    return torch.randn(size, generator=torch.Generator().manual_seed(number))


def _steps(optimizer: TargetOuter, anchor: Tensor, last: int, first: int = 1) -> None:
    for number in range(first, last + 1):
        optimizer.step(anchor, _pseudogradient(number, anchor.numel()), number)


def _check_state(config: TargetOuterConfig, optimizer: TargetOuter) -> None:
    names = [set(optimizer.optimizer.state.get(parameter, {})) for parameter in optimizer.parameters]
    require(
        all(own == names[0] for own in names),
        "it keeps other state for some tensors than for others: a checkpoint holds one kind",
    )
    for parameter, numbers in zip(optimizer.parameters, optimizer.numbers, strict=False):
        for name, value in numbers.items():
            is_number = isinstance(value, int | float) or (isinstance(value, Tensor) and value.numel() == 1)
            shape = tuple(value.shape) if isinstance(value, Tensor) else type(value).__name__
            require(
                is_number,
                f"its state {name} is {shape} for a tensor of shape {tuple(parameter.shape)}: must be tensors of that "
                "shape, or single numbers",
            )
    kept = sum(flat.element_size() for flat in optimizer.state.values())
    require(
        kept <= config.state_bytes_per_parameter,
        f"it keeps {kept} bytes of state for a parameter: set method.outer_optimizer.state_bytes_per_parameter={kept}",
    )


def _trained(config: TargetOuterConfig) -> tuple[bytes, list[float]]:
    """A checkpoint, and the anchor two steps later."""
    anchor, optimizer = _built(config)
    _steps(optimizer, anchor, _STEPS)
    file = io.BytesIO()
    torch.save({"anchor": anchor, "state": optimizer.state, "numbers": optimizer.numbers}, file)
    _steps(optimizer, anchor, _STEPS + 2, _STEPS + 1)
    return file.getvalue(), anchor.tolist()


def _check_resume(config: TargetOuterConfig, checkpoint: bytes, end: list[float]) -> None:
    saved = torch.load(io.BytesIO(checkpoint), weights_only=True)
    _, other = _built(config)
    other.load(saved["state"], saved["numbers"])
    _steps(other, saved["anchor"], _STEPS + 2, _STEPS + 1)
    require(
        end == saved["anchor"].tolist(),
        "its state does not resume: after save, load in a new process and two steps the anchor differs: it must be in "
        "`state`",
    )


def _rows_problem(config: TargetOuterConfig) -> str:
    """Why replicas that each hold rows of every tensor do not get what one does; empty where they do."""
    anchor, optimizer = _built(config)
    _steps(optimizer, anchor, _STEPS)
    try:
        for first, end in pairwise(_ROWS):
            for whole, rows in zip(views(anchor, _tensors()), _steps_on_rows(config, first, end), strict=True):
                if not torch.allclose(whole[first:end], rows, rtol=1e-4, atol=1e-6):
                    return f"of rows of a tensor of shape {tuple(whole.shape)} it makes something else than of all"
    except Exception as error:
        return f"a step on some rows failed: {type(error).__name__}: {error}"
    return ""


def _steps_on_rows(config: TargetOuterConfig, first: int, end: int) -> list[Tensor]:
    like = _tensors()
    tensors = [tensor[first:end] for tensor in like]
    anchor, optimizer = flatten(tensors), TargetOuter(config, tensors)
    for number in range(1, _STEPS + 1):
        deltas = views(_pseudogradient(number, sum(tensor.numel() for tensor in like)), like)
        optimizer.step(anchor, flatten([delta[first:end] for delta in deltas]), number)
    return views(anchor, tensors)
