"""The numbers of Muon's step that follow from shapes, settings and the step count (`optimizers.update_rule`)."""

from __future__ import annotations

from typing import Any, assert_never

from muloco_runner.config.inner_optimizer import LrScale, MomentumForm


def shape_scale(convention: LrScale, rows: int, columns: int) -> float:
    """Return the factor on the learning rate of a matrix of shape (rows, columns), that is (fan-out, fan-in)."""
    match convention:
        case "spectral":  # arXiv 2505.23725
            return float((rows / columns) ** 0.5)
        case "keller_jordan":  # kellerjordan.github.io/posts/muon
            return float(max(1.0, rows / columns) ** 0.5)
        case "moonlight":  # arXiv 2502.16982
            return float(0.2 * max(rows, columns) ** 0.5)
        case "none":
            return 1.0
        case _:
            assert_never(convention)


def gradient_weight(form: MomentumForm, momentum: float) -> float:
    """Return the factor on the gradient as it enters the momentum."""
    match form:
        case "sum":
            return 1.0
        case "ema":
            return 1.0 - momentum
        case _:
            assert_never(form)


def corrected_look_ahead(momentum: float, step: Any) -> Any:
    """Return the share of M, the rest being G's, in what Nesterov with bias correction mixes at step t = 1, 2, ...:
    momentum M / (1 - momentum^(t+1)) + (1 - momentum) G / (1 - momentum^t), but for a factor, which is nothing to what
    is orthogonalised.
    """
    ahead = momentum / (1 - momentum ** (step + 1))
    return ahead / (ahead + (1 - momentum) / (1 - momentum**step))
