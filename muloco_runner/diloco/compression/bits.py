"""Codes of 2, 4 or 8 bits in bytes, without a gap between them."""

from __future__ import annotations

import torch
from torch import Tensor


def packed_bytes(count: int, bits: int) -> int:
    """Bytes of `count` codes of `bits` bits."""
    return -(-count * bits // 8)


def pack(codes: Tensor, bits: int) -> Tensor:
    """Codes (n,), uint8 and below 2^bits, as bytes.

    Byte j of m holds codes j, j + m, j + 2m, ... from its lowest bits up: both ways touch memory in order.
    """
    per_byte = 8 // bits
    if per_byte == 1:
        return codes
    length = packed_bytes(codes.numel(), bits)
    missing = length * per_byte - codes.numel()
    planes = (torch.cat([codes, codes.new_zeros(missing)]) if missing else codes).view(per_byte, length)
    packed = planes[0].clone()
    for slot in range(1, per_byte):
        packed |= planes[slot] << (bits * slot)
    return packed


def unpack(packed: Tensor, bits: int, count: int) -> Tensor:
    """The inverse of `pack`: codes (count,)."""
    per_byte = 8 // bits
    if per_byte == 1:
        return packed
    planes = torch.empty((per_byte, packed.numel()), dtype=torch.uint8, device=packed.device)
    for slot in range(per_byte):
        torch.bitwise_and(packed >> (bits * slot), (1 << bits) - 1, out=planes[slot])
    return planes.flatten()[:count]
