"""How a worker's pseudogradients are sent, and what it remembers of what was not."""

from __future__ import annotations

from torch import Tensor, nn

from muloco_runner.config import CompressionConfig
from muloco_runner.config.variants import load
from muloco_runner.diloco.compression.codecs import AnyCodec, Exact
from muloco_runner.optimizers import parameter_kinds


def choose_codecs(config: CompressionConfig, model: nn.Module) -> list[AnyCodec]:
    """A codec for each parameter: norm gains, the vectors, are always exact; embedding and head where asked."""
    codec: AnyCodec = load(config)(config)
    kinds = parameter_kinds(model) if config.sends_embeddings_exactly else {}
    return [
        Exact() if parameter.ndim < 2 or kinds.get(name) in ("embedding", "head") else codec
        for name, parameter in model.named_parameters()
    ]


def remembered(error: Tensor, decay: float, pseudogradient: Tensor) -> Tensor:
    """Return what is to be sent with error feedback, d*e + pseudogradient: in the memory of `error`, flat as both.

    What the payloads do not carry of it is the next error: with s = d*e + pseudogradient, e <- s - Q(s).
    No learning rate is in it: the outer step applies its own, once, to the mean of what was sent.
    """
    return error.mul_(decay).add_(pseudogradient)
