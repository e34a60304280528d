"""Codecs from outside the package: any class that turns a matrix into bytes and back."""

from __future__ import annotations

import inspect
import json
import zlib
from collections.abc import Sequence
from typing import Protocol

import torch
from torch import Tensor

from muloco_runner.config import ConfigError, TargetCompressionConfig
from muloco_runner.config.outside import import_target
from muloco_runner.diloco.compression.codecs import Codec, as_bytes


class OwnCodec(Protocol):
    """What a class from outside must be. It keeps nothing from call to call and draws no random numbers."""

    def part_bytes(self, rows: int, columns: int) -> Sequence[int]:
        """Bytes of each part of a matrix of that shape, whatever its values; both are at least 1."""

    def encode(self, values: Tensor) -> Sequence[Tensor]:
        """The parts of a float32 matrix (rows, columns): tensors of any type, whose bytes are sent."""

    def decode(self, parts: Sequence[Tensor], rows: int, columns: int) -> Tensor:
        """The matrix that the parts stand for, from their bytes, uint8 (n,) each."""


_METHODS = ("part_bytes", "encode", "decode")
_BUILT: dict[int, TargetCodec] = {}
"""Codecs of this process by the number that payloads name them by; all ranks of a run build the same."""


class TargetCodec(Codec, scheme=255):
    """One of them with its arguments. Of an empty matrix nothing is sent."""

    allowed_bits = tuple(range(256))

    def __init__(self, config: TargetCompressionConfig) -> None:
        where = f"method.compression._target_={config._target_}"
        cls = import_target(where, config._target_)
        missing = [name for name in _METHODS if not callable(getattr(cls, name, None))]
        if missing or not isinstance(cls, type):
            raise ConfigError(f"{where}: is no codec: a class with {', '.join(_METHODS)}; {', '.join(missing)} missing")
        known = inspect.signature(cls).parameters
        for name in config.arguments:
            if name not in known:
                raise ConfigError(f"{where}: has no argument {name}; it takes {', '.join(known) or 'none'}")
        try:
            self.codec: OwnCodec = cls(**config.arguments)
        except Exception as error:
            raise ConfigError(f"{where}: cannot be built: {type(error).__name__}: {error}") from error
        named = json.dumps([config._target_, config.arguments, config.rows_apart], sort_keys=True, default=str)
        self.bits = zlib.crc32(named.encode()) % 256
        self.by_row = config.rows_apart

    @classmethod
    def read(cls, bits: int, by_row: bool) -> Codec:
        if bits not in _BUILT or _BUILT[bits].by_row != by_row:
            raise ValueError(f"this run has no codec from outside of number {bits}")
        return _BUILT[bits]

    def part_bytes(self, rows: int, columns: int, dtype: torch.dtype) -> tuple[int, ...]:
        return tuple(self.codec.part_bytes(rows, columns)) if rows * columns else (0,)

    def encode(self, values_RC: Tensor) -> list[Tensor]:
        if not values_RC.numel():
            return [as_bytes(values_RC)]
        return [as_bytes(part) for part in self.codec.encode(values_RC.to(torch.float32))]

    def decode(self, parts: Sequence[Tensor], rows: int, columns: int, dtype: torch.dtype) -> Tensor:
        if not rows * columns:
            return parts[0].new_empty((rows, columns), dtype=dtype)
        return self.codec.decode(parts, rows, columns).to(dtype)


def build_target_codec(config: TargetCompressionConfig) -> TargetCodec:
    """The codec that a config names, known to this process. What cannot be built raises `ConfigError`."""
    codec = TargetCodec(config)
    _BUILT[codec.bits] = codec
    return codec
