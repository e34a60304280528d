"""Other implementations' update rules, written down as plainly as can be, in float32; one function a step.

muloco-1, nanochat's Muon and DistMuon, Keller Jordan's. A state is a dictionary, empty before the first step.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

KELLER_JORDAN = [(3.4445, -4.7750, 2.0315)] * 5
MULOCO = [
    (4.0848, -6.8946, 2.9270),
    (3.9505, -6.3029, 2.6377),
    (3.7418, -5.5913, 2.3037),
    (2.8769, -3.1427, 1.2046),
    (2.8366, -3.0525, 1.2012),
]
State = dict[str, Any]


def newton_schulz(matrix: Tensor, triples: list[tuple[float, float, float]], epsilon: float) -> Tensor:
    x = matrix.T if matrix.shape[0] > matrix.shape[1] else matrix
    x = x / (x.norm() + epsilon)
    for a, b, c in triples:
        product = x @ x.T
        x = a * x + (b * product + c * product @ product) @ x
    return x.T if matrix.shape[0] > matrix.shape[1] else x


def nanochat(weight: Tensor, gradient: Tensor, state: State, lr: float = 0.02, momentum: float = 0.95) -> None:
    """Also Keller Jordan's, who flattens the filters of a convolution."""
    buffer = state.setdefault("momentum_buffer", torch.zeros_like(weight))
    buffer.lerp_(gradient, 1 - momentum)
    ahead = gradient.lerp(buffer, momentum).flatten(1)
    rows, columns = ahead.shape
    update = newton_schulz(ahead, KELLER_JORDAN, 1e-7).view_as(weight)
    weight.sub_(lr * max(1, rows / columns) ** 0.5 * update)


def dist_muon(weight: Tensor, gradients: list[Tensor], state: State) -> None:
    """nanochat's DistMuon on one parameter: the mean of the ranks' gradients, then its Muon."""
    nanochat(weight, torch.stack(gradients).mean(dim=0), state)


def muloco1_muon(
    weight: Tensor, gradient: Tensor, state: State, lr: float = 0.02, mu: float = 0.95, decay: float = 0.01
) -> None:
    buffer = state.setdefault("momentum", torch.zeros_like(weight))
    buffer.mul_(mu).add_(gradient)
    rows, columns = weight.shape[-2:]
    batch = [newton_schulz(matrix, MULOCO, 1e-8) for matrix in buffer.reshape(-1, rows, columns)]
    weight.mul_(1 - lr * decay)
    weight.sub_(lr * (rows / columns) ** 0.5 * torch.stack(batch).view_as(weight))


def muloco1_adamw(
    weight: Tensor, gradient: Tensor, state: State, lr: float = 0.02, betas: tuple[float, float] = (0.9, 0.95)
) -> None:
    step = state["step"] = state.get("step", 0) + 1
    m, v = (state.setdefault(name, torch.zeros_like(weight)) for name in ("m", "v"))
    m.lerp_(gradient, 1 - betas[0])
    v.lerp_(gradient.square(), 1 - betas[1])
    weight.mul_(1 - lr * 0.01)
    weight.sub_(lr * (m / (1 - betas[0] ** step)) / ((v / (1 - betas[1] ** step)).sqrt() + 1e-8))


def muloco1_outer(weight: Tensor, state: State, step: int, lr: float = 0.7, momentum: float = 0.6) -> None:
    """After inner step `step`, from 1; `state["anchor"]` is the parameter at the start."""
    if step % 30:
        return
    u = state.setdefault("u", torch.zeros_like(weight))
    delta = state["anchor"] - weight
    u.mul_(momentum).add_(delta, alpha=lr)
    weight.copy_(state["anchor"] - momentum * u - lr * delta)
    state["anchor"] = weight.clone()
