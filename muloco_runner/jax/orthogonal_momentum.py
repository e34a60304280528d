"""Muon's part for matrices as a gradient transformation: momentum, orthogonalised and scaled by shape.

The rule is that of `optimizers.update_rule`, the polynomial that of `optimizers.orthogonalize.reference`.
Axes: B matrices, M the smaller side, N the larger.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple, assert_never, get_args

import jax
import jax.numpy as jnp
import optax

from muloco_runner.config.inner_optimizer import LrScale, MomentumForm
from muloco_runner.jax.hidden_matrices import path_name
from muloco_runner.jax.outer_steps import check_scalar
from muloco_runner.muon_rule.conventions import corrected_look_ahead, gradient_weight, shape_scale
from muloco_runner.muon_rule.matrix_view import matrix_view, split_of
from muloco_runner.muon_rule.polynomial import Polynomial
from muloco_runner.muon_rule.setting_checks import check_choice, check_count, check_nesterov

Orientation = Literal["in_out", "out_in"]


@dataclass(frozen=True)
class MatrixRule:
    """How Muon treats its matrices: settings of `paper_muon`."""

    momentum: float
    momentum_form: MomentumForm
    nesterov: bool | Literal["corrected"]
    lr_scale: LrScale
    polynomial: Polynomial
    batched: bool
    split: int | Mapping[str, int]
    orientation: Orientation

    def __post_init__(self) -> None:
        check_scalar("momentum", self.momentum, 1)
        check_choice("momentum_form", self.momentum_form, get_args(MomentumForm))
        check_nesterov(self.nesterov, self.momentum_form)
        check_choice("lr_scale", self.lr_scale, get_args(LrScale))
        check_choice("orientation", self.orientation, get_args(Orientation))
        for number in self.split.values() if isinstance(self.split, Mapping) else (self.split,):
            check_count("split", number)


class OrthogonalMomentumState(NamedTuple):
    """State of `scale_by_orthogonal_momentum`."""

    count: jax.Array
    """Steps taken, int32, ()."""
    momentum: Any


def scale_by_orthogonal_momentum(rule: MatrixRule) -> optax.GradientTransformation:
    """Return the transformation of gradients to orthogonalised momentum times the scale of each matrix's shape."""

    def init(params: Any) -> OrthogonalMomentumState:
        leaves = jax.tree_util.tree_flatten_with_path(params)[0]
        names = [path_name(path) for path, _ in leaves]
        for part in rule.split if isinstance(rule.split, Mapping) else ():
            if not any(part in name.split(".") for name in names):
                raise ValueError(f"split={rule.split}: no matrix of Muon's has {part!r} in its name")
        for name, (_, param) in zip(names, leaves, strict=True):
            rows_first = jax.eval_shape(lambda x: _rows_first(x, rule), param)
            matrix_view(rows_first.shape, split_of(rule.split, name), rule.batched)
        return OrthogonalMomentumState(jnp.zeros([], jnp.int32), jax.tree.map(jnp.zeros_like, params))

    def update(gradients: Any, state: OrthogonalMomentumState, params: Any = None) -> tuple[Any, Any]:
        count, weight = state.count + 1, gradient_weight(rule.momentum_form, rule.momentum)
        momentum = jax.tree.map(lambda m, g: rule.momentum * m + weight * g, state.momentum, gradients)
        ahead = jax.tree.map(lambda m, g: _look_ahead(m, g, weight, count, rule), momentum, gradients)
        updates = jax.tree_util.tree_map_with_path(
            lambda path, x: orthogonal_update(x, rule, split_of(rule.split, path_name(path))), ahead
        )
        return updates, OrthogonalMomentumState(count, momentum)

    return optax.GradientTransformation(init, update)


def _look_ahead(
    momentum: jax.Array, gradient: jax.Array, weight: float, count: jax.Array, rule: MatrixRule
) -> jax.Array:
    # A number that is one of them, or numpy's, is neither of them to a pattern.
    match rule.nesterov if rule.nesterov == "corrected" else bool(rule.nesterov):
        case "corrected":
            share = corrected_look_ahead(rule.momentum, count)
            return share * momentum + (1 - share) * gradient
        case True:
            return weight * gradient + rule.momentum * momentum
        case False:
            return momentum
        case _:
            assert_never(rule.nesterov)


def orthogonal_update(x: jax.Array, rule: MatrixRule, split: int) -> jax.Array:
    """Return a parameter's direction, like it, from what is to be orthogonalised."""
    rows_first = _rows_first(x, rule)
    view = matrix_view(rows_first.shape, split, rule.batched)
    update = orthogonalize(rows_first.reshape(view.blocks, view.rows, view.columns), rule.polynomial)
    update = update.reshape(rows_first.shape) * shape_scale(rule.lr_scale, view.rows, view.columns)
    if rule.orientation == "in_out":
        update = jnp.swapaxes(update, -1, -2) if rule.batched else update.T
    return update.reshape(x.shape)


def _rows_first(x: jax.Array, rule: MatrixRule) -> jax.Array:
    """Return a parameter with its fan-out as rows: (out, in), or (..., out, in) where `batched`."""
    match rule.orientation:
        case "out_in":
            return x
        case "in_out":
            return jnp.swapaxes(x, -1, -2) if rule.batched else x.reshape(-1, x.shape[-1]).T
        case _:
            assert_never(rule.orientation)


def orthogonalize(x_BMN: jax.Array, polynomial: Polynomial) -> jax.Array:
    """Singular values of each matrix to near 1, singular vectors kept, in x's dtype; any shape (B, rows, columns).

    Products are of the precision that `jax.default_matmul_precision` says.
    """
    tall = x_BMN.shape[-2] > x_BMN.shape[-1]
    x_BMN = _normalise(x_BMN.mT if tall else x_BMN, polynomial)
    for a, b, c in polynomial.steps:
        gram_BMM = x_BMN @ x_BMN.mT
        x_BMN = a * x_BMN + (b * gram_BMM + c * gram_BMM @ gram_BMM) @ x_BMN
    return x_BMN.mT if tall else x_BMN


def _normalise(x_BMN: jax.Array, polynomial: Polynomial) -> jax.Array:
    """X over its Frobenius norm (with margin, epsilon and floor), whatever the scale of X.

    Squares are of X over its largest value: in float32 they overflow above 1e19 and vanish below 1e-22.
    """
    peak_B11 = jnp.abs(x_BMN).max(axis=(-2, -1), keepdims=True)
    peak_B11 = jnp.where(peak_B11 < jnp.finfo(x_BMN.dtype).tiny, 1, peak_B11)
    x_BMN = x_BMN / peak_B11
    norm_B11 = jnp.sqrt(jnp.square(x_BMN).sum(axis=(-2, -1), keepdims=True))
    divisor_B11 = norm_B11 * polynomial.norm_margin + polynomial.epsilon / peak_B11
    return x_BMN / jnp.maximum(divisor_B11, polynomial.norm_floor / peak_B11)
