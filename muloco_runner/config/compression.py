"""What is sent in place of a pseudogradient."""

from __future__ import annotations

from abc import abstractmethod
from dataclasses import dataclass, field
from typing import Literal, get_args

from muloco_runner.config.checks import require, require_choice, require_positive
from muloco_runner.config.outside import OneTarget
from muloco_runner.config.plain import UNNAMED_AT_DEFAULT
from muloco_runner.config.variants import Implemented, table


@dataclass
class CompressionConfig(Implemented):
    """One subclass a way to send, with the facts that memory and reports need. Norm gains are always exact."""

    name: str = "???"

    @property
    @abstractmethod
    def bits_per_value(self) -> float:
        """Bits that are sent for each value of a tensor, indices of the values sent included."""

    @property
    @abstractmethod
    def is_exact(self) -> bool:
        """Whether every value arrives as it was."""

    @property
    @abstractmethod
    def sends_rows_apart(self) -> bool:
        """Whether each row of a tensor is sent as it would be alone, so that tensors may be cut between rows."""

    @property
    @abstractmethod
    def reduces_and_scatters(self) -> bool:
        """Whether each worker averages a share of all payloads, and does not get every other's."""

    @property
    @abstractmethod
    def error_feedback(self) -> float | None:
        """Decay of each worker's memory of what was not sent, 4 bytes a parameter; None where it keeps none."""

    @property
    @abstractmethod
    def sends_embeddings_exactly(self) -> bool:
        """Whether token embedding and head are sent as they are."""

    @property
    @abstractmethod
    def encoding_bytes(self) -> float:
        """Bytes of temporaries for each value of the tensor that is being encoded."""


@dataclass
class NoCompressionConfig(CompressionConfig):
    """Pseudogradients are sent as they are, in float32."""

    name: str = "none"

    implementation = "muloco_runner.diloco.compression.codecs:exact"
    bits_per_value = 32.0
    is_exact = True
    sends_rows_apart = True
    reduces_and_scatters = True  # where nothing is lost, the way of fewer bytes has the same result
    error_feedback = None
    sends_embeddings_exactly = True
    encoding_bytes = 0.0


Bits = Literal[2, 4, 8]
Granularity = Literal["tensor", "row"]
Exchange = Literal["all_gather", "reduce_scatter"]


@dataclass
class LossyCompressionConfig(CompressionConfig):
    """What all lossy ways share. The outer lr plays no part in what is sent."""

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

    is_exact = False

    @property
    def sends_embeddings_exactly(self) -> bool:
        return self.exact_embeddings


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

    implementation = "muloco_runner.diloco.compression.codecs:quantiser"
    encoding_bytes = 6.0

    def __post_init__(self) -> None:
        super().__post_init__()
        require_choice("method.compression.name", self.name, ("statistical", "linear"))
        require_choice("method.compression.bits", self.bits, get_args(Bits))
        require_choice("method.compression.granularity", self.granularity, get_args(Granularity))
        require_choice("method.compression.exchange", self.exchange, get_args(Exchange))

    @property
    def bits_per_value(self) -> float:
        return float(self.bits)

    @property
    def sends_rows_apart(self) -> bool:
        return self.granularity == "row"

    @property
    def reduces_and_scatters(self) -> bool:
        return self.exchange == "reduce_scatter"


@dataclass
class TopKConfig(LossyCompressionConfig):
    """The largest values of each tensor by magnitude, with their indices; nothing of the others.

    With `chunk` 4096, values of 2 bits and error feedback .95 it is SparseLoCo's (arXiv 2508.15706), whose outer
    step is the plain average; levels are shared by a tensor's values.
    """

    name: str = "top_k"
    fraction: float = 0.01
    """Share of a tensor's values that is sent, or of each chunk's."""
    values: str = "exact"
    """How those values are written: exact, statistical or linear (one set of levels a tensor)."""
    bits: int | None = None
    """Bits of a quantised value; null for exact ones."""
    chunk: int | None = field(default=None, metadata=UNNAMED_AT_DEFAULT)
    """Values among which the largest are chosen, a square block of a matrix, 64 x 64 for 4096: an index takes 2 bytes;
    null: all of a tensor's, 4 bytes."""

    implementation = "muloco_runner.diloco.compression.codecs:top_k"
    sends_rows_apart = False
    reduces_and_scatters = False
    encoding_bytes = 12.0

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
        if self.chunk is not None:
            require_choice(
                "method.compression.chunk", self.chunk, tuple(side**2 for side in (4, 8, 16, 32, 64, 128, 256))
            )
            require(
                0 < round(self.fraction * self.chunk) < self.chunk,
                f"method.compression.fraction={self.fraction}: is none of a chunk's {self.chunk} values, or all: use "
                f"{1 / self.chunk:g} to {1 - 1 / self.chunk:g}",
            )

    @property
    def bits_per_value(self) -> float:
        value = 32 if self.bits is None else self.bits
        if self.chunk is None:
            return self.fraction * (32 + value)
        return round(self.fraction * self.chunk) / self.chunk * (16 + value)


@dataclass
class TargetCompressionConfig(OneTarget, LossyCompressionConfig):
    """A codec from outside the package: a class with `part_bytes(rows, columns)`, `encode(values)` and
    `decode(parts, rows, columns)`, as `diloco.compression.target_codec.OwnCodec` describes them."""

    name: str = "target"
    bits_per_value: float = 0.0
    """What it sends for each value of a large matrix; one that sends something else is refused. No part of a run's
    name."""
    rows_apart: bool = False
    """Each row of a matrix is written as it would be alone."""
    exchange: str = "all_gather"
    """As in `QuantisationConfig`."""

    implementation = "muloco_runner.diloco.compression.target_codec:build_target_codec"
    not_in_hash = ("label", "bits_per_value")
    encoding_bytes = 16.0

    def __post_init__(self) -> None:
        super().__post_init__()
        self.check_target("method.compression", {})
        require_positive("method.compression", bits_per_value=self.bits_per_value)
        require_choice("method.compression.exchange", self.exchange, get_args(Exchange))

    @property
    def sends_rows_apart(self) -> bool:
        return self.rows_apart

    @property
    def reduces_and_scatters(self) -> bool:
        return self.exchange == "reduce_scatter"


COMPRESSIONS: dict[str, type[CompressionConfig]] = table(
    none=NoCompressionConfig,
    statistical=QuantisationConfig,
    linear=QuantisationConfig,
    top_k=TopKConfig,
    target=TargetCompressionConfig,
)
