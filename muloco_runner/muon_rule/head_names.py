"""Names by which models tell a projection to their outputs, which is no hidden matrix."""

from __future__ import annotations

_HEAD_NAMES = frozenset(
    {
        "head", "lm_head", "output", "unembed", "unembedding", "embed_out", "classifier", "score", "to_logits",
        "logits", "generator", "proj_out", "vocab_proj", "cls", "output_projection",
    }
)  # fmt: skip


def head_name(layer: str) -> str | None:
    """Return by which part of its dotted name a layer is a head ("lm_head", "heads.0", what ends in "head"), or
    None."""
    own_name = next((part for part in reversed(layer.split(".")) if not part.isdigit()), "")
    is_head = own_name in _HEAD_NAMES or own_name.endswith("head") or (own_name == "heads" and layer[-1].isdigit())
    return own_name if is_head else None
