"""Muon against the same polynomial in float64, against torch's own Muon, and through a checkpoint."""

from __future__ import annotations

import copy
import io
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from muloco_runner.muon_rule.polynomial import named_polynomial
from muloco_runner.optimizers import Muon
from muloco_runner.optimizers.orthogonalize.reference import orthogonalize_reference
from muloco_runner.optimizers.parameter_groups import parameter_groups

NAMES = ("muloco", "keller_jordan", "polar_express")


def relative_error(x: Tensor, exact: Tensor) -> float:
    return float((x.double() - exact.double()).norm() / exact.double().norm())


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("shape", [(32, 32), (24, 80), (80, 24), (1, 40), (3, 17, 31)])
@pytest.mark.parametrize("size", [1e-12, 1.0, 1e25])
def test_float32_follows_the_scalar_polynomial_in_float64(name: str, shape: tuple[int, ...], size: float) -> None:
    x = torch.randn(shape, generator=torch.Generator().manual_seed(0)) * size
    polynomial = named_polynomial(name, 5)
    u, s, v = torch.linalg.svd(x.double(), full_matrices=False)
    s = s / (s.norm(dim=-1, keepdim=True) * polynomial.norm_margin)
    for a, b, c in polynomial.steps:
        s = a * s + b * s**3 + c * s**5
    exact = (u * s.unsqueeze(-2)) @ v
    assert relative_error(orthogonalize_reference(x, polynomial), exact) < 1e-4


@pytest.mark.parametrize("name", NAMES)
def test_zeros_give_zeros_and_a_nan_stays_in_its_matrix(name: str) -> None:
    matrices = torch.randn(3, 16, 24, generator=torch.Generator().manual_seed(1))
    matrices[0] = 0
    matrices[1, 2, 3] = torch.nan
    result = orthogonalize_reference(matrices, named_polynomial(name, 5))
    assert not result[0].any()
    assert result[1].isnan().any()
    alone = orthogonalize_reference(matrices[2:], named_polynomial(name, 5))[0]
    assert relative_error(result[2], alone) < 1e-5


def test_an_update_is_torchs_own_where_conventions_agree() -> None:
    """torch orthogonalises in bfloat16, hence the tolerance of that format."""
    generator = torch.Generator().manual_seed(2)
    ours, theirs = (nn.Parameter(torch.zeros(32, 64)) for _ in range(2))
    mine = Muon([ours], 0.1, momentum=0.95, momentum_form="ema", nesterov=True, lr_scale="keller_jordan",
                coefficients="keller_jordan")  # fmt: skip
    torchs = torch.optim.Muon([theirs], lr=0.1, momentum=0.95, nesterov=True, weight_decay=0.0)
    for _ in range(3):
        ours.grad = torch.randn(32, 64, generator=generator)
        theirs.grad = ours.grad.clone()
        mine.step()
        torchs.step()
    assert relative_error(theirs.detach(), ours.detach()) < 8e-2


