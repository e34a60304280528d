"""What is sent in place of a pseudogradient."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, get_args

from muloco_runner.config.checks import require, require_choice


@dataclass
class CompressionConfig:
    """Pseudogradients are sent as they are. Each subclass is a way to send less; norm gains are always exact."""

    name: str = "none"


Bits = Literal[2, 4, 8]
Granularity = Literal["tensor", "row"]
Exchange = Literal["all_gather", "reduce_scatter"]


@dataclass
class LossyCompressionConfig(CompressionConfig):
    """What all lossy ways share. The outer lr plays no part in what is sent."""

    name: str = "???"
    error_feedback: float | None = 0.9
    """Decay d of each worker's error memory: e <- d*e + delta, send Q(e), e <- e - Q(e). 1 forgets nothing; null keeps
    no memory."""
    exact_embeddings: bool = False
    """Token embedding and head are sent as they are, like the norm gains."""

    def __post_init__(self) -> None:
        require(
            self.error_feedback is None or 0 < self.error_feedback <= 1,
            f"method.compression.error_feedback={self.error_feedback}: must be above 0 and at most 1, or null for none",
        )


@dataclass
class QuantisationConfig(LossyCompressionConfig):
    """Each value as one of 2^bits levels. Two names, one a scheme:

    statistical: bins over six standard deviations around the mean, each read back as the mean of what fell into it;
    linear: evenly spaced levels from the smallest to the largest value.
    """

    name: str = "statistical"
    bits: int = 4
    granularity: str = "tensor"
    """What shares one set of levels: a tensor or a row of it."""
    exchange: str = "all_gather"
    """all_gather: every worker gets every other's payload; reduce_scatter: each averages its share of them, quantises
    that average again and sends it to all."""

    def __post_init__(self) -> None:
        super().__post_init__()
        require_choice("method.compression.name", self.name, ("statistical", "linear"))
        require_choice("method.compression.bits", self.bits, get_args(Bits))
        require_choice("method.compression.granularity", self.granularity, get_args(Granularity))
        require_choice("method.compression.exchange", self.exchange, get_args(Exchange))


@dataclass
class TopKConfig(LossyCompressionConfig):
    """The largest values of each tensor by magnitude, with their places; nothing of the others."""

    name: str = "top_k"
    fraction: float = 0.01
    """Share of a tensor's values that is sent."""
    values: str = "exact"
    """How those values are written: exact, statistical or linear (one set of levels a tensor)."""
    bits: int | None = None
    """Of a quantised value; null for exact ones."""

    def __post_init__(self) -> None:
        super().__post_init__()
        require(0 < self.fraction < 1, f"method.compression.fraction={self.fraction}: must lie between 0 and 1")
        require_choice("method.compression.values", self.values, ("exact", "statistical", "linear"))
        if self.values == "exact":
            require(
                self.bits is None,
                f"method.compression.bits={self.bits} has no effect with method.compression.values=exact: "
                "drop it, or use values=statistical",
            )
        else:
            require_choice("method.compression.bits", self.bits, get_args(Bits))


COMPRESSIONS: dict[str, type[CompressionConfig]] = {
    "none": CompressionConfig,
    "statistical": QuantisationConfig,
    "linear": QuantisationConfig,
    "top_k": TopKConfig,
}
