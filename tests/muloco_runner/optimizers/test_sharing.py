"""Two ranks that share Muon's work do what one does alone: replicas, and parameters sharded by fully_shard."""

from __future__ import annotations

import importlib.util
import os
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
from forked import ForkedProcess

from muloco_runner.distributed.ownership import OwnerAssignment, rounds_of
from muloco_runner.optimizers.orthogonalize import cpu

HAS_TRITON = find_spec("triton") is not None
SCRIPT = Path(__file__).parent / "sharing_ranks.py"


@pytest.fixture(scope="module")
def ranks() -> ModuleType:
    spec = importlib.util.spec_from_file_location("sharing_ranks", SCRIPT)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def outcomes(tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, Any]]:
    """What each of the two ranks came to."""
    folder = tmp_path_factory.mktemp("ranks")
    processes = [ForkedProcess(SCRIPT, [str(folder), str(rank)]) for rank in range(2)]
    assert [process.wait() for process in processes] == [0, 0], "\n".join(one.errors() for one in processes)
    return outcomes_in(folder)


@pytest.fixture(scope="module")
def interpreted_outcomes(tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, Any]]:
    """The same where triton, which must find TRITON_INTERPRET when it is first imported, interprets its kernels."""
    folder = tmp_path_factory.mktemp("interpreted")
    environment = {**os.environ, "TRITON_INTERPRET": "1"}
    processes = [
        subprocess.Popen([sys.executable, str(SCRIPT), str(folder), str(rank)], env=environment) for rank in range(2)
    ]
    assert [process.wait(timeout=600) for process in processes] == [0, 0]
    return outcomes_in(folder)


def outcomes_in(folder: Path) -> list[dict[str, Any]]:
    return [torch.load(folder / f"{rank}.pt", weights_only=True) for rank in range(2)]


@pytest.fixture(autouse=True)
def fast_path(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cpu, "has_bfloat16", lambda: True)
    monkeypatch.setattr(cpu, "SMALLEST_BFLOAT16_SIDE", 4)


@pytest.mark.parametrize("backend", ["reference", "cpu"])
@pytest.mark.parametrize("placement", ["replicas", "sharded"])
def test_sharing_equals_one_rank_also_through_a_checkpoint(
    placement: str, backend: str, outcomes: list[dict[str, Any]], ranks: ModuleType
) -> None:
    model, _ = ranks.alone(backend)
    for outcome in outcomes:
        for shared, whole in zip(outcome[f"{placement}-{backend}"]["values"], model.parameters(), strict=True):
            # The reference multiplies a whole bucket in one call, which rounds otherwise than a matrix alone.
            assert torch.equal(shared, whole) or backend == "reference"
            torch.testing.assert_close(shared, whole.detach(), rtol=1e-5, atol=1e-6)


@pytest.mark.thorough
@pytest.mark.skipif(not HAS_TRITON and "MULOCO_REQUIRE_TRITON" not in os.environ, reason="needs triton")
@pytest.mark.parametrize("placement", ["replicas", "sharded"])
def test_sharing_leads_to_what_fused_kernels_do_alone(
    placement: str, interpreted_outcomes: list[dict[str, Any]]
) -> None:
    """But for the rounding of what travels: alone, the last product goes into the weights in float32."""
    for outcome in interpreted_outcomes:
        for shared, whole in zip(outcome[f"{placement}-triton"]["values"], outcome["alone-triton"], strict=True):
            # lr .05, elements of the orthogonalised matrices near 1/sqrt(33), four steps, 11 bits.
            torch.testing.assert_close(shared, whole, rtol=1e-6, atol=1e-4)
    for mine, other in zip(
        *(outcome[f"{placement}-triton"]["values"] for outcome in interpreted_outcomes), strict=True
    ):
        assert torch.equal(mine, other)


