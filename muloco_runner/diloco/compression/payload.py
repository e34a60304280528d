"""One message: the tensors of one sender, in a form that says what it holds and notices damage.

    0   4  magic
    4   2  version
    6   2  zero
    8   4  number of tensors
    12  4  length of this head, descriptors included
    16  8  checksum: sum of all 32-bit words, these 16 bytes taken as zero
    24  8  checksum: sum of the words, each times its number
    32     a descriptor for each tensor: codec, bits, rows apart, dtype, dimensions (1), binary logarithm of the values
           of a chunk (1) and how many of them are sent (2; both 0 for no chunks), number of values sent (4; all:
           0xffffffff), then its shape; 12 bytes and 4 a dimension
           then, for each tensor: indices of the values sent (where not all are; 4 bytes each, or 2 within a chunk),
           levels, codes or values

Little-endian; the head and every part end at a multiple of 8 bytes. Decoding needs nothing but the bytes.
"""

from __future__ import annotations

import struct
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from muloco_runner.diloco.compression.chunks import Chunks
from muloco_runner.diloco.compression.codecs import AnyCodec, Codec, TopK, as_bytes

MAGIC, VERSION = b"MLCP", 1
_HEAD = struct.Struct("<4sHHIIqq")
_DESCRIPTOR = struct.Struct("<BBBBBBHI")
_CHECKSUM = slice(16, 32)
_ALL = 0xFFFFFFFF
_MOST_VALUES = 2**31 - 1
_DTYPES = (torch.float32, torch.float64, torch.float16, torch.bfloat16)
_WORDS_AT_ONCE = {"cpu": 1 << 16, "cuda": 1 << 24}
"""Words that a checksum works on together: they stay in a CPU's cache, or keep a GPU busy."""


class PayloadError(RuntimeError):
    """A payload that is damaged, cut short or none at all."""


