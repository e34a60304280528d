"""What training needs of a model, whoever wrote it."""

from __future__ import annotations

from torch import nn


class LanguageModel(nn.Module):
    """Token ids (B, T) and document ids (B, T) to logits (B, T, V), or to the mean loss where targets are given."""

    def set_execution(self, attention: str, recompute: bool, compiled: bool, most_chunk: int = 0) -> None:
        """Chooses how it is computed; none of it changes what is computed.

        attention: a kernel's name from `choose_attention`; recompute: activations within a block are computed again in
        the backward pass; compiled: whether by compiled functions; most_chunk: tokens whose logits may exist at once,
        where the model's head can be told (`chunk_within`).
        """
        raise NotImplementedError
