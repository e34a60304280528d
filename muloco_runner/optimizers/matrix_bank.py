"""Matrices of one shape in one place: their momentum is one tensor, allocated once, and each matrix's is a view of it.

Axes: B matrices of the bank, R rows (fan-out), C columns (fan-in).
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from muloco_runner.optimizers.orthogonalize import choose_backend, orthogonalize
from muloco_runner.optimizers.orthogonalize.polynomial import named_polynomial


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


class MatrixBank:
    """Same-shape, same-device parameters of one group, and their Muon step."""

    def __init__(self, parameters: list[Tensor], backend: str) -> None:
        self.parameters = parameters
        rows, columns = parameters[0].shape
        device = parameters[0].device
        self.backend = choose_backend(backend, device)
        dtype = torch.promote_types(parameters[0].dtype, torch.float32)
        self.momentum_BRC = torch.zeros(len(parameters), rows, columns, dtype=dtype, device=device)
        self.momenta = list(self.momentum_BRC.unbind())

    def step(self, group: dict[str, Any]) -> None:
        """One update of every matrix that has a gradient, with the hyper-parameters of `group`."""
        chosen = [index for index, parameter in enumerate(self.parameters) if parameter.grad is not None]
        if not chosen:
            return
        parameters = [self.parameters[index] for index in chosen]
        update_BRC = self._accumulate(chosen, group)
        orthogonal = orthogonalize(
            update_BRC, named_polynomial(group["coefficients"], group["num_iterations"]), self.backend
        )
        torch._foreach_mul_(parameters, 1 - group["lr"] * group["weight_decay"])
        scale = group["lr"] * shape_scale(group["lr_scale"], *update_BRC.shape[1:])
        torch._foreach_add_(parameters, [orthogonal[index] for index in chosen], alpha=-scale)

    def _accumulate(self, chosen: list[int], group: dict[str, Any]) -> Tensor:
        """Gradients into the momentum; what is to be orthogonalised, for the whole bank."""
        gradients = [gradient for index in chosen if (gradient := self.parameters[index].grad) is not None]
        momenta = [self.momenta[index] for index in chosen]
        mu, weight = group["momentum"], 1.0 if group["momentum_form"] == "sum" else 1.0 - group["momentum"]
        torch._foreach_mul_(momenta, mu)
        torch._foreach_add_(momenta, gradients, alpha=weight)
        if not group["nesterov"]:
            return self.momentum_BRC
        update_BRC = self.momentum_BRC * mu
        torch._foreach_add_([update_BRC[index] for index in chosen], gradients, alpha=weight)
        return update_BRC


def matrix_banks(group: dict[str, Any]) -> list[MatrixBank]:
    """The banks of a Muon group, in the order in which their first matrices appear."""
    alike: dict[tuple[Any, ...], list[Tensor]] = {}
    for parameter in group["params"]:
        alike.setdefault((parameter.shape, parameter.dtype, parameter.device), []).append(parameter)
    return [MatrixBank(parameters, group["backend"]) for parameters in alike.values()]
