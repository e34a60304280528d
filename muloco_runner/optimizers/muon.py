"""Muon on hidden matrices, AdamW on everything else, as one torch optimizer.

Muon (Keller Jordan et al.): the momentum of each matrix is orthogonalised by a Newton-Schulz polynomial and scaled by
its shape; weight decay is decoupled. Matrices of one shape share a bank and are orthogonalised together. All state is
created at once, in float32, and saved per parameter.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from itertools import chain
from typing import Any, Literal

import torch
from torch import Tensor
from torch.optim.adamw import adamw

from muloco_runner.optimizers.matrix_bank import MatrixBank, matrix_banks, shape_scale
from muloco_runner.optimizers.orthogonalize import choose_backend
from muloco_runner.optimizers.orthogonalize.polynomial import named_polynomial

MomentumForm = Literal["sum", "ema"]
LrScale = Literal["spectral", "keller_jordan", "moonlight"]


class Muon(torch.optim.Optimizer):
    """Groups with `algorithm="muon"` (the default; matrices only) or `algorithm="adamw"`, each with its own `lr`.

    State is 4 bytes a parameter of a Muon group (the momentum) and 8 of an AdamW group (both moments).
    """

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
        backend: str = "auto",
    ) -> None:
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
            "backend": backend,
        }
        self._banks: list[list[MatrixBank]] = []
        super().__init__(params, defaults)

    def add_param_group(self, param_group: dict[str, Any]) -> None:
        """As torch's; checks the group and creates its state."""
        super().add_param_group(param_group)
        group = self.param_groups[-1]
        try:
            _check(group)
        except ValueError:
            self.param_groups.pop()
            raise
        self._banks.append(self._create_state(group))

    def _create_state(self, group: dict[str, Any]) -> list[MatrixBank]:
        """Zeros, or what `self.state` holds of it already; the banks of a Muon group."""
        if group["algorithm"] == "adamw":
            for parameter in group["params"]:
                state, dtype = self.state[parameter], state_dtype(parameter)
                # On the parameter's device, as the fused kernel wants it.
                state.setdefault("step", torch.zeros((), dtype=torch.float32, device=parameter.device))
                state.setdefault("exp_avg", torch.zeros_like(parameter, dtype=dtype))
                state.setdefault("exp_avg_sq", torch.zeros_like(parameter, dtype=dtype))
            return []
        banks = matrix_banks(group)
        for bank in banks:
            for parameter, momentum in zip(bank.parameters, bank.momenta, strict=True):
                if "momentum" in self.state[parameter]:
                    momentum.copy_(self.state[parameter]["momentum"])
                self.state[parameter]["momentum"] = momentum
        return banks

    def __setstate__(self, state: dict[str, Any]) -> None:
        super().__setstate__(state)
        if "_banks" not in self.__dict__:  # a copy, or unpickled
            self._banks = [self._create_state(group) for group in self.param_groups]

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """As torch's, but into the state there is: torch would put it elsewhere, in the parameters' dtype."""
        own_state = self.state
        super().load_state_dict({**state_dict, "state": {}})
        self.state = own_state
        saved = chain.from_iterable(group["params"] for group in state_dict["param_groups"])
        own = chain.from_iterable(group["params"] for group in self.param_groups)
        for number, parameter in zip(saved, own, strict=True):
            for name, value in state_dict["state"].get(number, {}).items():
                self.state[parameter][name].copy_(value)

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> float | None:  # type: ignore[override]
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        for group, banks in zip(self.param_groups, self._banks, strict=True):
            if group["algorithm"] == "adamw":
                self._adamw_step(group)
            for bank in banks:
                bank.step(group)
        return loss

    def _adamw_step(self, group: dict[str, Any]) -> None:
        parameters = [parameter for parameter in group["params"] if parameter.grad is not None]
        if not parameters:
            return
        states = [self.state[parameter] for parameter in parameters]
        # The fused kernel takes one dtype: parameters narrower than their state take the step as a wider copy.
        wide = [parameter.to(state_dtype(parameter)) for parameter in parameters]
        gradients = [p.grad.to(state_dtype(p)) for p in parameters if p.grad is not None]
        adamw(
            wide,
            gradients,
            [state["exp_avg"] for state in states],
            [state["exp_avg_sq"] for state in states],
            [],
            [state["step"] for state in states],
            fused=True,
            amsgrad=False,
            beta1=group["betas"][0],
            beta2=group["betas"][1],
            lr=group["lr"],
            weight_decay=group["weight_decay"],
            eps=group["eps"],
            maximize=False,
        )
        for parameter, result in zip(parameters, wide, strict=True):
            if result is not parameter:
                parameter.copy_(result)


def state_dtype(parameter: Tensor) -> torch.dtype:
    """Of what is kept for a parameter: float32, or wider where it is."""
    return torch.promote_types(parameter.dtype, torch.float32)


def _check(group: dict[str, Any]) -> None:
    if group["algorithm"] not in ("muon", "adamw"):
        raise ValueError(f"algorithm={group['algorithm']!r}: must be muon or adamw")
    named_polynomial(group["coefficients"], group["num_iterations"])
    shape_scale(group["lr_scale"], 1, 1)
    if group["momentum_form"] not in ("sum", "ema"):
        raise ValueError(f"momentum_form={group['momentum_form']!r}: must be sum or ema")
    for parameter in group["params"]:
        choose_backend(group["backend"], parameter.device)
        if group["algorithm"] == "muon" and parameter.ndim != 2:
            raise ValueError(
                f'a parameter of shape {tuple(parameter.shape)} is no matrix: give it a group with algorithm="adamw"'
            )
