"""The config of the study's model as Hugging Face's `Gemma3ForCausalLM` has it, and back. Standard library only."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from muloco_runner.config import ConfigError, ModelConfig

_FIXED: Mapping[str, Any] = {
    "model_type": "gemma3_text",
    "hidden_activation": "silu",
    "tie_word_embeddings": False,
    "attention_bias": False,
    "attn_logit_softcapping": None,
    "final_logit_softcapping": None,
}
"""What is so for each of our models, and must be so for a model to be one of ours."""


def foreign_config(config: ModelConfig) -> dict[str, Any]:
    """`config.json` of a model, but for its tokens' numbers and its dtype."""
    rope = {"rope_type": "default", "rope_theta": config.rope_theta}
    return {
        "architectures": ["Gemma3ForCausalLM"],
        **_FIXED,
        "vocab_size": config.vocab_size,
        "hidden_size": config.width,
        "intermediate_size": config.ffn_width,
        "num_hidden_layers": config.num_layers,
        "num_attention_heads": config.num_heads,
        "num_key_value_heads": config.num_heads,
        "head_dim": config.head_width,
        "query_pre_attn_scalar": config.head_width,
        "max_position_embeddings": config.sequence_length,
        "sliding_window": config.sequence_length,
        "layer_types": ["full_attention"] * config.num_layers,
        "rms_norm_eps": config.norm_eps,
        # The second is transformers' of version 5, the others of version 4.
        "rope_theta": config.rope_theta,
        "rope_parameters": {"full_attention": rope, "sliding_attention": rope},
        "rope_local_base_freq": config.rope_theta,
    }


def read_model_config(folder: Path) -> ModelConfig:
    """The model of a Hugging Face folder; one that is none of the study's shape raises `ConfigError`."""
    file = folder / "config.json"
    try:
        values = json.loads(file.read_text())
    except (OSError, ValueError) as error:
        raise ConfigError(f"{file}: cannot be read as the config of a Hugging Face model: {error}") from None
    try:
        width, layers, head_width = values["hidden_size"], values["num_hidden_layers"], values["head_dim"]
        theta = _rope_theta(values)
        expected = {
            **_FIXED,
            "num_key_value_heads": width // head_width,
            "num_attention_heads": width // head_width,
            "query_pre_attn_scalar": head_width,
            "layer_types": ["full_attention"] * layers,
        }
        for key, value in expected.items():
            if values.get(key) != value:
                raise ConfigError(
                    f"{file}: {key} is {values.get(key)!r}, and of a model of the study's shape {value!r}: "
                    "only a Gemma3ForCausalLM as `muloco-model export` writes it can be read"
                )
        return ModelConfig(
            width=width,
            num_layers=layers,
            head_width=head_width,
            vocab_size=values["vocab_size"],
            sequence_length=values["max_position_embeddings"],
            ffn_ratio=values["intermediate_size"] / width,
            rope_theta=theta,
            norm_eps=values["rms_norm_eps"],
        )
    except (KeyError, TypeError) as error:
        raise ConfigError(f"{file}: has no usable {error}: it is no config of a Gemma3ForCausalLM") from None


def _rope_theta(values: Mapping[str, Any]) -> float:
    rope = (values.get("rope_parameters") or {}).get("full_attention")
    if rope is None:
        return float(values["rope_theta"])
    if rope.get("rope_type", "default") != "default":
        raise ConfigError(f"rope_parameters: rope_type {rope['rope_type']!r}: only default rotations can be read")
    return float(rope["rope_theta"])
