"""Gradient transformations whose state is float32 where parameters are narrower, as bfloat16 ones are."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import optax


def with_wide_state(inner: optax.GradientTransformation) -> optax.GradientTransformationExtraArgs:
    """Return a transformation that shows `inner` parameters and gradients in float32 where parameters are narrower.

    So its state is float32, its arithmetic too; updates have the parameters' dtypes, and lead to the new parameter
    rounded once. Where all are float32 or wider it is `inner`.
    """
    inner = optax.with_extra_args_support(inner)

    def init(params: Any) -> Any:
        return inner.init(jax.tree.map(_wide, params))

    def update(gradients: Any, state: Any, params: Any = None, **more: Any) -> tuple[Any, Any]:
        if params is None:
            raise ValueError("the parameters are needed: call update(gradients, state, params)")
        wide = jax.tree.map(_wide, params)
        gradients = jax.tree.map(lambda gradient, param: gradient.astype(param.dtype), gradients, wide)
        updates, state = inner.update(gradients, state, wide, **more)
        return jax.tree.map(_narrow, updates, params), state

    return optax.GradientTransformationExtraArgs(init, update)


def _wide(param: jax.Array) -> jax.Array:
    is_narrow = jnp.issubdtype(param.dtype, jnp.floating) and param.dtype.itemsize < 4
    return param.astype(jnp.float32) if is_narrow else param


def _narrow(update: jax.Array, param: jax.Array) -> jax.Array:
    if update.dtype == param.dtype:
        return update
    # An update rounded by itself, then added, would be rounded twice.
    return (param.astype(update.dtype) + update).astype(param.dtype) - param
