"""Muon on hidden matrices, AdamW on everything else, as one torch optimizer.

Muon (Keller Jordan et al.): the momentum of each matrix is orthogonalised by a Newton-Schulz polynomial and scaled by
its shape; weight decay is decoupled. Matrices of one shape are orthogonalised in one batched call.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any, Literal

import torch
from torch import Tensor
from torch.optim.adamw import adamw

from muloco_runner.optimizers.orthogonalize.polynomial import named_polynomial
from muloco_runner.optimizers.orthogonalize.reference import orthogonalize_reference

MomentumForm = Literal["sum", "ema"]
LrScale = Literal["spectral", "keller_jordan", "moonlight"]


def shape_scale(convention: str, rows: int, columns: int) -> float:
    """Factor on the learning rate of a (fan_out, fan_in) matrix."""
    match convention:
        case "spectral":
            return (rows / columns) ** 0.5
        case "keller_jordan":
            return max(1.0, rows / columns) ** 0.5
        case "moonlight":
            return 0.2 * max(rows, columns) ** 0.5
    raise ValueError(f"lr_scale={convention!r}: must be one of spectral, keller_jordan, moonlight")


class Muon(torch.optim.Optimizer):
    """Groups with `algorithm="muon"` (the default; matrices only) or `algorithm="adamw"`, each with its own `lr`."""

    def __init__(
        self,
        params: Iterable[Tensor] | Iterable[dict[str, Any]],
        lr: float = 0.02,
        *,
        momentum: float = 0.9,
        momentum_form: MomentumForm = "sum",
        nesterov: bool = False,
        lr_scale: LrScale = "spectral",
        coefficients: str = "muloco",
        num_iterations: int = 5,
        betas: tuple[float, float] = (0.9, 0.99),
        eps: float = 1e-8,
        weight_decay: float = 0.0,
    ) -> None:
        named_polynomial(coefficients, num_iterations)
        shape_scale(lr_scale, 1, 1)
        defaults = {
            "lr": lr,
            "algorithm": "muon",
            "momentum": momentum,
            "momentum_form": momentum_form,
            "nesterov": nesterov,
            "lr_scale": lr_scale,
            "coefficients": coefficients,
            "num_iterations": num_iterations,
            "betas": betas,
            "eps": eps,
            "weight_decay": weight_decay,
        }
        super().__init__(params, defaults)
        for group in self.param_groups:
            for parameter in group["params"]:
                if group["algorithm"] == "muon" and parameter.ndim != 2:
                    raise ValueError(
                        f"a parameter of shape {tuple(parameter.shape)} is no matrix: give it a group with "
                        'algorithm="adamw"'
                    )

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> float | None:  # type: ignore[override]
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        for group in self.param_groups:
            parameters = [p for p in group["params"] if p.grad is not None]
            if parameters and group["algorithm"] == "muon":
                self._muon_step(parameters, group)
            elif parameters:
                self._adamw_step(parameters, group)
        return loss

    def _muon_step(self, parameters: list[Tensor], group: dict[str, Any]) -> None:
        for parameter in parameters:
            if "momentum" not in self.state[parameter]:
                self.state[parameter]["momentum"] = torch.zeros_like(parameter)
        gradients = [p.grad for p in parameters if p.grad is not None]
        momenta = [self.state[p]["momentum"] for p in parameters]
        mu, weight = group["momentum"], 1.0 if group["momentum_form"] == "sum" else 1.0 - group["momentum"]
        torch._foreach_mul_(momenta, mu)
        torch._foreach_add_(momenta, gradients, alpha=weight)
        updates = momenta
        if group["nesterov"]:
            updates = list(torch._foreach_mul(momenta, mu))
            torch._foreach_add_(updates, gradients, alpha=weight)
        torch._foreach_mul_(parameters, 1 - group["lr"] * group["weight_decay"])
        polynomial = named_polynomial(group["coefficients"], group["num_iterations"])
        by_shape: dict[torch.Size, list[int]] = {}
        for index, parameter in enumerate(parameters):
            by_shape.setdefault(parameter.shape, []).append(index)
        for (rows, columns), indices in by_shape.items():
            bank_BMN = torch.stack([updates[i] for i in indices])
            scale = group["lr"] * shape_scale(group["lr_scale"], rows, columns)
            orthogonal = orthogonalize_reference(bank_BMN, polynomial).unbind()
            torch._foreach_add_([parameters[i] for i in indices], list(orthogonal), alpha=-scale)

    def _adamw_step(self, parameters: list[Tensor], group: dict[str, Any]) -> None:
        for parameter in parameters:
            state = self.state[parameter]
            if "step" not in state:
                state["step"] = torch.zeros((), dtype=torch.float32)
                state["exp_avg"], state["exp_avg_sq"] = torch.zeros_like(parameter), torch.zeros_like(parameter)
        states = [self.state[p] for p in parameters]
        adamw(
            parameters,
            [p.grad for p in parameters if p.grad is not None],
            [state["exp_avg"] for state in states],
            [state["exp_avg_sq"] for state in states],
            [],
            [state["step"] for state in states],
            foreach=True,
            amsgrad=False,
            beta1=group["betas"][0],
            beta2=group["betas"][1],
            lr=group["lr"],
            weight_decay=group["weight_decay"],
            eps=group["eps"],
            maximize=False,
        )
