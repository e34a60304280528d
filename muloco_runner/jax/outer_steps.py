"""Any Optax optimizer as the inner one of MuLoCo or DiLoCo: outer steps with Nesterov momentum, of one worker or K."""

from __future__ import annotations

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from muloco_runner.jax.wide_state import with_wide_state
from muloco_runner.muon_rule.setting_checks import check_count, check_number


class MuLoCoState(NamedTuple):
    """State of `muloco_wrapper`; trees like the parameters are float32 where these are narrower."""

    inner_state: Any
    """The inner optimizer's."""
    inner_count: jax.Array
    """Inner steps since the last outer step, int32, ()."""
    param_snapshot: Any
    """Parameters after the last outer step: the anchor."""
    outer_momentum_buffer: Any
    """u, like the parameters."""


def check_scalar(name: str, value: Any, end: float = float("inf")) -> None:
    """Check a setting that is a number of Python's: arrays may be known at run time alone (`inject_hyperparams`)."""
    if not isinstance(value, jax.Array):
        check_number(name, value, end)


def muloco_wrapper(
    inner_optimizer: optax.GradientTransformation,
    outer_lr: float = 0.7,
    outer_momentum: float = 0.6,
    sync_interval: int = 30,
    *,
    axis_name: str | tuple[str, ...] | None = None,
) -> optax.GradientTransformationExtraArgs:
    """Return `inner_optimizer` with an outer step after every `sync_interval` of its steps (arXiv 2505.23725).

    delta = snapshot - parameters after the inner step, its mean over workers where there are several;
    u <- outer_momentum u + outer_lr delta; parameters <- snapshot - outer_momentum u - outer_lr delta, which become the
    next snapshot. In between an update is the inner optimizer's own. Needs `update(gradients, state, params)`; its
    state is `MuLoCoState`. A setting out of its range is a `ValueError`.

    inner_optimizer: any optimizer of Optax, its learning rate and decay included. Its state stays the worker's own.
    outer_lr: learning rate of the outer steps, constant. Default 0.7.
    outer_momentum: factor on u from one outer step to the next, in [0, 1). Default 0.6.
    sync_interval: inner steps from one outer step to the next (H). Default 30.
    axis_name: axis of `jax.shard_map`, `jax.vmap` or `jax.pmap` along which K workers lie, each with parameters,
        gradients and state of its own; they communicate at outer steps alone. Start all from the same parameters.
        Default None: one worker.
    """
    check_scalar("outer_lr", outer_lr)
    check_scalar("outer_momentum", outer_momentum, 1)
    check_count("sync_interval", sync_interval)
    inner = optax.with_extra_args_support(inner_optimizer)

    def init(params: Any) -> MuLoCoState:
        return MuLoCoState(
            inner_state=inner.init(params),
            inner_count=jnp.zeros([], jnp.int32),
            # A copy: a step may be given both parameters and state to overwrite (donate_argnums).
            param_snapshot=jax.tree.map(lambda param: jnp.array(param, copy=True), params),
            outer_momentum_buffer=jax.tree.map(jnp.zeros_like, params),
        )

    def outer_step(params: Any, updates: Any, snapshot: Any, momentum: Any) -> tuple[Any, Any, Any]:
        delta = jax.tree.map(lambda anchor, param, update: anchor - (param + update), snapshot, params, updates)
        if axis_name is not None:
            delta = jax.lax.pmean(delta, axis_name)
        momentum = jax.tree.map(lambda u, d: outer_momentum * u + outer_lr * d, momentum, delta)
        snapshot = jax.tree.map(
            lambda anchor, u, d: anchor - outer_momentum * u - outer_lr * d, snapshot, momentum, delta
        )
        updates = jax.tree.map(lambda new, old, update: (new - old).astype(update.dtype), snapshot, params, updates)
        return updates, snapshot, momentum

    def no_outer_step(params: Any, updates: Any, snapshot: Any, momentum: Any) -> tuple[Any, Any, Any]:
        return updates, snapshot, momentum

    def update(gradients: Any, state: MuLoCoState, params: Any, **more: Any) -> tuple[Any, MuLoCoState]:
        updates, inner_state = inner.update(gradients, state.inner_state, params, **more)
        count = state.inner_count + 1
        is_outer = count >= sync_interval
        updates, snapshot, momentum = jax.lax.cond(
            is_outer, outer_step, no_outer_step, params, updates, state.param_snapshot, state.outer_momentum_buffer
        )
        return updates, MuLoCoState(inner_state, jnp.where(is_outer, 0, count), snapshot, momentum)

    return with_wide_state(optax.GradientTransformationExtraArgs(init, update))