def test_the_sum_form_and_decay_are_as_written() -> None:
    weight = nn.Parameter(torch.eye(4, 6))
    optimizer = Muon([weight], 0.5, momentum=0.9, weight_decay=0.1)
    expected, momentum = weight.detach().clone(), torch.zeros(4, 6)
    generator = torch.Generator().manual_seed(3)
    for _ in range(3):
        weight.grad = torch.randn(4, 6, generator=generator)
        momentum = 0.9 * momentum + weight.grad
        update = orthogonalize_reference(momentum, named_polynomial("muloco", 5))
        expected = expected * (1 - 0.5 * 0.1) - 0.5 * (4 / 6) ** 0.5 * update
        optimizer.step()
    torch.testing.assert_close(weight.detach(), expected, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("algorithm", ["muon", "adamw"])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_cautious_decay_is_of_weights_that_agree_with_their_update(algorithm: str, dtype: torch.dtype) -> None:
    generator = torch.Generator().manual_seed(3)
    weights = [nn.Parameter(torch.randn(4, 6, generator=generator).to(dtype)) for _ in range(2)]
    with torch.no_grad():
        weights[0][0] = 0  # stays where a product of 0 decays
    start = [weight.detach().clone() for weight in weights]
    without = [nn.Parameter(one.clone()) for one in start]
    lr, decay = 0.05, 0.4
    groups: list[dict[str, Any]] = [{"params": those, "algorithm": algorithm} for those in (weights, without)]
    cautious = Muon(groups[:1], lr, weight_decay=decay, weight_decay_form="cautious", backend="reference")
    plain = Muon(groups[1:], lr, weight_decay=0.0, backend="reference")
    for _ in range(3):
        for ours, theirs in zip(weights, without, strict=True):
            theirs.data.copy_(ours.data)
            ours.grad = torch.randn(4, 6, generator=generator).to(dtype)
            theirs.grad = ours.grad.clone()
        before = [weight.detach().clone() for weight in weights]
        cautious.step()
        plain.step()
        for ours, theirs, w in zip(weights, without, before, strict=True):
            update = w - theirs.detach()  # lr times the paper's u
            agrees = update * w >= 0
            assert 0 < agrees.sum() < agrees.numel()
            expected = w - lr * decay * agrees * w - update
            torch.testing.assert_close(ours.detach(), expected, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("nesterov", [False, True])
@pytest.mark.parametrize("form", ["sum", "ema"])
@pytest.mark.parametrize(
    ("scale", "factors"),  # of shapes 4 x 9 and 9 x 4
    [("spectral", (2 / 3, 1.5)), ("keller_jordan", (1.0, 1.5)), ("moonlight", (0.6, 0.6))],
)
def test_every_scale_and_form_of_momentum_is_as_written(
    scale: Any, factors: tuple[float, float], form: Any, nesterov: bool
) -> None:
    generator = torch.Generator().manual_seed(6)
    matrices = [nn.Parameter(torch.randn(shape, generator=generator).double()) for shape in ((4, 9), (9, 4))]
    optimizer = Muon(
        matrices, 0.1, momentum=0.8, momentum_form=form, nesterov=nesterov, lr_scale=scale, weight_decay=0.3
    )
    expected = [matrix.detach().clone() for matrix in matrices]
    momenta = [torch.zeros_like(matrix) for matrix in expected]
    share = 1.0 if form == "sum" else 0.2
    for _ in range(4):
        for place, (matrix, factor) in enumerate(zip(matrices, factors, strict=True)):
            matrix.grad = torch.randn(matrix.shape, generator=generator).double()
            momenta[place] = 0.8 * momenta[place] + share * matrix.grad
            ahead = 0.8 * momenta[place] + share * matrix.grad if nesterov else momenta[place]
            update = orthogonalize_reference(ahead, named_polynomial("muloco", 5))
            expected[place] = expected[place] * (1 - 0.1 * 0.3) - 0.1 * factor * update
        optimizer.step()
    for matrix, one in zip(matrices, expected, strict=True):
        torch.testing.assert_close(matrix.detach(), one, rtol=1e-9, atol=1e-9)


def test_a_resumed_optimizer_continues_to_the_bit() -> None:
    def build() -> tuple[nn.Module, Muon]:
        torch.manual_seed(4)
        model = nn.Sequential(nn.Embedding(11, 8), nn.Linear(8, 8), nn.Linear(8, 8), nn.Linear(8, 11))
        return model, Muon(parameter_groups(model), 0.05, weight_decay=0.01)

    def train(model: nn.Module, optimizer: Muon, steps: range) -> None:
        for step in steps:
            tokens = torch.randint(0, 11, (16,), generator=torch.Generator().manual_seed(step))
            optimizer.zero_grad(set_to_none=True)
            nn.functional.cross_entropy(model(tokens), tokens).backward()
            optimizer.step()

    whole, optimizer = build()
    train(whole, optimizer, range(6))
    first, optimizer = build()
    train(first, optimizer, range(3))
    buffer = io.BytesIO()
    torch.save({"model": first.state_dict(), "optimizer": optimizer.state_dict()}, buffer)
    buffer.seek(0)
    saved = torch.load(buffer, weights_only=True)
    second, optimizer = build()
    second.load_state_dict(saved["model"])
    optimizer.load_state_dict(saved["optimizer"])
    train(second, optimizer, range(3, 6))
    for a, b in zip(whole.parameters(), second.parameters(), strict=True):
        assert torch.equal(a, b)


def test_state_is_float32_from_the_start_whatever_the_parameters() -> None:
    matrices = [nn.Parameter(torch.ones(8, 12, dtype=torch.bfloat16)) for _ in range(3)]
    gain = nn.Parameter(torch.ones(8, dtype=torch.bfloat16))
    optimizer = Muon([{"params": matrices}, {"params": [gain], "algorithm": "adamw"}])
    momenta = [optimizer.state[matrix]["momentum"] for matrix in matrices]
    assert {momentum.dtype for momentum in momenta} == {torch.float32}
    assert {momentum.untyped_storage().data_ptr() for momentum in momenta} == {momenta[0].untyped_storage().data_ptr()}
    assert optimizer.state[gain]["exp_avg_sq"].dtype == torch.float32
    sizes = [value.nbytes for state in optimizer.state.values() for name, value in state.items() if name != "step"]
    assert sum(sizes) == 4 * 3 * 8 * 12 + 8 * 8
    for parameter in (*matrices, gain):
        parameter.grad = torch.full_like(parameter, 1 / 3)
    optimizer.step()
    kept = copy.deepcopy(optimizer.state_dict())
    other = copy.deepcopy(optimizer)
    optimizer.step()
    optimizer.load_state_dict(kept)
    for again in (optimizer, other):
        for parameter, momentum in zip(again.param_groups[0]["params"], momenta, strict=True):
            bank_view = again.state[parameter]["momentum"]
            assert bank_view.dtype == torch.float32
            assert torch.equal(bank_view, torch.full((8, 12), 1 / 3, dtype=torch.bfloat16).float())
            assert (bank_view.data_ptr() == momentum.data_ptr()) == (again is optimizer)


def test_a_matrix_without_a_gradient_stays_as_it_is() -> None:
    matrices = [nn.Parameter(torch.eye(4, 6)) for _ in range(3)]
    alone = nn.Parameter(torch.eye(4, 6))
    optimizer, single = Muon(matrices, 0.1, weight_decay=0.1), Muon([alone], 0.1, weight_decay=0.1)
    for step in range(3):
        gradient = torch.randn(4, 6, generator=torch.Generator().manual_seed(step))
        matrices[1].grad, alone.grad = gradient, gradient.clone()
        optimizer.step()
        single.step()
    assert torch.equal(matrices[0], torch.eye(4, 6))
    assert torch.equal(matrices[2], torch.eye(4, 6))
    torch.testing.assert_close(matrices[1], alone, rtol=1e-5, atol=1e-6)


def test_embedding_head_and_vectors_are_no_matrices_of_muon() -> None:
    model = nn.ModuleDict({"embedding": nn.Embedding(11, 8), "up": nn.Linear(8, 16), "head": nn.Linear(8, 11)})
    muon, adamw = parameter_groups(model)
    assert [tuple(p.shape) for p in muon["params"]] == [(16, 8)]
    assert len(adamw["params"]) == 4
    with pytest.raises(ValueError, match="no matrix"):
        Muon([nn.Parameter(torch.zeros(3))])


def test_threads_share_the_matrices_of_a_step(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("muloco_runner.optimizers.orthogonalize.cpu.has_bfloat16", lambda: True)
    before, found = torch.get_num_threads(), []
    try:
        for threads in (1, 3):
            torch.set_num_threads(threads)
            generator = torch.Generator().manual_seed(0)
            matrices = [nn.Parameter(torch.randn(130, 300, generator=generator)) for _ in range(20)]
            optimizer = Muon(matrices, 0.1, nesterov=True, weight_decay=0.1)
            for step in range(2):
                for matrix in matrices[step:]:  # one has none in the second step
                    matrix.grad = torch.randn(130, 300, generator=generator)
                optimizer.step()
                optimizer.zero_grad()
            found.append([*matrices, *(optimizer.state[matrix]["momentum"] for matrix in matrices)])
            assert torch.get_num_threads() == threads
    finally:
        torch.set_num_threads(before)
    assert all(torch.equal(one, other) for one, other in zip(*found, strict=True))
