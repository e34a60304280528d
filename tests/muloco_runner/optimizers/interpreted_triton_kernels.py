"""Tests of the orthogonalising Triton kernels in Triton's interpreter, on the CPU; those of the steps that have them
fused in are in `interpreted_fused_steps`. `test_triton.py` runs both files with TRITON_INTERPRET=1, which must be set
before triton is first imported. `make test` has each test on the smallest shapes that show it, `make test-thorough` on
the others.

The interpreter truncates where it stores bfloat16, so that format errs up to twice as much here as on a GPU.
"""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from muloco_runner.muon_rule.polynomial import named_polynomial
from muloco_runner.optimizers import Muon
from muloco_runner.optimizers.orthogonalize import orthogonalize, result_dtype
from muloco_runner.optimizers.orthogonalize.reference import normalise, orthogonalize_reference
from muloco_runner.optimizers.orthogonalize.triton import tiles
from muloco_runner.optimizers.orthogonalize.triton.workspace import Workspace, is_interpreted

assert is_interpreted()

NAMES = ("muloco", "keller_jordan", "polar_express")
HALVES = ("triton", "triton_bfloat16")
THOROUGH = pytest.mark.thorough
# Relative Frobenius distance to the polynomial in float64: (square or nearly so, Gram form, rank-deficient).
TOLERANCES = {"triton": (1e-2, 1e-2, 5e-2), "triton_bfloat16": (8e-2, 8e-2, 0.3)}


@pytest.fixture(autouse=True)
def small_tiles(monkeypatch: pytest.MonkeyPatch) -> None:
    """So that small matrices have several tiles, those of the triangle two to a row."""
    monkeypatch.setattr(tiles, "SYMMETRIC", (tiles.Tile(64, 32, 32, 4, 2),))
    monkeypatch.setattr(tiles, "PRODUCT", (tiles.Tile(32, 64, 32, 4, 2),))
    monkeypatch.setattr(tiles, "INTO_PARAMETERS", (tiles.Tile(64, 32, 32, 4, 2),))


