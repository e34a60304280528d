"""The inner optimizer that a run's config names."""

from __future__ import annotations

from typing import Any, assert_never, cast

import torch
import torch.distributed as dist
from torch import Tensor, nn

from muloco_runner.config import AdamWConfig, BuiltInConfig, ConfigError, MuonConfig, RunConfig, WeightDecayForm
from muloco_runner.config.variants import load
from muloco_runner.distributed.traffic import Traffic
from muloco_runner.optimizers.arena import Arena
from muloco_runner.optimizers.muon import Muon
from muloco_runner.optimizers.parameter_groups import parameter_groups, parameter_kinds


def build_inner_optimizer(
    model: nn.Module,
    run: RunConfig,
    muon_backend: str = "auto",
    process_group: dist.ProcessGroup | None = None,
    traffic: Traffic | None = None,
    arena: Arena | None = None,
) -> torch.optim.Optimizer:
    """The optimizer that `run.inner_optimizer` describes.

    `muon_backend` is `ExecutionConfig.muon_backend`; `process_group` holds the replicas that share Muon's work, and
    `traffic` is told what they send. `arena` is Muon's workspace on this device, for all workers that step in turn.
    """
    optimizer: torch.optim.Optimizer = load(run.inner_optimizer)(
        model, run, muon_backend=muon_backend, process_group=process_group, traffic=traffic, arena=arena
    )
    return optimizer


def build_adamw(model: nn.Module, run: RunConfig, muon_backend: str, **_: object) -> torch.optim.Optimizer:
    """AdamW on every parameter; its replicas share no work."""
    config = run.inner_optimizer
    assert isinstance(config, AdamWConfig)
    beta1, beta2 = config.betas
    groups = _with_lr_factors([{"params": list(model.parameters())}], model, config)
    common: dict[str, Any] = {
        "lr": config.lr,
        "betas": (beta1, beta2),
        "eps": config.eps,
        "weight_decay": run.weight_decay,
    }
    match cast(WeightDecayForm, config.weight_decay_form):
        case "decoupled":
            return torch.optim.AdamW(groups, **common, fused=True)
        case "cautious":  # which torch's has not, and Muon's AdamW has
            groups = [{**group, "algorithm": "adamw"} for group in groups]
            return Muon(groups, **common, weight_decay_form="cautious", backend=muon_backend)
        case unknown:
            assert_never(unknown)


def build_muon(
    model: nn.Module,
    run: RunConfig,
    muon_backend: str,
    process_group: dist.ProcessGroup | None,
    traffic: Traffic | None,
    arena: Arena | None,
) -> Muon:
    """Muon on the hidden matrices and AdamW, same lr and decay, on the rest."""
    config = run.inner_optimizer
    assert isinstance(config, MuonConfig)
    beta1, beta2 = config.betas
    return Muon(
        _with_lr_factors(parameter_groups(model), model, config),
        config.lr,
        momentum=config.momentum,
        momentum_form=config.momentum_form,  # type: ignore[arg-type]
        nesterov=config.nesterov,
        lr_scale=config.lr_scale,  # type: ignore[arg-type]
        coefficients=config.coefficients,
        num_iterations=config.num_iterations,
        betas=(beta1, beta2),
        eps=config.eps,
        weight_decay=run.weight_decay,
        weight_decay_form=config.weight_decay_form,  # type: ignore[arg-type]
        backend=muon_backend,
        process_group=process_group,
        traffic=traffic,
        arena=arena,
    )


def _with_lr_factors(groups: list[dict[str, Any]], model: nn.Module, config: BuiltInConfig) -> list[dict[str, Any]]:
    """Return the groups cut by their parameters' factors on lr; without one as they are.

    A group's peak lr is its `initial_lr`, as torch's schedulers have it, where that is not the run's.
    """
    kinds = dict(zip(map(id, model.parameters()), parameter_kinds(model).values(), strict=True))
    cut: list[dict[str, Any]] = []
    for group in groups:
        by_factor: dict[float, list[Tensor]] = {}
        for parameter in group["params"]:
            by_factor.setdefault(config.lr_factor(kinds[id(parameter)], parameter.ndim), []).append(parameter)
        for factor, parameters in by_factor.items():
            peak = {} if factor == 1 else dict.fromkeys(("lr", "initial_lr"), config.lr * factor)
            cut.append({**group, "params": parameters, **peak})
    used = {config.lr_factor_name(kinds[id(p)], p.ndim) for group in groups for p in group["params"]}
    for name in sorted(config.lr_factors - used):
        raise ConfigError(
            f"inner_optimizer.{name}={getattr(config, name)} has no effect: the model has no parameter of that kind (a "
            "head with its embedding's weight is an embedding): leave it out"
        )
    return cut
