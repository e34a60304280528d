"""Two, three and four replicas do what one rank does on their mean gradients, also on those that not all have."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import ancestor_rules as rules
import pytest
import replica_ranks as ranks
import torch
from forked import ForkedProcess
from torch import Tensor

from muloco_runner.optimizers import Muon


@pytest.fixture(scope="module")
def outcomes(tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, Any]]:
    """What each of the four ranks came to."""
    folder = tmp_path_factory.mktemp("ranks")
    script = Path(ranks.__file__)
    processes = [ForkedProcess(script, [str(folder), str(rank)]) for rank in range(4)]
    codes = [process.wait() for process in processes]
    assert codes == [0] * 4, "\n".join(process.errors() for process in processes)
    return [torch.load(folder / f"{rank}.pt", weights_only=True) for rank in range(4)]


def agree(ours: list[Tensor], theirs: list[Tensor]) -> None:
    for one, other in zip(ours, theirs, strict=True):
        assert float((one - other).norm() / other.norm()) < 1e-6


def alone(size: int, dropped: bool) -> list[Tensor]:
    """One rank on mean gradients."""
    parameters = ranks.build()
    optimizer = Muon.like("nanochat", ranks.groups(parameters), backend="reference")
    for step in range(ranks.STEPS):
        for index, parameter in enumerate(parameters):
            parameter.grad = ranks.mean_gradient(step, index, size, dropped)
        optimizer.step()
    return [parameter.detach() for parameter in parameters]


@pytest.mark.parametrize("size", [2, 3, 4])
def test_like_nanochat_with_replicas_is_dist_muon(size: int, outcomes: list[dict[str, Any]]) -> None:
    matrices = len(ranks.SHAPES) - 1
    weights: list[Tensor] = [parameter.detach().clone() for parameter in ranks.build()[:matrices]]
    states: list[dict[str, Any]] = [{} for _ in weights]
    for step in range(ranks.STEPS):
        for index, (weight, state) in enumerate(zip(weights, states, strict=True)):
            gradients = [ranks.gradient(step, index, rank, False) for rank in range(size)]
            rules.dist_muon(weight, [g for g in gradients if g is not None], state)
    for outcome in outcomes[:size]:
        agree(outcome[f"{size}-False"][:matrices], weights)


@pytest.mark.parametrize("size", [2, 3, 4])
def test_gradients_that_some_ranks_lack_are_summed(size: int, outcomes: list[dict[str, Any]]) -> None:
    for outcome in outcomes[:size]:
        agree(outcome[f"{size}-True"], alone(size, True))
        for one, other in zip(outcome[f"{size}-True"], outcomes[0][f"{size}-True"], strict=True):
            assert torch.equal(one, other)


@pytest.mark.parametrize("size", [2, 3, 4])
def test_groups_and_state_changed_on_all_ranks_alike_are_followed(size: int, outcomes: list[dict[str, Any]]) -> None:
    parameters = ranks.build()
    optimizer = Muon([{"params": [p]} for p in parameters[:-1]], backend="reference")

    def take_step(step: int) -> None:
        for index, parameter in enumerate(parameters[:-1]):
            parameter.grad = ranks.mean_gradient(step, index, size, False)
        optimizer.step()

    ranks.change(optimizer, take_step)
    for outcome in outcomes[:size]:
        agree(outcome[f"{size}-changed"], [parameter.detach() for parameter in parameters])


def test_gradients_that_differ_between_ranks_are_refused(outcomes: list[dict[str, Any]]) -> None:
    for outcome in outcomes:
        not_averaged, missing = outcome["4-refusals"]
        assert "gradients differ between the ranks of process_group, norms" in not_averaged
        assert "only some ranks of process_group have a gradient of a parameter: average them" in missing