@dataclass(frozen=True)
class Descriptor:
    """How one tensor is written."""

    codec: Codec
    dtype: torch.dtype
    shape: tuple[int, ...]
    count: int | None
    """Number of values sent; None where all are."""
    chunks: Chunks | None = None
    """The blocks in which indices count; None for the tensor."""

    @classmethod
    def of(cls, shape: Sequence[int], dtype: torch.dtype, codec: AnyCodec) -> Descriptor:
        if isinstance(codec, TopK):
            size = _size(shape)
            if (chunks := codec.chunks) is not None:
                return cls(codec.values, dtype, tuple(shape), chunks.count(*_matrix(shape)), chunks)
            if size > _MOST_VALUES:
                raise ValueError(
                    f"top-k of {size} values: their indices are written in 31 bits; quantise such a tensor"
                )
            return cls(codec.values, dtype, tuple(shape), codec.count(size))
        return cls(codec, dtype, tuple(shape), None)

    @property
    def matrix(self) -> tuple[int, int]:
        """Rows and columns of the values sent."""
        if self.count is not None:
            return 1, self.count
        return _matrix(self.shape)

    @property
    def part_bytes(self) -> tuple[int, ...]:
        """Lengths of the parts of the body, without their padding."""
        values = self.codec.part_bytes(*self.matrix, self.dtype)
        return values if self.count is None else ((4 if self.chunks is None else 2) * self.count, *values)

    @property
    def head_bytes(self) -> int:
        return _DESCRIPTOR.size + 4 * len(self.shape)

    def pack(self) -> bytes:
        codec, count = self.codec, _ALL if self.count is None else self.count
        chunks = (0, 0) if self.chunks is None else (self.chunks.size.bit_length() - 1, self.chunks.sent)
        fixed = (codec.scheme, codec.bits, int(codec.by_row), _DTYPES.index(self.dtype), len(self.shape))
        return _DESCRIPTOR.pack(*fixed, *chunks, count) + struct.pack(f"<{len(self.shape)}I", *self.shape)

    @classmethod
    def unpack(cls, head: bytes, start: int) -> Descriptor:
        scheme, bits, by_row, dtype, dimensions, chunk, sent, count = _DESCRIPTOR.unpack_from(head, start)
        shape = struct.unpack_from(f"<{dimensions}I", head, start + _DESCRIPTOR.size)
        codec = Codec.of(scheme, bits, by_row)
        if count not in (_ALL, min(count, _size(shape))):
            raise ValueError(f"{count} of {_size(shape)} values")
        chunks = None if (chunk, sent) == (0, 0) else Chunks(2**chunk, sent)
        if chunks is not None and (
            chunk > 16 or chunk % 2 or not 0 < sent < chunks.size or count != chunks.count(*_matrix(shape))
        ):
            raise ValueError(f"{count} of {_size(shape)} values in chunks of 2^{chunk}, {sent} of each")
        return cls(codec, _DTYPES[dtype], shape, None if count == _ALL else count, chunks)

    def encode(self, tensor: Tensor, chooser: AnyCodec) -> list[Tensor]:
        """The parts of the body."""
        if not isinstance(chooser, TopK):
            return self.codec.encode(tensor.reshape(self.matrix))
        if self.chunks is not None:
            return self._encode_chunks(tensor, self.chunks)
        flat = tensor.flatten()
        indices = chooser.choose(flat) if flat.numel() else flat.new_empty(0, dtype=torch.int32)
        return [as_bytes(indices), *self.codec.encode(flat.index_select(0, indices)[None])]

    def decode(self, parts: Sequence[Tensor]) -> Tensor:
        if self.count is None:
            return self.codec.decode(parts, *self.matrix, self.dtype).view(self.shape)
        values = self.codec.decode(parts[1:], *self.matrix, self.dtype).flatten()
        if self.chunks is not None:
            return self._decode_chunks(parts[0], values, self.chunks)
        indices, size = parts[0].view(torch.int32).long(), _size(self.shape)
        ends = torch.tensor([-1, size], device=indices.device)
        if not torch.cat([ends[:1], indices, ends[1:]]).diff().gt(0).all():
            raise PayloadError(f"a payload's indices are not ascending ones of {size} values")
        return values.new_zeros(size).index_copy_(0, indices, values).view(self.shape)

    def _encode_chunks(self, tensor: Tensor, chunks: Chunks) -> list[Tensor]:
        matrix_RC = tensor.reshape(_matrix(self.shape))
        indices, values = [tensor.new_empty(0, dtype=torch.int64)], [tensor.new_empty(0)]
        for kind in chunks.kinds(*matrix_RC.shape):
            blocks_NS = kind.of(matrix_RC)
            chosen_NK = TopK.choose_in_rows(blocks_NS, chunks.sent_of(kind))
            indices.append(chosen_NK.flatten())
            values.append(blocks_NS.gather(1, chosen_NK).flatten())
        # The lower bytes: 16 bits without a sign, in which torch can do little else.
        index_bytes = as_bytes(torch.cat(indices)).view(self.count or 0, 8)[:, :2].flatten()
        return [index_bytes, *self.codec.encode(torch.cat(values)[None])]

    def _decode_chunks(self, part: Tensor, values: Tensor, chunks: Chunks) -> Tensor:
        indices = part.view(torch.int16).long() & 0xFFFF
        matrix_RC = values.new_zeros(_matrix(self.shape))
        start = 0
        for kind in chunks.kinds(*matrix_RC.shape):
            end = start + kind.number * chunks.sent_of(kind)
            chosen_NK, own_NK = (those[start:end].view(kind.number, -1) for those in (indices, values))
            if int(chosen_NK.amax()) >= kind.size or not chosen_NK.diff(dim=1).gt(0).all():
                raise PayloadError(f"a payload's indices are not ascending ones of chunks of {kind.size} values")
            kind.put(values.new_zeros(kind.number, kind.size).scatter_(1, chosen_NK, own_NK), matrix_RC)
            start = end
        return matrix_RC.view(self.shape)


def payload_bytes(descriptors: Sequence[Descriptor]) -> int:
    """Length of a payload of such tensors: known before anything is encoded, so that every receiver is ready for it."""
    return _head_bytes(descriptors) + sum(_padded(size) for d in descriptors for size in d.part_bytes)


