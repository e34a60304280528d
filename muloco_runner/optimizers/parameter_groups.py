"""Which algorithm updates which parameter: Muon the matrices of attention and feed-forward, AdamW all others."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from torch import Tensor, nn

from muloco_runner.config import ConfigError
from muloco_runner.model.target_model import TargetModel
from muloco_runner.muon_rule.head_names import head_name
from muloco_runner.muon_rule.matrix_view import split_of


def parameter_groups(
    model: nn.Module, verbose: bool = False, split: Mapping[str, int] | None = None
) -> list[dict[str, Any]]:
    """Return up to two groups for `Muon` or `MuLoCo1`: hidden matrices ("muon") and everything else ("adamw").

    A hidden matrix is the weight of an `nn.Linear` that is no head. A head is named like one ("lm_head", "heads.0" or
    any name that ends in "head"), shares an embedding's weight, or has as many outputs as an embedding has rows, or is
    the last linear layer, where no layer takes as many inputs. Embeddings, gains, biases and convolutions go to AdamW.
    Muon takes the weight of a layer as one matrix: give query, key and value layers of their own, or name fused ones in
    `split`. One that no hidden matrix has in its name is a `ValueError`.

    verbose: whether to print `describe_groups`. Default False.
    split: numbers of equal blocks of rows by a part of the parameters' names, as `{"qkv": 3}`. Default None: none.
    """
    reasons = _reasons(model)
    trained = [(name, parameter) for name, parameter in model.named_parameters() if parameter.requires_grad]
    hidden = [(name, parameter) for name, parameter in trained if name not in reasons]
    by_split: dict[int, list[Tensor]] = {}
    for name, parameter in hidden:
        by_split.setdefault(split_of(split or {}, name), []).append(parameter)
    for part in split or {}:
        if not any(part in name.split(".") for name, _ in hidden):
            raise ValueError(f"split={split}: no hidden matrix has {part!r} in its name")
    groups: list[dict[str, Any]] = [
        {"params": parameters, "algorithm": "muon", **({} if number == 1 else {"split": number})}
        for number, parameters in by_split.items()
    ]
    groups.append({"params": [p for name, p in trained if name in reasons], "algorithm": "adamw"})
    if verbose:
        print(describe_groups(model))
    return [group for group in groups if group["params"]]


def describe_groups(model: nn.Module) -> str:
    """Return a table of what `parameter_groups` puts where and why: a line for each kind of parameter, whose numbers in
    names are written `*`."""
    reasons = _reasons(model)
    kinds: dict[tuple[str, str, str, str], list[int]] = {}
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            reason = reasons.get(name)
            algorithm, why = ("Muon", "hidden matrix") if reason is None else ("AdamW", reason)
            shape = " x ".join(map(str, parameter.shape))
            kinds.setdefault((algorithm, re.sub(r"\d+", "*", name), shape, why), []).append(parameter.numel())
    rows = [
        (algorithm, name, f"{len(sizes)} of {shape}", f"{sum(sizes):,}", why)
        for (algorithm, name, shape, why), sizes in sorted(kinds.items(), key=lambda kind: kind[0][0], reverse=True)
    ]
    rows = [("optimizer", "parameter", "shape", "values", "why"), *rows]
    widths = [max(len(row[column]) for row in rows) for column in range(5)]
    return "\n".join("  ".join(map(str.ljust, row, widths)).rstrip() for row in rows)


def parameter_kinds(model: nn.Module) -> dict[str, str]:
    """Return of each parameter, by name, whether it is `hidden`, a hidden matrix as in `parameter_groups`, `embedding`,
    `head` or `other`."""
    reasons = _reasons(model)
    kinds = {}
    for name, _ in model.named_parameters():
        kind = reasons[name].partition(":")[0] if name in reasons else "hidden"
        kinds[name] = kind if kind in ("hidden", "embedding", "head") else "other"
    return kinds


def _reasons(model: nn.Module) -> dict[str, str]:
    """Return why a parameter is no hidden matrix, by name; hidden matrices are not among them."""
    reasons = _by_rule(model)
    if isinstance(model, TargetModel):
        # What its user says comes first.
        for name, parameter in model.named_parameters():
            match type(model).muloco_config.kind_of(name):
                case None:
                    pass
                case "hidden" if parameter.ndim == 2:
                    reasons.pop(name, None)
                case "hidden":
                    raise ConfigError(f"model.matrices: {name} of shape {tuple(parameter.shape)} is no matrix")
                case kind:
                    reasons[name] = f"{kind}: by model.matrices"
    return reasons


def _by_rule(model: nn.Module) -> dict[str, str]:
    modules = dict(model.named_modules())
    linears = {name: module for name, module in modules.items() if isinstance(module, nn.Linear)}
    embeddings = [module for module in modules.values() if isinstance(module, nn.Embedding)]
    embedded = {id(embedding.weight) for embedding in embeddings}
    # One weight may be that of several layers: a head by any of them.
    heads: dict[int, str] = {}
    for name, linear in linears.items():
        if (reason := _head_reason(name, linear, linears, embeddings, modules)) is not None:
            heads.setdefault(id(linear.weight), reason)
    weights = {id(linear.weight) for linear in linears.values()}
    return {
        name: reason
        for name, parameter in model.named_parameters()
        if (reason := _reason(parameter, embedded, heads, weights)) is not None
    }


def _reason(parameter: Tensor, embedded: set[int], heads: Mapping[int, str], weights: set[int]) -> str | None:
    if id(parameter) in embedded:
        return "embedding"
    if id(parameter) in heads:
        return heads[id(parameter)]
    if id(parameter) in weights:
        return None
    return "vector" if parameter.ndim < 2 else "no weight of a linear layer"


def _head_reason(
    name: str,
    linear: nn.Linear,
    linears: Mapping[str, nn.Linear],
    embeddings: list[nn.Embedding],
    modules: Mapping[str, nn.Module],
) -> str | None:
    if (own_name := head_name(name)) is not None:
        return f"head: named {own_name}"
    is_last = linear is list(linears.values())[-1]
    taken = {other.in_features for other in linears.values() if other is not linear}
    taken |= {width for module in modules.values() for width in _widths(module)}
    if linear.out_features in {embedding.num_embeddings for embedding in embeddings}:
        if is_last or linear.out_features not in taken:
            return "head: as wide as a vocabulary"
    elif is_last and (taken or embeddings) and linear.out_features not in taken:
        return "head: last, and no layer takes its outputs"
    return None


def _widths(module: nn.Module) -> list[int]:
    """Return how many features a layer that is no linear one takes."""
    if isinstance(module, nn.LayerNorm | nn.RMSNorm):
        return list(module.normalized_shape[-1:])
    if isinstance(module, nn.BatchNorm1d | nn.BatchNorm2d | nn.BatchNorm3d):
        return [module.num_features]
    if isinstance(module, nn.Conv1d | nn.Conv2d | nn.Conv3d):
        return [module.in_channels]
    return []
