"""Which algorithm updates which parameter: Muon the matrices of attention and feed-forward, AdamW all others."""

from __future__ import annotations

from typing import Any

from torch import nn

# Names under which language models keep the projection to the vocabulary.
_HEAD_NAMES = frozenset({"head", "lm_head", "output", "unembed", "unembedding", "embed_out", "classifier", "score"})


def parameter_groups(model: nn.Module) -> list[dict[str, Any]]:
    """Return up to two groups for `Muon` or `MuLoCo1`: hidden matrices ("muon") and everything else ("adamw").

    A hidden matrix is the weight of an `nn.Linear` that is not the head. The head is named like one, shares an
    embedding's weight, or is the model's last linear layer and as wide as a vocabulary. Embeddings, gains, biases and
    convolutions go to AdamW. Muon takes the weight of a layer as one matrix: give query, key and value layers of their
    own.
    """
    modules = dict(model.named_modules())
    linears = {name: module for name, module in modules.items() if isinstance(module, nn.Linear)}
    embeddings = [module for module in modules.values() if isinstance(module, nn.Embedding)]
    heads = {id(embedding.weight) for embedding in embeddings}
    heads |= {id(linear.weight) for name, linear in linears.items() if name.rpartition(".")[2] in _HEAD_NAMES}
    for linear in list(linears.values())[-1:]:
        if linear.out_features in {embedding.num_embeddings for embedding in embeddings}:
            heads.add(id(linear.weight))
    hidden = {id(linear.weight) for linear in linears.values()} - heads
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    groups: list[dict[str, Any]] = [
        {"params": [p for p in trained if id(p) in hidden], "algorithm": "muon"},
        {"params": [p for p in trained if id(p) not in hidden], "algorithm": "adamw"},
    ]
    return [group for group in groups if group["params"]]
