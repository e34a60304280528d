"""MuLoCo and DiLoCo around Optax's own Muon and AdamW, with the signatures of muloco-1, the authors' package.

Optax's defaults differ from the study's: one Newton-Schulz triple, bias-corrected Nesterov momentum of 0.95, in AdamW
too, Muon on every matrix (embedding and head as well), no weight decay. For the study's, see `paper`.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import optax

from muloco_runner.jax.outer_steps import muloco_wrapper

ScalarOrSchedule = float | Callable[[Any], Any]


def muloco(
    learning_rate: ScalarOrSchedule,
    outer_lr: float = 0.7,
    outer_momentum: float = 0.6,
    sync_interval: int = 30,
    ns_coeffs: tuple[float, float, float] | tuple[tuple[float, float, float], ...] | str = (3.4445, -4.7750, 2.0315),
    ns_steps: int = 5,
    beta: float = 0.95,
    eps: float = 1e-8,
    weight_decay: float = 0.0,
    weight_decay_mask: Any = None,
    mu_dtype: Any = None,
    *,
    nesterov: bool = True,
    adaptive: bool = False,
    adam_b1: float = 0.9,
    adam_b2: float = 0.999,
    adam_eps_root: float = 0.0,
    adam_weight_decay: float = 0.0,
    muon_weight_dimension_numbers: Any = None,
    axis_name: str | tuple[str, ...] | None = None,
) -> optax.GradientTransformationExtraArgs:
    """Return `muloco_wrapper` around `optax.contrib.muon`, to which all arguments but the outer step's belong.

    Optax takes matrices as (in, out). Parameters of other than two dimensions go to Adam, unless
    `muon_weight_dimension_numbers` says otherwise, as it can for (out, in), batches and convolutions.
    `ns_coeffs="dion"` are the study's five triples.

    learning_rate: of both Muon and Adam; a number or a schedule of inner steps.
    outer_lr, outer_momentum, sync_interval, axis_name: as of `muloco_wrapper`.
    """
    inner = optax.contrib.muon(
        learning_rate=learning_rate,
        ns_coeffs=ns_coeffs,
        ns_steps=ns_steps,
        beta=beta,
        eps=eps,
        weight_decay=weight_decay,
        weight_decay_mask=weight_decay_mask,
        mu_dtype=mu_dtype,
        nesterov=nesterov,
        adaptive=adaptive,
        adam_b1=adam_b1,
        adam_b2=adam_b2,
        adam_eps_root=adam_eps_root,
        adam_weight_decay=adam_weight_decay,
        muon_weight_dimension_numbers=muon_weight_dimension_numbers,
    )
    return muloco_wrapper(inner, outer_lr, outer_momentum, sync_interval, axis_name=axis_name)


def diloco(
    learning_rate: ScalarOrSchedule,
    outer_lr: float = 0.7,
    outer_momentum: float = 0.9,
    sync_interval: int = 30,
    b1: float = 0.9,
    b2: float = 0.999,
    eps: float = 1e-8,
    eps_root: float = 0.0,
    weight_decay: float = 0.0,
    mu_dtype: Any = None,
    *,
    nesterov: bool = True,
    axis_name: str | tuple[str, ...] | None = None,
) -> optax.GradientTransformationExtraArgs:
    """Return `muloco_wrapper` around `optax.adamw`, to which all arguments but the outer step's belong.

    learning_rate: a number or a schedule of inner steps.
    outer_lr, outer_momentum, sync_interval, axis_name: as of `muloco_wrapper`.
    """
    inner = optax.adamw(
        learning_rate=learning_rate,
        b1=b1,
        b2=b2,
        eps=eps,
        eps_root=eps_root,
        weight_decay=weight_decay,
        mu_dtype=mu_dtype,
        nesterov=nesterov,
    )
    return muloco_wrapper(inner, outer_lr, outer_momentum, sync_interval, axis_name=axis_name)