def encode(tensors: Sequence[Tensor], codecs: Sequence[AnyCodec]) -> Tensor:
    """The tensors, each by its codec, as one payload (n,), uint8, on their device."""
    descriptors = [Descriptor.of(t.shape, t.dtype, codec) for t, codec in zip(tensors, codecs, strict=True)]
    payload = torch.zeros(payload_bytes(descriptors), dtype=torch.uint8, device=tensors[0].device)
    end = _head_bytes(descriptors)
    head = _HEAD.pack(MAGIC, VERSION, 0, len(tensors), end, 0, 0) + b"".join(d.pack() for d in descriptors)
    payload[: len(head)] = torch.frombuffer(bytearray(head), dtype=torch.uint8)
    for tensor, codec, descriptor in zip(tensors, codecs, descriptors, strict=True):
        for part, size in zip(descriptor.encode(tensor, codec), descriptor.part_bytes, strict=True):
            assert part.numel() == size, (descriptor, part.numel())
            payload[end : end + size] = part
            end += _padded(size)
    payload[_CHECKSUM] = as_bytes(_checksum(payload))
    return payload


def decode(payload: Tensor, shapes: Sequence[Sequence[int]] | None = None) -> list[Tensor]:
    """The tensors of a payload. Damage, a cut or foreign bytes raise `PayloadError`; so do tensors of other shapes than
    those that are due, if given."""
    descriptors = _read_head(payload)
    found = [descriptor.shape for descriptor in descriptors]
    if shapes is not None and found != (due := [tuple(shape) for shape in shapes]):
        raise PayloadError(f"tensors of shapes {found} were received where {due} were due")
    end, tensors = _head_bytes(descriptors), []
    for descriptor in descriptors:
        parts = []
        for size in descriptor.part_bytes:
            parts.append(payload[end : end + size])
            end += _padded(size)
        tensors.append(descriptor.decode(parts))
    return tensors


def _read_head(payload: Tensor) -> list[Descriptor]:
    length = payload.numel()
    if length < _HEAD.size or length % 8:
        raise PayloadError(f"{length} bytes are not a complete payload")
    magic, version, zero, count, head_bytes, *_ = _HEAD.unpack(_to_host(payload[: _HEAD.size]))
    if (magic, version, zero) != (MAGIC, VERSION, 0):
        raise PayloadError(f"not a payload of version {VERSION}: it begins with {magic!r}, version {version}")
    if not torch.equal(as_bytes(_checksum(payload)), payload[_CHECKSUM]):
        raise PayloadError(f"a payload of {length} bytes is damaged: its checksum does not match")
    # From here on, what does not fit was written so: a sender of another version or a bug.
    try:
        head = _to_host(payload[:head_bytes])
        descriptors: list[Descriptor] = []
        start = _HEAD.size
        for _ in range(count):
            descriptors.append(Descriptor.unpack(head, start))
            start += descriptors[-1].head_bytes
    except (struct.error, ValueError, IndexError) as error:
        raise PayloadError(f"a payload's descriptors cannot be read: {error}") from error
    if _head_bytes(descriptors) != head_bytes or payload_bytes(descriptors) != length:
        raise PayloadError(f"a payload of {length} bytes describes {payload_bytes(descriptors)}")
    return descriptors


def _checksum(payload: Tensor) -> Tensor:
    """Two sums, int64, that wrap around: of the 32-bit words, and of each times its number from 1. Shape (2,).

    Their own words are left out. Any one wrong word changes the first, any two exchanged ones the second.
    """
    words, at_once = payload.view(torch.int32), _WORDS_AT_ONCE[payload.device.type]
    sums = torch.zeros(2, dtype=torch.int64, device=payload.device)
    numbers = torch.arange(1, min(words.numel(), at_once) + 1, device=payload.device)
    for number, part in enumerate(words.split(at_once)):
        total = part.sum(dtype=torch.int64)
        sums[0] += total
        sums[1] += number * at_once * total + (numbers[: part.numel()] * part).sum()
    own, own_numbers = words[4:8].long(), numbers[4:8]
    return sums - torch.stack([own.sum(), (own * own_numbers).sum()])


def _head_bytes(descriptors: Sequence[Descriptor]) -> int:
    return _padded(_HEAD.size + sum(descriptor.head_bytes for descriptor in descriptors))


def _padded(size: int) -> int:
    return -(-size // 8) * 8


def _matrix(shape: Sequence[int]) -> tuple[int, int]:
    """Rows and columns of a tensor of this shape."""
    rows = shape[0] if len(shape) > 1 else 1
    return rows, _size(shape) // rows if rows else 0


def _size(shape: Sequence[int]) -> int:
    size = 1
    for length in shape:
        size *= length
    return size


def _to_host(content: Tensor) -> bytes:
    return content.cpu().numpy().tobytes()
