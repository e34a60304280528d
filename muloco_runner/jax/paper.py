"""The study's optimizers (arXiv 2505.23725) with every setting of `muloco_runner.optimizers.Muon` and `MuLoCo1`.

The same gradients give what those give, to rounding. Defaults are `Muon.like("paper")`'s, of AdamW and DiLoCo those of
the trainer.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal

import jax
import optax

from muloco_runner.config.inner_optimizer import LrScale, MomentumForm
from muloco_runner.jax.hidden_matrices import Matrices, marked_matrices
from muloco_runner.jax.orthogonal_momentum import MatrixRule, Orientation, scale_by_orthogonal_momentum
from muloco_runner.jax.outer_steps import check_scalar, muloco_wrapper
from muloco_runner.jax.published import ScalarOrSchedule
from muloco_runner.jax.wide_state import with_wide_state
from muloco_runner.muon_rule.polynomial import polynomial_of
from muloco_runner.muon_rule.setting_checks import check_coefficients, check_count


def paper_adamw(
    learning_rate: ScalarOrSchedule = 0.004,
    *,
    betas: tuple[float, float] = (0.9, 0.99),
    eps: float = 1e-8,
    weight_decay: float = 0.01,
) -> optax.GradientTransformationExtraArgs:
    """Return AdamW as the study has it, its decay on every parameter: W <- (1 - lr weight_decay) W a step.

    learning_rate: a number, or a schedule of steps. Default 0.004, the trainer's.
    betas, eps: as of `paper_muon`.
    weight_decay: Default 0.01; the study's are 1e-4 to 0.01 by model size.
    """
    beta1, beta2 = betas
    _check_adamw(learning_rate, betas, eps, weight_decay)
    return with_wide_state(optax.adamw(learning_rate, beta1, beta2, eps, weight_decay=weight_decay))


def paper_muon(
    learning_rate: ScalarOrSchedule = 0.02,
    *,
    momentum: float = 0.9,
    momentum_form: MomentumForm = "sum",
    nesterov: bool | Literal["corrected"] = False,
    lr_scale: LrScale = "spectral",
    coefficients: str | tuple[float, float, float] = "muloco",
    num_iterations: int = 5,
    epsilon: float = 1e-8,
    norm_floor: float = 0.0,
    batched: bool = False,
    split: int | Mapping[str, int] = 1,
    betas: tuple[float, float] = (0.9, 0.99),
    eps: float = 1e-8,
    weight_decay: float = 0.01,
    matrices: Matrices = None,
    orientation: Orientation = "in_out",
) -> optax.GradientTransformationExtraArgs:
    """Return Muon on hidden matrices and AdamW, same learning rate and decay, on all other parameters.

    Settings are those of `muloco_runner.optimizers.Muon`, which says more of each. One that cannot be meant is a
    `ValueError`, at the latest in `init`.

    learning_rate: a number, or a schedule of steps. Default 0.02.
    momentum: factor on the momentum M from step to step, in [0, 1). Default 0.9.
    momentum_form: "sum", M <- momentum M + G, or "ema", M <- momentum M + (1 - momentum) G. Default "sum".
    nesterov: False, True or, of "ema", "corrected" for the start at zero as Optax does. Default False.
    lr_scale: "spectral", sqrt(fan-out / fan-in), "keller_jordan", sqrt(max(1, out / in)), "moonlight",
        0.2 sqrt(max(out, in)), or "none". Default "spectral".
    coefficients: "muloco", "keller_jordan", "polar_express", or a triple for every step. Default "muloco".
    num_iterations: Newton-Schulz steps: 5 with "muloco", at most 5 with "polar_express". Default 5.
    epsilon: term added to the norm that a matrix is divided by. Default 1e-8.
    norm_floor: the least norm that a matrix is divided by. Default 0.
    batched: whether a parameter of more than two dimensions is a batch of matrices, its last two. Default False: it is
        one matrix, of its fan-out axis and all others.
    split: into how many equal blocks of fan-out a matrix is cut before it is orthogonalised, as fused query, key and
        value projections must be; or numbers by a part of the parameters' names, `{"qkv": 3}`. Default 1: not cut.
    betas: AdamW's decay rates of both moments, each in [0, 1). Default (0.9, 0.99).
    eps: AdamW's term in the denominator. Default 1e-8.
    weight_decay: of all parameters: W <- (1 - lr weight_decay) W a step, lr without `lr_scale`. Default 0.01; the
        study's are 1e-4 to 0.01 by model size.
    matrices: which parameters are Muon's: a tree of bools like the parameters (or a prefix of it), or a function from
        them to one. Default None: by `hidden_matrices`; where it finds none that is a `ValueError`.
    orientation: "in_out", matrices (fan-in, fan-out), x @ W, as of Flax, Haiku and Optax: the last axis is the fan-out;
        "out_in", (fan-out, fan-in), W @ x, as of Equinox and torch: the first is, or the last but one where `batched`.
        Default "in_out". Square ones come out the same either way; the scale and the blocks of others do not.
    """
    check_coefficients(coefficients)
    check_count("num_iterations", num_iterations)
    _check_adamw(learning_rate, betas, eps, weight_decay)
    check_scalar("epsilon", epsilon)
    check_scalar("norm_floor", norm_floor)
    settings = {
        "coefficients": coefficients,
        "num_iterations": num_iterations,
        "epsilon": epsilon,
        "norm_floor": norm_floor,
    }
    rule = MatrixRule(momentum, momentum_form, nesterov, lr_scale, polynomial_of(settings), batched, split, orientation)
    of_matrices = optax.chain(
        scale_by_orthogonal_momentum(rule),
        optax.add_decayed_weights(weight_decay),
        optax.scale_by_learning_rate(learning_rate),
    )
    of_others = paper_adamw(learning_rate, betas=betas, eps=eps, weight_decay=weight_decay)

    def labels(params: Any) -> Any:
        return jax.tree.map(lambda is_matrix: "muon" if is_matrix else "adamw", marked_matrices(matrices, params))

    return with_wide_state(optax.partition({"muon": of_matrices, "adamw": of_others}, labels))


def paper_muloco(
    learning_rate: ScalarOrSchedule = 0.02,
    outer_lr: float = 0.7,
    outer_momentum: float = 0.6,
    sync_interval: int = 30,
    *,
    axis_name: str | tuple[str, ...] | None = None,
    **muon: Any,
) -> optax.GradientTransformationExtraArgs:
    """Return MuLoCo: `muloco_wrapper` around `paper_muon`, whose settings `muon` are.

    The outer step's defaults are the study's optima with one worker; with 8 it has 0.9 and 0.8, with 16 1.0 and 0.9.
    """
    return muloco_wrapper(
        paper_muon(learning_rate, **muon), outer_lr, outer_momentum, sync_interval, axis_name=axis_name
    )


def paper_diloco(
    learning_rate: ScalarOrSchedule = 0.004,
    outer_lr: float = 0.7,
    outer_momentum: float = 0.8,
    sync_interval: int = 30,
    *,
    axis_name: str | tuple[str, ...] | None = None,
    **adamw: Any,
) -> optax.GradientTransformationExtraArgs:
    """Return DiLoCo: `muloco_wrapper` around `paper_adamw`, whose settings `adamw` are.

    The outer step's defaults are the study's with one worker; with 8 it has 0.9 and 0.9, with 16 1.0 and 0.9.
    """
    return muloco_wrapper(
        paper_adamw(learning_rate, **adamw), outer_lr, outer_momentum, sync_interval, axis_name=axis_name
    )


def _check_adamw(learning_rate: ScalarOrSchedule, betas: tuple[float, float], eps: float, weight_decay: float) -> None:
    if not callable(learning_rate):
        check_scalar("learning_rate", learning_rate)
    for beta in betas:
        check_scalar("betas", beta, 1)
    check_scalar("eps", eps)
    check_scalar("weight_decay", weight_decay)