def random(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def also(*values: Any) -> list[Any]:
    """The values as parameters for `make test-thorough`."""
    return [pytest.param(value, marks=THOROUGH) for value in values]


def exact(x: Tensor, name: str = "muloco") -> Tensor:
    return orthogonalize_reference(x.double(), named_polynomial(name, 5))


def run(x: Tensor, backend: str, name: str = "muloco") -> Tensor:
    return orthogonalize(x, named_polynomial(name, 5), backend)


def relative_error(x: Tensor, expected: Tensor) -> float:
    return float((x.double() - expected).norm() / expected.norm())


@pytest.mark.parametrize(("name", "backend"), [*((name, "triton") for name in NAMES), ("muloco", "triton_bfloat16")])
@pytest.mark.parametrize("shape", [(1, 133, 33), (1, 64, 64), *also((2, 70, 101), (1, 101, 70), (2, 33, 133))])
def test_follows_the_polynomial_in_float64(shape: tuple[int, ...], name: str, backend: str) -> None:
    x = random(*shape)
    result = run(x, backend, name)
    assert result.dtype == torch.float32
    gram_form = max(shape[1:]) >= 1.5 * min(shape[1:])
    assert relative_error(result, exact(x, name)) < TOLERANCES[backend][gram_form]
    assert torch.linalg.matrix_norm(result, 2).max() < 1.3


@pytest.mark.parametrize("shape", [(1, 1), (2, 31, 31), *also((3, 1, 40), (2, 40, 1), (2, 20, 70))])
def test_short_sides_are_computed_in_float32(shape: tuple[int, ...]) -> None:
    x = random(*shape) if len(shape) == 3 else random(1, *shape)
    assert result_dtype("triton", *x.shape[1:], torch.float32) == torch.float32
    for name in NAMES:
        assert relative_error(run(x, "triton", name), exact(x, name)) < 1e-4


REAL_TILES = {name: getattr(tiles, name) for name in ("SYMMETRIC", "PRODUCT", "INTO_PARAMETERS")}
LARGE = [pytest.param(shape, marks=pytest.mark.long) for shape in [(512, 512), (520, 333)]]


@pytest.mark.parametrize("shape", [*also((130, 290)), *LARGE], ids=str)
def test_the_real_tiles_give_the_same(shape: tuple[int, int], monkeypatch: pytest.MonkeyPatch) -> None:
    """Each tile of the tables, the first of each together; odd sides end inside a tile."""
    x = random(1, *shape)
    expected = exact(x)
    for number in range(max(map(len, REAL_TILES.values()))):
        for name, table in REAL_TILES.items():
            monkeypatch.setattr(tiles, name, table[number:][:1] or table[-1:])
        assert relative_error(run_into_zeros(x), expected) < 2e-2


def run_into_zeros(x: Tensor) -> Tensor:
    """The orthogonalised matrices as a fused step of rate 1 without momentum leaves them in weights that were 0."""
    parameters = [nn.Parameter(torch.zeros_like(matrix)) for matrix in x]
    optimizer = Muon(parameters, 1.0, momentum=0.0, lr_scale="none", weight_decay=0.0, backend="triton")
    for parameter, matrix in zip(parameters, x, strict=True):
        parameter.grad = matrix
    optimizer.step()
    return -torch.stack([parameter.detach() for parameter in parameters])


@pytest.mark.parametrize("backend", HALVES)
@pytest.mark.parametrize("rank", [1, 9])
@pytest.mark.parametrize("shape", [(48, 48), *also((40, 120), (120, 40))])
def test_rank_deficient_input(shape: tuple[int, int], rank: int, backend: str) -> None:
    """Held to the polynomial of the input as stored in half precision: storing alone fills the null space, which the
    polynomial raises up to 400-fold (.1 at rank 1 in float16). The error to the input itself is at most that of the
    usual loop in the same format."""
    rows, columns = shape
    x = (random(rows, rank, seed=1) @ random(rank, columns, seed=2))[None]
    half = torch.float16 if backend == "triton" else torch.bfloat16
    result = run(x, backend)
    if half == torch.float16:
        stored = normalise(x, named_polynomial("muloco", 5)).to(half)
        assert relative_error(result, exact(stored)) < TOLERANCES[backend][2]
    usual = orthogonalize_reference(normalise(x, named_polynomial("muloco", 5)).to(half), named_polynomial("muloco", 5))
    assert relative_error(result, exact(x)) < 1.3 * relative_error(usual, exact(x))


@pytest.mark.parametrize("shape", [(48, 48), *also((120, 40))])
def test_the_scale_of_the_input_does_not_matter(shape: tuple[int, int]) -> None:
    x = random(1, *shape)
    for scale in (1e-30, 1e-12, 1e30):
        assert relative_error(run(x * scale, "triton"), run(x, "triton").double()) < 1e-3
    assert torch.equal(run(x * 2.0**-40, "triton"), run(x, "triton"))


@pytest.mark.parametrize("shape", [(48, 48), (1, 40), *also((40, 120), (120, 40))])
@pytest.mark.filterwarnings("ignore::RuntimeWarning")
def test_zeros_stay_and_what_is_not_finite_stays_in_its_matrix(shape: tuple[int, int]) -> None:
    matrices = random(4, *shape)
    matrices[0] = 0
    matrices[1, 0, 3 % shape[1]] = torch.nan
    matrices[2, 0, 2 % shape[1]] = torch.inf
    result = run(matrices, "triton")
    assert not result[0].any()
    assert result[1].isnan().any()
    assert result[2].isnan().any()
    assert torch.equal(result[3:], run(matrices[3:], "triton"))


def test_symmetric_products_fill_both_triangles_reproducibly() -> None:
    workspace = Workspace(2, 100, 170, torch.float16, torch.device("cpu"))
    workspace.x.copy_(random(2, 100, 170) / 100)
    workspace.gram_MM.fill_(torch.nan)
    workspace._fresh_gram()
    gram = workspace.gram_MM.float()
    assert relative_error(gram, workspace.x.double() @ workspace.x.double().mT) < 1e-3
    again = Workspace(2, 100, 170, torch.float16, torch.device("cpu"))
    again.x.copy_(workspace.x)
    again._fresh_gram()
    assert torch.equal(again.gram_MM, workspace.gram_MM)


def test_a_result_is_the_same_wherever_the_product_writes_it() -> None:
    workspace = Workspace(2, 48, 64, torch.float16, torch.device("cpu"))
    results = []
    for dtype in (torch.float16, torch.float32):
        workspace.x.copy_(random(2, 48, 64) / 60)
        results.append(torch.empty(2, 48, 64, dtype=dtype))
        workspace.finish_to(results[-1], workspace.run(named_polynomial("muloco", 5).steps))
    assert torch.equal(results[0].float(), results[1])
