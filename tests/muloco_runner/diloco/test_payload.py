"""What is written can be read back, takes the bytes that the format states, and is refused once damaged."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from muloco_runner.diloco.compression.bits import pack, packed_bytes, unpack
from muloco_runner.diloco.compression.codecs import (
    AnyCodec,
    Exact,
    Linear,
    Statistical,
    TopK,
    _bins_of_runs,
    _sums_in_order,
    as_bytes,
)
from muloco_runner.diloco.compression.payload import Descriptor, PayloadError, _checksum, decode, encode, payload_bytes

BITS = st.sampled_from([2, 4, 8])
DTYPES = st.sampled_from([torch.float32, torch.float64, torch.float16, torch.bfloat16])
SHAPES = st.lists(st.integers(0, 7), max_size=4).map(tuple) | st.tuples(st.integers(1, 40), st.integers(1, 40))
QUANTISERS = st.builds(Statistical, BITS, st.booleans()) | st.builds(Linear, BITS, st.booleans())
QUANTISED_OR_EXACT = st.just(Exact()) | st.builds(Linear, BITS) | st.builds(Statistical, BITS)
CODECS = (
    st.just(Exact())
    | QUANTISERS
    | st.builds(TopK, st.floats(0.1, 0.9), QUANTISED_OR_EXACT, st.sampled_from([16, 64]))
    | st.builds(TopK, st.floats(0.01, 0.99), QUANTISED_OR_EXACT)
)
SEEDS = st.integers(0, 2**31)


def values(shape: tuple[int, ...], dtype: torch.dtype, seed: int) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return (torch.randn(shape, generator=generator, dtype=torch.float64) * 10.0 ** (seed % 9 - 6)).to(dtype)


@settings(deadline=None)
@given(st.integers(0, 300), BITS, SEEDS)
def test_packing_round_trips_without_a_gap(count: int, bits: int, seed: int) -> None:
    codes = torch.randint(0, 2**bits, (count,), dtype=torch.uint8, generator=torch.Generator().manual_seed(seed))
    packed = pack(codes, bits)
    assert packed.numel() == packed_bytes(count, bits) == math.ceil(count * bits / 8)
    assert torch.equal(unpack(packed, bits, count), codes)


@settings(max_examples=60, deadline=None)
@given(st.lists(st.tuples(SHAPES, DTYPES, CODECS, SEEDS), min_size=1, max_size=4))
def test_a_payload_says_what_it_holds(parts: list[tuple[tuple[int, ...], torch.dtype, AnyCodec, int]]) -> None:
    tensors = [values(shape, dtype, seed) for shape, dtype, _, seed in parts]
    codecs = [codec for _, _, codec, _ in parts]
    payload = encode(tensors, codecs)
    assert payload.dtype == torch.uint8
    assert payload.numel() == payload_bytes(
        [Descriptor.of(t.shape, t.dtype, codec) for t, codec in zip(tensors, codecs, strict=True)]
    )
    for tensor, codec, read in zip(tensors, codecs, decode(payload), strict=True):
        assert read.shape == tensor.shape
        assert read.dtype == tensor.dtype
        assert bool(read.isfinite().all())
        if codec == Exact():
            assert torch.equal(read, tensor)
    # Replicas of a worker write the same payload.
    assert torch.equal(encode(tensors, codecs), payload)


@settings(max_examples=60, deadline=None)
@given(SHAPES.filter(lambda shape: math.prod(shape) > 0), BITS, st.booleans(), SEEDS)
def test_linear_levels_are_never_off_by_more_than_half_a_step(
    shape: tuple[int, ...], bits: int, by_row: bool, seed: int
) -> None:
    tensor = values(shape, torch.float32, seed)
    (read,) = decode(encode([tensor], [Linear(bits, by_row)]))
    rows = tensor.reshape(len(tensor) if by_row and tensor.ndim > 1 else 1, -1)
    step = (rows.amax(dim=1) - rows.amin(dim=1)) / (2**bits - 1)
    off = (read.reshape(rows.shape) - rows).abs().amax(dim=1)
    assert bool((off <= step * 0.5001 + 1e-6 * rows.abs().amax(dim=1)).all())


@settings(max_examples=60, deadline=None)
@given(SHAPES.filter(lambda shape: math.prod(shape) > 0), BITS, SEEDS)
def test_statistical_levels_keep_the_sum_and_are_means_of_bins(shape: tuple[int, ...], bits: int, seed: int) -> None:
    tensor = values(shape, torch.float32, seed)
    (read,) = decode(encode([tensor], [Statistical(bits)]))
    for level in read.unique():
        assert float(tensor[read == level].double().mean()) == pytest.approx(float(level), rel=1e-5, abs=1e-30)
    spread = float((tensor.double() - tensor.double().mean()).square().mean().sqrt())
    width = 6 * spread / 2**bits
    inside = (tensor - tensor.mean()).abs() < 0.999 * (3 * spread - width)  # the outermost bins take what lies beyond
    assert float((read - tensor).abs()[inside].amax() if inside.any() else 0) <= width * 1.001 + 1e-6 * spread


@pytest.mark.parametrize(("rows", "columns"), [(1, 5000), (3, 2048), (7, 100), (1, 1)])
def test_a_gpus_sums_are_those_of_all_values_and_none_is_long(rows: int, columns: int) -> None:
    """What a GPU does, here on the CPU. All values of a long row may have one code."""
    generator = torch.Generator().manual_seed(0)
    values = torch.randn(rows, columns, generator=generator)
    for codes in (
        torch.randint(0, 4, (rows, columns), generator=generator, dtype=torch.uint8),
        torch.full((rows, columns), 2, dtype=torch.uint8),
    ):
        bins, _ = _bins_of_runs(codes, 4)
        assert bins.flatten().bincount().max() <= 1024
        expected = torch.stack(
            [torch.where(codes == level, values, 0).double().sum(dim=1) for level in range(4)], dim=1
        )
        torch.testing.assert_close(_sums_in_order(values, codes, 4), expected, rtol=1e-9, atol=1e-9)


def test_an_independent_quantiser_agrees() -> None:
    tensor = values((50, 30), torch.float32, 3)
    (read,) = decode(encode([tensor], [Statistical(2)]))
    flat = tensor.double().flatten()
    mean, spread = flat.mean(), flat.std(correction=0)
    bins = ((flat - mean) / (6 * spread / 4) + 2).floor().clamp(0, 3)
    expected = torch.stack([flat[bins == b].mean() for b in bins])
    torch.testing.assert_close(read.flatten().double(), expected, rtol=1e-5, atol=1e-9)


@settings(max_examples=60, deadline=None)
@given(st.integers(1, 400), st.floats(0.01, 0.99), SEEDS)
def test_top_k_keeps_the_largest_and_nothing_else(size: int, fraction: float, seed: int) -> None:
    tensor = values((size,), torch.float32, seed)
    (read,) = decode(encode([tensor], [TopK(fraction)]))
    kept = read != 0
    assert int(kept.sum()) == max(1, round(fraction * size))
    assert torch.equal(read[kept], tensor[kept])
    assert float(tensor[kept].abs().min()) >= float(tensor[~kept].abs().max() if (~kept).any() else 0)


@settings(max_examples=60, deadline=None)
@given(SHAPES, st.sampled_from([16, 64]), st.floats(0.1, 0.9), SEEDS)
def test_top_k_of_chunks_keeps_the_largest_of_each(
    shape: tuple[int, ...], chunk: int, fraction: float, seed: int
) -> None:
    tensor = values(shape, torch.float32, seed)
    (read,) = decode(encode([tensor], [TopK(fraction, Exact(), chunk)]))
    rows = shape[0] if len(shape) > 1 else 1
    matrix, found = (t.reshape(rows, -1) if t.numel() else t.reshape(0, 0) for t in (tensor, read))
    side, of_chunk = math.isqrt(chunk), round(fraction * chunk)
    height, width = (1, chunk) if rows == 1 else (side, side)
    for i in range(0, matrix.shape[0], height):
        for j in range(0, matrix.shape[1], width):
            block, own = (m[i : i + height, j : j + width].flatten() for m in (matrix, found))
            sent = min(len(block), max(1, round(of_chunk * len(block) / chunk)))
            largest = block.abs().sort(descending=True, stable=True).indices[:sent]
            expected = torch.zeros_like(block)
            expected[largest] = block[largest]
            assert torch.equal(own, expected)


def test_equal_values_and_values_that_are_no_numbers_are_sent_too() -> None:
    same = torch.full((100,), 2.0)
    (read,) = decode(encode([same], [TopK(0.1)]))
    assert read.tolist() == [2.0] * 10 + [0.0] * 90
    (read,) = decode(encode([same.view(10, 10)], [TopK(0.25, Exact(), 16)]))
    assert read[:4, :4].tolist() == [[2.0] * 4, *[[0.0] * 4] * 3]
    assert int((read != 0).sum()) == 4 * 4 + 2 * 2 * 2 + 1
    broken = torch.tensor([1.0, float("nan"), float("inf"), -1.0])
    for codec in (Exact(), Statistical(4), Linear(2), TopK(0.5), TopK(0.5, Linear(4)), TopK(0.5, Linear(4), 16)):
        # A diverged run stays recognisable as one.
        (read,) = decode(encode([broken], [codec]))
        assert not read.isfinite().all()


@pytest.mark.parametrize(
    ("codec", "levels"),
    [(Statistical(b), 4 * 2**b) for b in (2, 4, 8)] + [(Linear(b), 8) for b in (2, 4, 8)],
)
def test_bytes_are_the_formula(codec: Statistical | Linear, levels: int) -> None:
    rows, columns = 512, 1408
    payload = encode([values((rows, columns), torch.float32, 1)], [codec])
    head = 32 + 12 + 2 * 4 + 4  # fixed part, descriptor, shape, padding
    assert payload.numel() == head + levels + rows * columns * codec.bits // 8
    by_row = type(codec)(codec.bits, by_row=True)
    payload = encode([values((rows, columns), torch.float32, 1)], [by_row])
    assert payload.numel() == head + rows * levels + rows * columns * codec.bits // 8
    if codec.bits == 2:
        exact = encode([values((rows, columns), torch.float32, 1)], [Exact()])
        assert exact.numel() - head == 16 * (rows * columns * 2 // 8)


def test_top_k_bytes_are_the_formula() -> None:
    sent, head = 100, 32 + 12 + 4
    assert encode([values((10_000,), torch.float32, 1)], [TopK(0.01)]).numel() == head + sent * 8
    assert encode([values((10_000,), torch.float32, 1)], [TopK(0.01, Linear(4))]).numel() == head + sent * 4 + 8 + 56


def test_chunks_indices_take_two_bytes() -> None:
    head, sent = 32 + 12 + 2 * 4 + 4, 8 * 22 * 64
    payload = encode([values((512, 1408), torch.float32, 1)], [TopK(1 / 64, Statistical(2), 4096)])
    assert payload.numel() == head + 2 * sent + 4 * 4 + sent // 4
    # The largest index of the largest chunk has no sign.
    last = torch.zeros(256, 256)
    last[255, 255] = 1
    assert torch.equal(decode(encode([last], [TopK(1 / 65536, Exact(), 65536)]))[0], last)


@settings(max_examples=80, deadline=None)
@given(CODECS, st.data())
def test_a_damaged_payload_raises(codec: AnyCodec, data: st.DataObject) -> None:
    payload = encode([values((9, 11), torch.float32, 5), values((3,), torch.float32, 6)], [codec, Exact()])
    damage = data.draw(st.sampled_from(["bit", "words exchanged", "cut", "longer", "noise"]))
    damaged = payload.clone()
    place = data.draw(st.integers(0, payload.numel() - 1))
    match damage:
        case "bit":
            damaged[place] ^= 1 << data.draw(st.integers(0, 7))
        case "words exchanged":
            words, other = damaged.view(torch.int32), data.draw(st.integers(0, payload.numel() // 4 - 1))
            words[[place // 4, other]] = words[[other, place // 4]]
        case "cut":
            damaged = damaged[:place]
        case "longer":
            damaged = torch.cat([damaged, damaged[:8]])
        case "noise":
            damaged = torch.randint(0, 256, (place,), dtype=torch.uint8)
    if torch.equal(damaged, payload):
        return
    with pytest.raises(PayloadError):
        decode(damaged)


def test_words_exchanged_over_a_long_way_are_noticed() -> None:
    payload = encode([values((300, 500), torch.float32, 5)], [Exact()])
    words = payload.view(torch.int32)
    for distance in (1 << 10, 1 << 16, 1 << 17):
        damaged = words.clone()
        damaged[[100, 100 + distance]] = words[[100 + distance, 100]]
        with pytest.raises(PayloadError):
            decode(damaged.view(torch.uint8))


def test_a_foreign_payload_of_the_right_checksum_raises() -> None:
    payload = encode([values((4, 4), torch.float32, 5)], [Exact()])
    assert torch.equal(decode(payload)[0], values((4, 4), torch.float32, 5))
    # Zero, tensors, length of the head; codec, bits, rows apart, dtype, dimensions, chunks, number sent, rows.
    for place in (6, 8, 12, 32, 33, 34, 35, 36, 37, 38, 40, 44):
        foreign = payload.clone()
        foreign[place] += 9
        foreign[16:32] = as_bytes(_checksum(foreign))
        with pytest.raises(PayloadError):
            decode(foreign)


@pytest.mark.parametrize(
    ("place", "value", "words"),
    [(44, 1, "10 of 7 values"), (72, 255, "indices"), (75, 255, "indices"), (76, 0, "indices")],
    ids=["more than there are", "beyond the end", "negative", "twice the same"],
)
def test_indices_that_cannot_be_are_refused(place: int, value: int, words: str) -> None:
    payload = encode([torch.ones(5, 7), torch.ones(3)], [TopK(0.3), Exact()])
    assert payload[72:80].view(torch.int32).tolist() == [0, 1]
    payload[place] = value
    payload[16:32] = as_bytes(_checksum(payload))
    with pytest.raises(PayloadError, match=words):
        decode(payload)


@pytest.mark.parametrize("value", [0, 9], ids=["twice the same", "beyond the end"])
def test_indices_beyond_their_chunk_are_refused(value: int) -> None:
    payload = encode([torch.ones(3, 3)], [TopK(0.25, Exact(), 16)])
    assert payload[56:60].view(torch.int16).tolist() == [0, 1]
    payload[58] = value
    payload[16:32] = as_bytes(_checksum(payload))
    with pytest.raises(PayloadError, match="ascending ones of chunks of 9 values"):
        decode(payload)


def test_tensors_of_a_wrong_shape_are_refused_of_any_size() -> None:
    payload = encode([torch.ones(5, 7)], [TopK(0.3)])
    assert decode(payload, [(5, 7)])[0].shape == (5, 7)
    payload[44:48].view(torch.int32)[:] = 2**31 - 1  # rows
    payload[16:32] = as_bytes(_checksum(payload))
    with pytest.raises(PayloadError, match=r"shapes \[\(2147483647, 7\)\] were received where \[\(5, 7\)\] were due"):
        decode(payload, [(5, 7)])


def test_more_values_than_indices_can_number_are_refused_unsent() -> None:
    assert Descriptor.of((2**16, 2**15 - 1), torch.float32, TopK(0.5)).count == 2**30 - 2**15
    with pytest.raises(ValueError, match="top-k of 2147483648 values"):
        Descriptor.of((2**16, 2**15), torch.float32, TopK(0.01))


@pytest.mark.parametrize("power", [-100, -60, 60, 100])
@pytest.mark.parametrize("codec", [Statistical(2), Statistical(8, True), Linear(4), Linear(4, True)], ids=str)
def test_the_scale_of_the_values_does_not_matter(codec: AnyCodec, power: int) -> None:
    tensor = values((20, 30), torch.float32, 3)
    (read,), (scaled,) = (decode(encode([t], [codec])) for t in (tensor, tensor * 2.0**power))
    assert torch.equal(scaled, read * 2.0**power)
