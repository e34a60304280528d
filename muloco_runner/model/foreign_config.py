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
_FIXED_BY_DEFAULT: Mapping[str, Any] = {
    "architectures": ["Gemma3ForCausalLM"],
    "attention_dropout": 0.0,
    "use_bidirectional_attention": False,
}
"""The same of keys that `Gemma3TextConfig` has so where a file does not say them."""
_DEFAULTS: Mapping[str, Any] = {
    **_FIXED_BY_DEFAULT,
    "hidden_activation": "gelu_pytorch_tanh",
    "tie_word_embeddings": True,
    "attention_bias": False,
    "num_attention_heads": 8,
    "num_key_value_heads": 4,
    "query_pre_attn_scalar": 256,
    "rms_norm_eps": 1e-6,
}
"""What `Gemma3TextConfig` has of keys that a file does not say, or says null."""
_READ = frozenset(
    {
        "hidden_size", "intermediate_size", "num_hidden_layers", "head_dim", "vocab_size", "max_position_embeddings",
        "layer_types", "rope_theta", "rope_parameters", "rope_scaling", *_FIXED, *_DEFAULTS,
    }
)  # fmt: skip
_WITHOUT_EFFECT = frozenset(
    {
        # Of layers that see a window alone, of which there are none.
        "sliding_window", "sliding_window_pattern", "_sliding_window_pattern", "rope_local_base_freq",
        # Of how transformers computes, keeps and says things.
        "transformers_version", "torch_dtype", "dtype", "use_cache", "cache_implementation", "return_dict",
        "output_hidden_states", "output_attentions", "torchscript", "chunk_size_feed_forward", "_name_or_path",
        "_attn_implementation", "attn_implementation", "_attn_implementation_autoset", "use_bfloat16",
        "tf_legacy_loss", "is_decoder", "is_encoder_decoder", "tie_encoder_decoder", "initializer_range",
        # Of tokens and of sampling.
        "bos_token_id", "eos_token_id", "pad_token_id", "sep_token_id", "decoder_start_token_id", "tokenizer_class",
        "prefix", "max_length", "min_length", "do_sample", "temperature", "top_k", "top_p", "typical_p",
        "repetition_penalty", "length_penalty", "early_stopping", "num_beams", "num_beam_groups",
        "num_return_sequences", "diversity_penalty", "no_repeat_ngram_size", "encoder_no_repeat_ngram_size",
        "bad_words_ids", "suppress_tokens", "begin_suppress_tokens", "forced_bos_token_id", "forced_eos_token_id",
        "remove_invalid_values", "exponential_decay_length_penalty", "output_scores", "return_dict_in_generate",
        # Of heads that are none of a language model's.
        "id2label", "label2id", "num_labels", "problem_type", "finetuning_task", "task_specific_params",
    }
)  # fmt: skip
"""Keys of transformers that change no logits of such a model. Any other key might."""
_ONLY = "only a Gemma3ForCausalLM as `muloco-model export` writes it can be read"


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
        theta = _rope_theta(file, values)
        expected = {
            **_FIXED,
            **_FIXED_BY_DEFAULT,
            "num_key_value_heads": width // head_width,
            "num_attention_heads": width // head_width,
            "query_pre_attn_scalar": head_width,
            "layer_types": ["full_attention"] * layers,
        }
        for key, value in expected.items():
            if (found := _said(values, key)) != value:
                raise ConfigError(f"{file}: {key} is {found!r}, and of a model of the study's shape {value!r}: {_ONLY}")
        for key in sorted(set(values) - _READ - _WITHOUT_EFFECT):
            if values[key] not in (None, False, {}, []):
                raise ConfigError(
                    f"{file}: {key} is {values[key]!r}: a key that a model of the study's shape does not have: {_ONLY}"
                )
        return ModelConfig(
            width=width,
            num_layers=layers,
            head_width=head_width,
            vocab_size=values["vocab_size"],
            sequence_length=values["max_position_embeddings"],
            ffn_ratio=values["intermediate_size"] / width,
            rope_theta=theta,
            norm_eps=_said(values, "rms_norm_eps"),
        )
    except (KeyError, TypeError, AttributeError) as error:
        raise ConfigError(f"{file}: has no usable {error}: it is no config of a Gemma3ForCausalLM") from None


def _said(values: Mapping[str, Any], key: str) -> Any:
    value = values.get(key)
    return _DEFAULTS.get(key) if value is None else value


def _rope_theta(file: Path, values: Mapping[str, Any]) -> float:
    """The base of the rotations, of whichever keys say it; other rotations than the default raise `ConfigError`."""
    found = {} if values.get("rope_theta") is None else {"rope_theta": float(values["rope_theta"])}
    for key in ("rope_parameters", "rope_scaling"):
        # Version 5 of transformers may say it of each kind of layer.
        rope = dict((values.get(key) or {}).get("full_attention", values.get(key)) or {})
        kinds = {kind for name in ("rope_type", "type") if (kind := rope.pop(name, None)) is not None}
        theta = rope.pop("rope_theta", None)
        others = {name: value for name, value in rope.items() if value is not None}
        if kinds - {"default"} or others:
            raise ConfigError(f"{file}: {key} is {values[key]!r}: only default rotations can be read: {_ONLY}")
        if theta is not None:
            found[key] = float(theta)
    if len(set(found.values())) > 1:
        said = " and ".join(f"{key} {theta:g}" for key, theta in found.items())
        raise ConfigError(f"{file}: the base of the rotations is said twice, {said}: correct one of them")
    return found.popitem()[1]
