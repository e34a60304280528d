"""Tries codecs from outside the package: small matrices are written and read back."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

from muloco_runner.config import TargetCompressionConfig
from muloco_runner.config.checks import require
from muloco_runner.diloco.compression.target_codec import TargetCodec

_SHAPES = ((1, 1), (1, 7), (5, 3), (3, 64))
_LARGE = 256
"""Rows and columns of the matrix that bits are counted on."""
_TOLERANCE = 0.05
"""How far, as a share, the bits that were declared may be from those that are sent."""


def try_codec(config: TargetCompressionConfig) -> dict[str, Any]:
    """What is wrong with it, if anything. Sharded tensors are whole where one of them is written."""
    codec = TargetCodec(config)
    for rows, columns in _SHAPES:
        for what, values in _matrices(rows, columns):
            _check_round_trip(config, codec, values, f"{what} ({rows}, {columns})")
        _there_and_back(codec, torch.full((rows, columns), float("nan")), f"NaN ({rows}, {columns})")
    values = torch.randn(_LARGE, _LARGE, generator=torch.Generator().manual_seed(1))
    decoded = _check_round_trip(config, codec, values, f"a random matrix ({_LARGE}, {_LARGE})")
    require(
        float((decoded * values).sum()) > 0,
        "what comes back points away from what was sent: their product is not positive",
    )
    _check_bits(config, codec)
    return {}


def _matrices(rows: int, columns: int) -> Iterator[tuple[str, Tensor]]:
    generator = torch.Generator().manual_seed(rows * columns)
    values = torch.randn(rows, columns, generator=generator)
    yield "a random matrix", values
    yield "values of 1e-30", values * 1e-30
    yield "values of 1e10", values * 1e10
    yield "zeros", torch.zeros(rows, columns)


def _there_and_back(codec: TargetCodec, values: Tensor, what: str) -> tuple[list[Tensor], Tensor]:
    rows, columns = values.shape
    parts = codec.encode(values)
    promised = codec.part_bytes(rows, columns, values.dtype)
    found = tuple(part.numel() for part in parts)
    require(found == promised, f"of {what} it writes parts of {found} bytes, and part_bytes promises {promised}")
    decoded = codec.decode(parts, rows, columns, values.dtype)
    require(decoded.shape == values.shape, f"of {what} it reads back a tensor of shape {tuple(decoded.shape)}")
    return parts, decoded


def _check_round_trip(config: TargetCompressionConfig, codec: TargetCodec, values: Tensor, what: str) -> Tensor:
    before = values.clone()
    torch.manual_seed(0)
    parts, decoded = _there_and_back(codec, values, what)
    require(torch.equal(values, before), f"encode changes {what} that it was given")
    require(bool(torch.isfinite(decoded).all()), f"of {what} it reads back values that are not finite")
    torch.manual_seed(1)
    other = TargetCodec(config)
    again, read = _there_and_back(other, values, what)
    require(
        all(torch.equal(one, two) for one, two in zip(parts, again, strict=True)),
        f"{what} is written otherwise the second time: replicas of a worker must write the same",
    )
    require(torch.equal(read, decoded), f"{what} is read back otherwise by another one of the class")
    if config.rows_apart:
        rows = [_there_and_back(codec, row[None], f"a row of {what}")[1] for row in values]
        require(
            torch.equal(torch.cat(rows), decoded),
            f"a row of {what} is read back otherwise where it was written alone: set "
            "method.compression.rows_apart=false",
        )
    return decoded


def _check_bits(config: TargetCompressionConfig, codec: TargetCodec) -> None:
    sent = 8 * sum(codec.part_bytes(_LARGE, _LARGE, torch.float32)) / _LARGE**2
    require(
        abs(sent - config.bits_per_value) <= _TOLERANCE * sent,
        f"it sends {sent:.3g} bits for a value of a matrix ({_LARGE}, {_LARGE}): set "
        f"method.compression.bits_per_value={sent:.3g}",
    )
