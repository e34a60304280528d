"""Which leaves of a tree of parameters are hidden matrices, Muon's, by their names and dimensions."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax

from muloco_runner.muon_rule.head_names import head_name

_WEIGHT_NAMES = frozenset({"kernel", "w", "weight", "weights", "embedding"})
"""How libraries call the weight of a layer: what comes before it is the layer's name."""
Matrices = Any | Callable[[Any], Any] | None
"""A tree of bools, like the parameters or a prefix of them; a function from parameters to one; None: by name."""


def path_name(path: tuple[Any, ...]) -> str:
    """Return where a leaf stands, as "blocks.0.query.kernel"."""
    return str(jax.tree_util.keystr(path, simple=True, separator="."))


def hidden_matrices(params: Any) -> Any:
    """Return of each parameter whether it is taken for a hidden matrix: a tree of bools.

    It is where it has two dimensions and neither its layer's name is that of a head ("lm_head", "output" and the like,
    what ends in "head") nor either of the last two parts of its own that of an embedding (with "emb" in it, "wte" or
    "wpe"). The rule of `muloco_runner.optimizers.parameter_groups`, but for what names do not tell; look at what it
    says of your model: `jax.tree_util.tree_flatten_with_path(hidden_matrices(params))`.
    """
    wrappers = _wrappers([path_name(path) for path, _ in jax.tree_util.tree_flatten_with_path(params)[0]])
    return jax.tree_util.tree_map_with_path(
        lambda path, param: param.ndim == 2 and _is_hidden(path_name(path), wrappers), params
    )


def _wrappers(names: list[str]) -> set[str]:
    """Return what holds one thing, called "value": NNX has a parameter's array there. Beside a query and a key it is a
    layer's name."""
    children: dict[str, set[str]] = {}
    for parts in (name.split(".") for name in names):
        for number in range(1, len(parts)):
            children.setdefault(".".join(parts[:number]), set()).add(parts[number])
    return {name for name, found in children.items() if found == {"value"}}


def _is_hidden(name: str, wrappers: set[str]) -> bool:
    parts = name.split(".")
    layer = parts[:-1] if name.rpartition(".")[0] in wrappers else parts
    while len(layer) > 1 and layer[-1] in _WEIGHT_NAMES:
        layer = layer[:-1]
    is_embedding = any("emb" in part.lower() or part in ("wte", "wpe") for part in parts[-2:])
    return not is_embedding and head_name(".".join(layer)) is None


def marked_matrices(matrices: Matrices, params: Any) -> Any:
    """Return a tree of bools like `params` of what a user said; what cannot be meant is a `ValueError`."""
    if matrices is None:
        marks = hidden_matrices(params)
    else:
        said = matrices(params) if callable(matrices) else matrices
        marks = jax.tree.map(lambda mark, below: jax.tree.map(lambda _: mark, below), said, params)
    named = jax.tree_util.tree_flatten_with_path(params)[0]
    flat = jax.tree.leaves(marks)
    for mark, (path, param) in zip(flat, named, strict=True):
        if not isinstance(mark, bool):
            raise ValueError(f"matrices={mark!r} of {path_name(path)}: must be True or False")
        if mark and param.ndim < 2:
            raise ValueError(f"matrices: {path_name(path)} of shape {param.shape} is no matrix: give it False")
    if named and not any(flat):
        names = ", ".join(path_name(path) for path, _ in named)
        raise ValueError(f"no matrix for Muon among {names}: say in matrices which are, or take AdamW")
    return marks