@pytest.mark.parametrize("placement", ["replicas", "sharded"])
def test_the_saved_state_is_that_of_one_rank(placement: str, outcomes: list[dict[str, Any]], ranks: ModuleType) -> None:
    _, optimizer = ranks.alone("reference", range(2))
    expected = optimizer.state_dict()
    for outcome in outcomes:
        saved = outcome[f"{placement}-reference"]["saved"]
        assert saved["param_groups"] == expected["param_groups"]
        assert saved["state"].keys() == expected["state"].keys()
        for number, state in expected["state"].items():
            assert state.keys() == saved["state"][number].keys()
            for name, value in state.items():
                assert torch.equal(value, saved["state"][number][name])


def test_each_momentum_lies_on_one_rank(outcomes: list[dict[str, Any]], ranks: ModuleType) -> None:
    held = [outcome["replicas-reference"]["held"] for outcome in outcomes]
    assert sum(held) == sum(rows * columns for rows, columns in ranks.SHAPES)
    assert min(held) > 0


def test_local_gradients_are_averaged_and_clipped_as_a_whole(outcomes: list[dict[str, Any]], ranks: ModuleType) -> None:
    model, _ = ranks.alone("reference", clip=ranks.CLIP)
    for outcome in outcomes:
        for shared, whole in zip(outcome["local_gradients"]["values"], model.parameters(), strict=True):
            torch.testing.assert_close(shared, whole, rtol=2e-5, atol=1e-6)
    for step, norm in enumerate(outcomes[0]["local_gradients"]["norms"]):
        gradients = [ranks.gradient(step, index, p.shape) for index, p in enumerate(model.parameters())]
        expected = torch.cat([gradient.flatten() for gradient in gradients if gradient is not None]).norm()
        torch.testing.assert_close(norm, expected)


@pytest.mark.parametrize("how", ["several_sharded", "several_replicated", "repointed"])
def test_fused_matrices_batches_and_filters_are_shared(
    how: str, outcomes: list[dict[str, Any]], ranks: ModuleType
) -> None:
    """Also by an optimizer whose parameters were replaced by rows of them."""
    model = ranks.several()
    ranks.train_several(model, ranks.muon_of_several(model))
    for outcome in outcomes:
        for shared, whole in zip(outcome[how], model.parameters(), strict=True):
            torch.testing.assert_close(shared, whole.detach(), rtol=1e-5, atol=1e-6)


def test_a_rank_without_a_matrix_takes_part(outcomes: list[dict[str, Any]]) -> None:
    mine, other = (outcome["one_matrix"] for outcome in outcomes)
    assert torch.equal(mine, other)
    assert 0.9 < mine[0, 0] < 0.97


def test_what_ranks_send_is_told(outcomes: list[dict[str, Any]], ranks: ModuleType) -> None:
    # The largest matrix is one rank's, all others are the other's, and both send as much: gradients before the step,
    # results after it. All else, the norm of each of nine gradients and whether it exists, is summed over both.
    largest, rest, norms = 35 * 33, 7 + 11 * 4, 2 * 9
    assert largest > sum(rows * columns for rows, columns in ranks.SHAPES) - largest
    padding = -largest % 8
    sent = 4 * 4 * (2 * (largest + padding) + rest + norms)
    assert [outcome["local_gradients"]["bytes_sent"] for outcome in outcomes] == [sent] * 2


def test_matrices_are_assigned_evenly_by_their_arithmetic() -> None:
    assignment = OwnerAssignment(8)
    large = assignment.assign(12, 4224, 1536)
    small = assignment.assign(72, 1536, 1536)
    assert {large.count(rank) for rank in range(8)} == {1, 2}
    assert max(assignment.loads) < 1.1 * sum(assignment.loads) / 8
    assert {small.count(rank) for rank in range(8) if large.count(rank) == 2} != {9}


def test_rounds_hold_every_matrix_once() -> None:
    rounds = rounds_of([0, 1, 1, 1, 2, 1], 3, at_once=2)
    assert rounds == [[[0], [1, 2], [4]], [[], [3, 5], []]]
