"""Every backend for CPUs against the same polynomial in float64, on the inputs that break orthogonalisation."""

from __future__ import annotations

import re
from types import SimpleNamespace

import pytest
import torch
from torch import Tensor

from muloco_runner.config import ConfigError, ModelConfig
from muloco_runner.muon_rule.polynomial import named_polynomial
from muloco_runner.optimizers import orthogonalize as orthogonalize_package
from muloco_runner.optimizers.orthogonalize import choose_backend, cpu, orthogonalize
from muloco_runner.optimizers.orthogonalize.reference import normalise, orthogonalize_reference

NAMES = ("muloco", "keller_jordan", "polar_express")
# Relative Frobenius distance to the polynomial in float64: (input of full rank, rank-deficient input).
TOLERANCES = {"reference": (1e-4, 1e-4), "float32": (1e-4, 1e-4), "bfloat16": (8e-2, 0.3)}
BACKENDS = tuple(TOLERANCES)


@pytest.fixture(params=BACKENDS)
def backend(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """The reference, and the CPU backend as on a processor with and without bfloat16."""
    monkeypatch.setattr(cpu, "has_bfloat16", lambda: request.param == "bfloat16")
    monkeypatch.setattr(cpu, "SMALLEST_BFLOAT16_SIDE", 1)
    return str(request.param)


def run(x: Tensor, backend: str, name: str = "muloco") -> Tensor:
    kind = "reference" if backend == "reference" else "cpu"
    return orthogonalize(x, named_polynomial(name, 5), kind)


def exact(x: Tensor, name: str = "muloco") -> Tensor:
    return orthogonalize_reference(x.double(), named_polynomial(name, 5))


def exact_of_normalised(x: Tensor, name: str) -> Tensor:
    x = x.double()
    for a, b, c in named_polynomial(name, 5).steps:
        gram = x @ x.mT
        x = a * x + (b * gram + c * gram @ gram) @ x
    return x


def relative_error(x: Tensor, expected: Tensor) -> float:
    return float((x.double() - expected).norm() / expected.norm())


def random(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def ladder_shapes(width: int) -> list[tuple[int, int]]:
    ffn = ModelConfig(width=width).ffn_width
    return [(width, width), (width, ffn), (ffn, width)]


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize(
    "shape", [(1, 1), (1, 40), (40, 1), (17, 31), (31, 17), (96, 96), (130, 300), (300, 130), (300, 300)]
)
def test_follows_the_polynomial_in_float64(name: str, shape: tuple[int, int], backend: str) -> None:
    x = random(3, *shape)
    result = run(x, backend, name)
    assert result.dtype == torch.float32
    assert relative_error(result, exact(x, name)) < TOLERANCES[backend][0]
    assert torch.linalg.matrix_norm(result, 2).max() < 1.3


@pytest.mark.parametrize("shape", [*ladder_shapes(512), *ladder_shapes(1024)[:2]])
def test_follows_the_polynomial_at_the_ladders_shapes(shape: tuple[int, int]) -> None:
    x = random(1, *shape)
    assert relative_error(run(x, "auto"), exact(x)) < TOLERANCES["bfloat16"][0]


@pytest.mark.parametrize("rank", [1, 5, 20])
@pytest.mark.parametrize("shape", [(48, 48), (40, 120), (120, 40), (280, 600), (390, 600)])
def test_rank_deficient_input(rank: int, shape: tuple[int, int], backend: str) -> None:
    """Rounding the input to bfloat16 alone fills its null space, and the polynomial raises small singular values up
    to 400-fold: an error of .8 at rank 1. So bfloat16 is held to the polynomial of the input as it stores it, and to
    an error at most that of the usual loop."""
    rows, columns = shape
    x = (random(rows, rank, seed=1) @ random(rank, columns, seed=2))[None]
    result = run(x, backend)
    if backend == "bfloat16":
        stored = normalise(x, named_polynomial("muloco", 5)).bfloat16()
        assert relative_error(result, exact(stored)) < TOLERANCES[backend][1]
        usual = orthogonalize_reference(x.bfloat16(), named_polynomial("muloco", 5))
        assert relative_error(result, exact(x)) < relative_error(usual, exact(x))
    else:
        assert relative_error(result, exact(x)) < TOLERANCES[backend][1]


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize(("spikes", "height"), [(1, 3.0), (1, 30.0), (1, 100.0), (1, 1000.0), (3, 10.0)])
def test_singular_values_that_outweigh_all_others(spikes: int, height: float, name: str, backend: str) -> None:
    """As gradients have them. Of a shape whose steps run on the Gram matrix alone."""
    rows, columns = 390, 600
    left = torch.linalg.qr(random(rows, rows, seed=1))[0]
    right = torch.linalg.qr(random(columns, rows, seed=2))[0]
    values = torch.ones(rows)
    values[:spikes] = height
    x = (left * values @ right.T)[None]
    stored = normalise(x, named_polynomial(name, 5))
    expected = exact_of_normalised(stored.bfloat16() if backend == "bfloat16" else stored, name)
    result = run(x, backend, name)
    assert relative_error(result, expected) < TOLERANCES[backend][0]
    assert torch.linalg.matrix_norm(result, 2) < 1.3


@pytest.mark.parametrize("scale", [1e-30, 1e-12, 1e12, 1e30])
@pytest.mark.parametrize("shape", [(48, 48), (40, 120), (120, 40)])
def test_the_scale_of_the_input_does_not_matter(scale: float, shape: tuple[int, int], backend: str) -> None:
    x = random(2, *shape)
    # The scaled input is itself rounded, and another rounding of bfloat16 may follow from it.
    assert relative_error(run(x * scale, backend), run(x, backend).double()) < TOLERANCES[backend][0] / 10
    assert torch.equal(run(x * 2.0**-40, backend), run(x, backend))


@pytest.mark.parametrize("shape", [(48, 48), (40, 120), (120, 40)])
def test_zeros_stay_and_what_is_not_finite_stays_in_its_matrix(shape: tuple[int, int], backend: str) -> None:
    matrices = random(4, *shape)
    matrices[0] = 0
    matrices[1, 2, 3] = torch.nan
    matrices[2, 3, 2] = torch.inf
    result = run(matrices, backend)
    assert not result[0].any()
    assert result[1].isnan().any()
    assert result[2].isnan().any()
    assert torch.equal(result[3:], run(matrices[3:], backend))


def test_the_input_is_left_as_it_is(backend: str) -> None:
    x = random(2, 40, 120)
    before = x.clone()
    run(x, backend)
    assert torch.equal(x, before)


@pytest.mark.parametrize("shape", [(48, 48), (120, 40), (130, 300)])
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_halves_are_computed_wider_on_a_cpu_and_given_back(dtype: torch.dtype, shape: tuple[int, int]) -> None:
    x = random(2, *shape).to(dtype)
    assert torch.equal(run(x, "cpu"), run(x.float(), "cpu").to(dtype))


def test_bfloat16_is_at_most_as_far_off_as_the_usual_loop_in_it(monkeypatch: pytest.MonkeyPatch) -> None:
    """Keller Jordan's loop: cast first, then normalise, every sum rounded."""
    monkeypatch.setattr(cpu, "has_bfloat16", lambda: True)
    for shape in [(256, 256), (400, 1000), (1000, 400)]:
        x = random(*shape)
        usual = orthogonalize_reference(x.bfloat16(), named_polynomial("keller_jordan", 5))
        expected = exact(x, "keller_jordan")
        ours = run(x[None], "bfloat16", "keller_jordan")[0]
        assert relative_error(ours, expected) <= relative_error(usual, expected)


@pytest.mark.parametrize("threads", [2, 3, 8])
def test_threads_divide_the_matrices_of_a_batch(threads: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cpu, "has_bfloat16", lambda: True)
    x, before = random(5, 130, 300), torch.get_num_threads()
    try:
        torch.set_num_threads(1)
        alone = run(x, "cpu")
        torch.set_num_threads(threads)
        assert torch.equal(run(x, "cpu"), alone)
        assert torch.get_num_threads() == threads
        monkeypatch.setattr(cpu, "_Workspace", None)
        with pytest.raises(TypeError):
            run(x, "cpu")
        assert torch.get_num_threads() == threads
    finally:
        torch.set_num_threads(before)


def test_a_bad_backend_and_a_matrix_without_a_batch_are_refused() -> None:
    with pytest.raises(ValueError, match=r"shape \(4, 6\): must be a batch of matrices"):
        orthogonalize(random(4, 6), named_polynomial("muloco", 5))
    assert choose_backend("auto", torch.device("cpu")) == "cpu"
    with pytest.raises(ConfigError, match="must be one of auto, reference, cpu"):
        choose_backend("fast", torch.device("cpu"))
    with pytest.raises(ConfigError, match="cannot work on cuda"):
        choose_backend("cpu", torch.device("cuda"))


@pytest.mark.parametrize(
    ("capability", "shared", "why"),
    [
        ((9, 0), 232_448, None),
        ((10, 0), 232_448, None),
        ((10, 3), 232_448, None),
        ((8, 0), 166_912, r"A GPU has compute capability 8\.0: they need 9\.0"),
        ((12, 0), 101_376, r"A GPU offers 101,376 bytes of shared memory a block: they need 197,632"),
    ],
)
def test_auto_chooses_kernels_where_they_fit(
    monkeypatch: pytest.MonkeyPatch, capability: tuple[int, int], shared: int, why: str | None
) -> None:
    pytest.importorskip("triton")
    major, minor = capability
    gpu = SimpleNamespace(name="A GPU", major=major, minor=minor, shared_memory_per_block_optin=shared)
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda device: gpu)
    monkeypatch.setattr(orthogonalize_package, "find_spec", lambda name: object())
    orthogonalize_package.why_no_kernels.cache_clear()
    try:
        assert choose_backend("auto", torch.device("cuda", 0)) == ("reference" if why else "triton")
        said = orthogonalize_package.why_no_kernels(torch.device("cuda", 0))
        assert said is None if why is None else re.search(why, str(said)), said
    finally:
        orthogonalize_package.why_no_kernels.cache_clear()
