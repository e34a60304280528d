"""The weights in one checkpoint of a run."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from muloco_runner.config import ConfigError, ModelConfig, PrimalAveragingConfig, RunConfig, TargetConfig
from muloco_runner.config.variants import load
from muloco_runner.model.language_model import LanguageModel
from muloco_runner.model.transformer import empty_model
from muloco_runner.optimizers import build_inner_optimizer
from muloco_runner.optimizers.gpa import to_x
from muloco_runner.optimizers.target import end_training
from muloco_runner.record import RunFolder
from muloco_runner.targets import make_importable
from muloco_runner.training.checkpoints.files import is_intact, read_state


def read_weights_of_run(folder: RunFolder, config: RunConfig, step: int, worker: int | None) -> dict[str, Tensor]:
    """Weights by parameter name, views of a file: the worker's own, or where `worker` is None the synchronised model's.

    A damaged checkpoint raises `ConfigError`.
    """
    if isinstance(config.method, PrimalAveragingConfig):
        numbers = range(config.num_workers) if worker is None else [worker]
        states = _read(folder, step, *(f"worker-{number}.pt" for number in numbers))
        names = _names_of_parameters(folder, config, states[0]["model"])
        return dict(zip(names, _mean_of_averages(states, names, config.method.mu_y), strict=True))
    shared, own = _read(folder, step, "shared.pt", f"worker-{worker or 0}.pt")
    weights: dict[str, Tensor] = own["model"]
    if worker is None and "anchor" in shared["method"]:
        names = _names_of_parameters(folder, config, weights)
        return dict(zip(names, shared["method"]["anchor"], strict=True))
    if isinstance(config.inner_optimizer, TargetConfig):
        return _evaluated(folder, config, weights, own["optimizer"])
    return weights


def _names_of_parameters(folder: RunFolder, config: RunConfig, weights: dict[str, Tensor]) -> list[str]:
    """In the model's order."""
    if isinstance(config.model, ModelConfig):
        return list(weights)
    # Its state has other names too where it has buffers, or a parameter two names.
    return [name for name, _ in model_of_run(folder, config, torch.device("cpu")).named_parameters()]


def _mean_of_averages(states: list[dict[str, Any]], names: list[str], mu_y: float) -> list[Tensor]:
    """What `PrimalAveraging` evaluates: the mean of the workers' x, in their order."""
    mean: list[Tensor] = []
    for state in states:
        x = [state["model"][name].clone() for name in names]
        to_x(x, state["method"]["z"], mu_y)
        mean = x if not mean else [total.add_(own) for total, own in zip(mean, x, strict=True)]
    return [total.div_(len(states)) for total in mean]


def model_of_run(folder: RunFolder, config: RunConfig, device: torch.device) -> LanguageModel:
    """A model whose buffers have their values, and its parameters any."""
    if not isinstance(config.model, ModelConfig):
        make_importable(config, folder)
        built: LanguageModel = load(config.model)(config.model, config.seed, device)
        return built
    model = empty_model(config.model).to_empty(device=device)
    model.fill_buffers()
    return model


@torch.no_grad()
def fill(model: nn.Module, values: dict[str, Tensor]) -> None:
    """Copies the values into the model's parameters of these names, which must be all."""
    for name, parameter in model.named_parameters():
        parameter.copy_(values[name])


def _read(folder: RunFolder, step: int, *names: str) -> list[dict[str, Any]]:
    path = folder.checkpoint_at(step)
    if not is_intact(path, list(names), list(names)):
        others = [other for other in folder.checkpoint_steps() if other != step]
        rest = f"there are others, of step {', '.join(map(str, others))}" if others else "there is no other"
        raise ConfigError(f"{path}: the checkpoint is damaged, or was replaced while it was read: {rest}")
    return [read_state(path / name) for name in names]


def _evaluated(
    folder: RunFolder, config: RunConfig, weights: dict[str, Tensor], optimizer_state: dict[str, Any]
) -> dict[str, Tensor]:
    """The weights that an optimizer from outside evaluates, which may be others than those that it trains."""
    make_importable(config, folder)
    model = model_of_run(folder, config, torch.device("cpu"))
    fill(model, weights)
    optimizer = build_inner_optimizer(model, config)
    optimizer.load_state_dict(optimizer_state)
    end_training(optimizer)
    return {name: parameter.detach() for name, parameter in model.named_parameters()}
