"""The study's transformer as Hugging Face's `Gemma3ForCausalLM`, which it is exactly, and back.

There the activation is silu, every layer attends to everything before it, the scale of scores comes from the head
width, a norm's weight is our gain minus one, and the embedding is multiplied by sqrt(D), so that its weight is ours
divided by that. What this rounds away (a unit in the last place, here and there) is kept beside the weights, so that
a folder that we wrote comes back to the bit.

    config.json, model.safetensors (or model-00001-of-0000N.safetensors and an index)
    muloco/exact.safetensors    embedding_ulps: what is added to the embedding's bits; gains that came back inexact

Axes: V vocabulary, D model width.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from muloco_runner.config import ConfigError

INDEX = "model.safetensors.index.json"
WEIGHTS = "model.safetensors"
EXACT = "muloco/exact.safetensors"
_EMBEDDING = "embedding.weight"
_ULPS = "embedding_ulps"
_TOP = {
    "embedding.weight": "model.embed_tokens.weight",
    "norm.gain": "model.norm.weight",
    "head.weight": "lm_head.weight",
}
_IN_BLOCK = {
    "attention.wq.weight": "self_attn.q_proj.weight",
    "attention.wk.weight": "self_attn.k_proj.weight",
    "attention.wv.weight": "self_attn.v_proj.weight",
    "attention.wo.weight": "self_attn.o_proj.weight",
    "attention.q_norm.gain": "self_attn.q_norm.weight",
    "attention.k_norm.gain": "self_attn.k_norm.weight",
    "feed_forward.w1.weight": "mlp.gate_proj.weight",
    "feed_forward.w2.weight": "mlp.down_proj.weight",
    "feed_forward.w3.weight": "mlp.up_proj.weight",
    "attention_pre_norm.gain": "input_layernorm.weight",
    "attention_post_norm.gain": "post_attention_layernorm.weight",
    "feed_forward_pre_norm.gain": "pre_feedforward_layernorm.weight",
    "feed_forward_post_norm.gain": "post_feedforward_layernorm.weight",
}
"""Names of our parameters -> theirs, below model.layers.N."""


def foreign_name(name: str) -> str:
    """The name there of one of our parameters."""
    if name in _TOP:
        return _TOP[name]
    _, layer, rest = name.split(".", 2)
    return f"model.layers.{layer}.{_IN_BLOCK[rest]}"


def foreign_weight(name: str, weight: Tensor) -> Tensor:
    """One of our parameters as its counterpart there, in float32."""
    if name == _EMBEDDING:
        return weight / math.sqrt(weight.shape[1])
    return weight - 1 if name.endswith(".gain") else weight


def own_weight(name: str, weight: Tensor) -> Tensor:
    """The inverse, but for rounding."""
    weight = weight.float()
    if name == _EMBEDDING:
        return weight * math.sqrt(weight.shape[1])
    return weight + 1 if name.endswith(".gain") else weight


def exact_differences(weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """What `own_weight` of `foreign_weight` does not bring back: the embedding's in units in the last place (int8, V x
    D), gains as they are; empty where all comes back."""
    found = {}
    for name, weight in weights.items():
        back = own_weight(name, foreign_weight(name, weight))
        if torch.equal(back, weight):
            continue
        found[_ULPS if name == _EMBEDDING else name] = (
            (weight.view(torch.int32) - back.view(torch.int32)).to(torch.int8) if name == _EMBEDDING else weight
        )
    return found


def parameter_of(difference: str) -> str:
    """The parameter to which a name in `exact_differences` belongs."""
    return _EMBEDDING if difference == _ULPS else difference


def digest_of(weight: Tensor) -> str:
    """SHA-256 of a weight's bytes as they stand in a file."""
    return hashlib.sha256(weight.contiguous().view(torch.uint8).numpy().tobytes()).hexdigest()


def weight_files(folder: Path) -> list[Path]:
    """The safetensors files of a folder, by name. None raise `ConfigError`."""
    index = folder / INDEX
    try:
        names = sorted(set(json.loads(index.read_text())["weight_map"].values())) if index.exists() else [WEIGHTS]
    except (OSError, ValueError, KeyError, AttributeError) as error:
        raise ConfigError(f"{index}: cannot be read: {error}") from None
    files = [folder / name for name in names]
    missing = [file.name for file in files if not file.is_file()]
    if missing:
        raise ConfigError(f"{folder}: holds no {', '.join(missing)}: it is no folder of a Hugging Face model")
    return files


def read_weights(folder: Path) -> Callable[[str], Tensor]:
    """A function from the name of one of our parameters to its value, float32, read when it is asked for; a name that
    the folder does not hold raises `KeyError`."""
    opened: dict[str, Any] = {}
    for file in weight_files(folder):
        handle = safetensors().safe_open(file, framework="pt", device="cpu")
        opened |= dict.fromkeys(handle.keys(), handle)
    exact = _exact_of(folder)

    def weight(name: str) -> Tensor:
        theirs = opened[foreign_name(name)].get_tensor(foreign_name(name))
        mine = own_weight(name, theirs)
        if exact is None:
            return mine
        found, digests = exact
        key = _ULPS if name == _EMBEDDING else name
        if key not in found.keys() or digests.get(key) != digest_of(theirs):  # noqa: SIM118  # no dictionary
            return mine
        kept: Tensor = found.get_tensor(key)
        return (mine.view(torch.int32) + kept.int()).view(torch.float32) if key == _ULPS else kept

    return weight


def _exact_of(folder: Path) -> tuple[Any, Mapping[str, str]] | None:
    """The file of differences and the digests of the weights that they belong to, where there is one."""
    file = folder / EXACT
    if not file.is_file():
        return None
    handle = safetensors().safe_open(file, framework="pt", device="cpu")
    return handle, handle.metadata() or {}


def safetensors() -> Any:
    """The library. Without it `ConfigError` says how to have it."""
    try:
        import safetensors
        import safetensors.torch
    except ImportError:
        raise ConfigError("Hugging Face folders need safetensors: pip install 'muloco-sweeps[export]'") from None
    return safetensors
