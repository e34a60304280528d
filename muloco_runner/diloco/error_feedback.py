"""What one worker sends of its pseudogradients, and what it remembers of the rest."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from muloco_runner.config import CompressionConfig
from muloco_runner.config.variants import load
from muloco_runner.diloco.compression import payload
from muloco_runner.diloco.compression.codecs import AnyCodec, Exact
from muloco_runner.diloco.compression.row_ranges import RowRange
from muloco_runner.optimizers import parameter_kinds


def choose_codecs(config: CompressionConfig, model: nn.Module) -> list[AnyCodec]:
    """A codec for each parameter: norm gains, the vectors, are always exact; embedding and head where asked."""
    codec: AnyCodec = load(config)(config)
    kinds = parameter_kinds(model) if config.sends_embeddings_exactly else {}
    return [
        Exact() if parameter.ndim < 2 or kinds.get(name) in ("embedding", "head") else codec
        for name, parameter in model.named_parameters()
    ]


class Compressor:
    """The sending side of one worker, for the tensors of one fragment.

    With a decay d, error feedback: e <- d*e + delta; sent is Q(e); e <- e - Q(e). No learning rate is in it: the outer
    step applies its own, once, to the mean of what was sent.
    """

    def __init__(self, codecs: Sequence[AnyCodec], error_feedback: float | None, like: Tensor) -> None:
        self.codecs, self.error_feedback = codecs, error_feedback
        self.error = None if error_feedback is None else torch.zeros_like(like)
        """Flat, as the pseudogradient."""

    def accept(self, pseudogradient: Tensor) -> Tensor:
        """What is to be sent: the pseudogradient, flat, with what is remembered."""
        if self.error is None or self.error_feedback is None:
            return pseudogradient
        return self.error.mul_(self.error_feedback).add_(pseudogradient)

    def send(self, tensors: Sequence[Tensor], ranges: Sequence[RowRange]) -> Tensor:
        """The payload of these ranges of the accepted tensors; what it does not carry stays remembered."""
        parts = [part.of(tensors) for part in ranges]
        content = payload.encode(parts, [self.codecs[part.tensor] for part in ranges])
        if self.error is not None:
            torch._foreach_sub_(parts, payload.decode(content))
        return content
