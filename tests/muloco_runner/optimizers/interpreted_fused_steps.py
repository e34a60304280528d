"""Tests of steps with the Triton kernels fused in, Muon's and AdamW's, in Triton's interpreter, on the CPU: as
`interpreted_triton_kernels`, which has the kernels' own."""

from __future__ import annotations

import contextlib
import copy
import sys
from collections import Counter
from collections.abc import Iterator, Sequence
from typing import Any

import pytest
import torch
from interpreted_triton_kernels import (
    THOROUGH,
    also,
    random,
    relative_error,
    run,
    small_tiles,  # noqa: F401  a fixture of every test
)
from torch import Tensor, nn
from triton.runtime.interpreter import GridExecutor

from muloco_runner.optimizers import MuLoCo1, Muon
from muloco_runner.optimizers.arena import Arena
from muloco_runner.optimizers.buckets.fused import FusedAdamWBucket, FusedMatrixBucket
from muloco_runner.optimizers.buckets.replicated import ReplicatedBucket
from muloco_runner.optimizers.orthogonalize.triton import tiles
from muloco_runner.optimizers.orthogonalize.triton.parameter_update import apply_update
from muloco_runner.optimizers.orthogonalize.triton.workspace import Workspace, aligned_columns

MATRICES = [(34, 70), (34, 70), (70, 34), (34, 34), (50, 41), (3, 40)]
TWO_ALIKE = [(34, 70), (34, 70), (34, 34)]
"""For what the kernels' numbers do not touch."""
OTHERS = [(70, 40), (40,), (3000,)]


def build(
    backend: str, dtype: torch.dtype = torch.float32, shapes: Sequence[tuple[int, int]] = MATRICES, **changes: Any
) -> tuple[list[nn.Parameter], Muon]:
    parameters = [nn.Parameter(random(*shape, seed=index).to(dtype)) for index, shape in enumerate([*shapes, *OTHERS])]
    matrices, others = parameters[: len(shapes)], parameters[len(shapes) :]
    groups = [{"params": matrices}, {"params": others, "algorithm": "adamw"}]
    return parameters, Muon(groups, 0.05, weight_decay=0.1, backend=backend, **changes)


def train(parameters: list[nn.Parameter], optimizer: torch.optim.Optimizer, steps: range) -> None:
    for step in steps:
        optimizer.param_groups[0]["lr"] = 0.05 / (step + 1)
        for index, parameter in enumerate(parameters):
            gradient = random(*parameter.shape, seed=100 * step + index).to(parameter.dtype)
            parameter.grad = None if (step, index) in ((1, 1), (1, 7)) else gradient
        optimizer.step()


OTHER_FORM = {"nesterov": True, "momentum_form": "ema", "lr_scale": "moonlight"}


@pytest.mark.parametrize(
    ("dtype", "changes"),
    [
        (torch.float32, OTHER_FORM),
        pytest.param(torch.float32, {}, marks=THOROUGH),
        pytest.param(torch.bfloat16, {}, marks=THOROUGH),
        pytest.param(torch.bfloat16, OTHER_FORM, marks=THOROUGH),
    ],
)
@pytest.mark.filterwarnings("ignore::RuntimeWarning")
def test_a_fused_step_is_the_references(dtype: torch.dtype, changes: dict[str, Any]) -> None:
    fused, optimizer = build("triton", dtype, **changes)
    plain, reference = build("reference", dtype, **changes)
    kinds = [type(bucket) for bucket in optimizer._followed.buckets]
    assert kinds == [FusedMatrixBucket] * 5 + [FusedAdamWBucket]
    before = [parameter.detach().clone() for parameter in plain]
    train(fused, optimizer, range(3))
    train(plain, reference, range(3))
    for ours, theirs, start in zip(fused, plain, before, strict=True):
        if dtype == torch.bfloat16:
            # Three truncations of the weights themselves.
            assert relative_error(ours.detach(), theirs.detach().double()) < 3 * 2**-7
        else:
            moved, expected = ours.detach() - start, theirs.detach() - start
            assert relative_error(moved, expected.double()) < (1e-2 if ours.ndim == 2 else 1e-5)
    expected_state = reference.state_dict()["state"]
    for number, state in optimizer.state_dict()["state"].items():
        assert state.keys() == expected_state[number].keys()
        for name, value in state.items():
            torch.testing.assert_close(value, expected_state[number][name], rtol=1e-5, atol=1e-5)


@pytest.mark.filterwarnings("ignore::RuntimeWarning")
def test_a_fused_cautious_decay_is_the_references() -> None:
    changes: dict[str, Any] = {"weight_decay_form": "cautious"}
    fused, optimizer = build("triton", **changes)
    plain, reference = build("reference", **changes)
    other, decoupled = build("reference")
    kinds = [type(bucket) for bucket in optimizer._followed.buckets]
    assert kinds == [FusedMatrixBucket] * 5 + [FusedAdamWBucket]
    before = [parameter.detach().clone() for parameter in plain]
    for parameters, one in ((fused, optimizer), (plain, reference), (other, decoupled)):
        for group in one.param_groups:
            group["weight_decay"] = 5.0
        train(parameters, one, range(2, 3))  # the first gradients are the weights themselves
    for ours, theirs, start, without in zip(fused, plain, before, other, strict=True):
        # In half precision an update near 0 may have the other sign.
        expected = theirs.detach() - start
        off, off_without = (
            ((moved.detach() - start - expected).abs() > 0.01 * expected.abs().max()).float().mean()
            for moved in (ours, without)
        )
        assert off < (0.02 if ours.ndim == 2 else 1e-6)
        assert off_without > 0.3
    for cautious in (True, False):
        weight, update = random(40, 60, seed=1), random(40, 60, seed=2)
        agrees = (update * weight >= 0) | (not cautious)
        expected = torch.where(agrees, 0.5 * weight, weight) - 0.1 * update
        apply_update([weight], [update], 0.5, 0.1, cautious)
        torch.testing.assert_close(weight, expected)


def test_gradients_may_lie_anywhere_and_be_scaled_down() -> None:
    """Unaligned or transposed gradients; the clipping of the next step is that of torch."""
    fused, optimizer = build("triton")
    plain, reference = build("reference")
    for index, (ours, theirs) in enumerate(zip(fused, plain, strict=True)):
        gradient = random(*ours.shape, seed=index)
        theirs.grad = gradient
        ours.grad = torch.cat([torch.zeros(1), gradient.flatten()])[1:].view_as(gradient)
        if index == 2:
            ours.grad = gradient.mT.contiguous().mT
    norm = optimizer.average_gradients(2.0)
    torch.testing.assert_close(norm, nn.utils.clip_grad_norm_(plain, 2.0))
    optimizer.step()
    reference.step()
    for ours, theirs in zip(fused, plain, strict=True):
        torch.testing.assert_close(ours.detach(), theirs.detach(), rtol=0, atol=1e-3)
        momentum = optimizer.state[ours].get("momentum")
        if momentum is not None:
            torch.testing.assert_close(momentum, reference.state[theirs]["momentum"], rtol=1e-5, atol=1e-7)


@pytest.mark.filterwarnings("ignore::RuntimeWarning")
def test_a_gradient_that_is_not_a_number_stays_in_its_matrix() -> None:
    parameters, optimizer = build("triton", shapes=TWO_ALIKE)
    others, clean = build("triton", shapes=TWO_ALIKE)
    for index, (broken, sound) in enumerate(zip(parameters, others, strict=True)):
        broken.grad, sound.grad = random(*broken.shape, seed=index), random(*broken.shape, seed=index)
    assert parameters[0].grad is not None
    parameters[0].grad[3, 4] = torch.nan
    optimizer.step()
    clean.step()
    assert parameters[0].isnan().any()
    for broken, sound in zip(parameters[1:], others[1:], strict=True):
        assert torch.equal(broken, sound)


def test_a_resumed_fused_step_continues_to_the_bit() -> None:
    whole, optimizer = build("triton", shapes=TWO_ALIKE, nesterov=True)
    train(whole, optimizer, range(2))
    first, optimizer = build("triton", shapes=TWO_ALIKE, nesterov=True)
    train(first, optimizer, range(1))
    saved = copy.deepcopy(optimizer.state_dict())
    again, resumed = build("triton", shapes=TWO_ALIKE, nesterov=True)
    for ours, theirs in zip(again, first, strict=True):
        ours.data.copy_(theirs.data)
    resumed.load_state_dict(saved)
    train(again, resumed, range(1, 2))
    for ours, theirs in zip(again, whole, strict=True):
        assert torch.equal(ours, theirs)


class OneRank:
    """Collectives of a group of one, as far as a shared step needs them."""

    rank, size = 0, 1

    def all_gather(self, gathered: Tensor, own: Tensor, async_op: bool) -> Any:
        gathered.copy_(own)
        return Done()


class Done:
    def wait(self) -> None:
        pass


@pytest.mark.parametrize("split", [2, *also(1)])
@pytest.mark.filterwarnings("ignore::RuntimeWarning")
def test_shared_matrices_are_written_into_the_message_in_half_precision(
    split: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """By the last product, after a fused prologue that scales the gradients; split matrices through a workspace that
    is kept. Then the update is applied, which alone is rounded otherwise than where the product does it."""
    shapes = [(96, 64), (96, 64), (64, 48), (100, 41)]
    results, arena = [], Arena()
    finish_to = Workspace.finish_to

    def noting(workspace: Workspace, out: Tensor, p: float) -> None:
        assert out.dtype == (torch.float32 if replicas is None else torch.float16)
        finish_to(workspace, out, p)

    monkeypatch.setattr(Workspace, "finish_to", noting)
    for replicas in (None, OneRank()):
        parameters = [nn.Parameter(random(*shape, seed=number)) for number, shape in enumerate(shapes)]
        group: dict[str, Any] = {"params": parameters, "split": split}
        optimizer = Muon([group], 0.05, nesterov=True, weight_decay=0.1, backend="triton", arena=arena)
        optimizer._context.replicas = replicas  # type: ignore[assignment]
        optimizer._begin()
        for step in range(2):
            for number, parameter in enumerate(parameters):
                parameter.grad = random(*parameter.shape, seed=100 * step + number)
            optimizer.expect_gradients_at_owners()
            optimizer.scale_gradients(torch.tensor(0.5))
            optimizer.step()
        shared = [isinstance(bucket, ReplicatedBucket) for bucket in optimizer._followed.buckets]
        assert shared == ([True] if replicas else [False] * 3)
        results.append([*(p.detach() for p in parameters), *(optimizer.state[p]["momentum"] for p in parameters)])
    assert optimizer.scales_in_kernels == (split == 1)
    for ours, alone in zip(*results, strict=True):
        torch.testing.assert_close(ours, alone, rtol=1e-6, atol=1e-4)


def test_a_step_lets_go_of_the_gradients() -> None:
    """Held until the next step, they would lie beside those of the next backward pass."""
    parameters, optimizer = build("triton", shapes=TWO_ALIKE)
    train(parameters, optimizer, range(1))
    gradients = [parameter.grad for parameter in parameters]
    optimizer.zero_grad()
    (held_here_alone,) = [sys.getrefcount(tensor) for tensor in [torch.zeros(1)]]
    assert {sys.getrefcount(gradient) for gradient in gradients} == {held_here_alone}


class Launches:
    """Kernels launched, each as (its name, whether the tensors' own device was the current one)."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.made: list[tuple[str, bool]] = []
        current: list[Tensor] = []
        call = GridExecutor.__call__

        @contextlib.contextmanager
        def device_of(tensor: Tensor) -> Iterator[None]:
            current.append(tensor)
            yield
            current.pop()

        def launch(executor: GridExecutor, *arguments: Any, **keywords: Any) -> None:
            self.made.append((executor.fn.__name__, len(current) == 1))
            call(executor, *arguments, **keywords)

        monkeypatch.setattr(torch.cuda, "device_of", device_of)
        monkeypatch.setattr(GridExecutor, "__call__", launch)

    def count(self) -> Counter[str]:
        """Return how often each kernel was launched since the last call."""
        counts = Counter(name for name, _ in self.made)
        self.made.clear()
        return counts


@pytest.fixture
def launches(monkeypatch: pytest.MonkeyPatch) -> Launches:
    return Launches(monkeypatch)


def test_kernels_are_launched_on_the_device_of_their_tensors(launches: Launches) -> None:
    """Not on the current one, which in a process of several GPUs may be another."""
    parameters, optimizer = build("triton", shapes=TWO_ALIKE)
    train(parameters, optimizer, range(1))
    run(random(1, 40, 60), "triton")
    apply_update(parameters[:1], [random(34, 70).half()], 1.0, 0.1)
    assert {on_own for _, on_own in launches.made} == {True}


def launches_of_a_step(num_gram_form: int, num_others: int) -> Counter[str]:
    """Of five steps in float16, on so many shapes in the Gram form and others, and one group of AdamW's."""
    shapes = num_gram_form + num_others
    return Counter(
        accumulate_momentum=shapes,
        normalise=shapes,
        # In stretches of 3 and 2: two Gram matrices, 5 of R, 3 of S, 2 x 3 of the next A. As written: A and R, 5 times.
        symmetric_product=16 * num_gram_form + 10 * num_others,
        product=num_gram_form + 4 * num_others,
        product_into_parameters=shapes,
        adamw=1,
    )


@pytest.mark.filterwarnings("ignore::RuntimeWarning")
def test_a_step_without_gradients_launches_all_and_changes_nothing(launches: Launches) -> None:
    """So kernels compile before the clock starts."""
    matrices = [nn.Parameter(random(*shape)) for shape in [(34, 70), (34, 70), (70, 34), (48, 48)]]
    others = [nn.Parameter(random(*shape)) for shape in [(70, 40), (40,)]]
    groups = [{"params": matrices}, {"params": others, "algorithm": "adamw"}]
    optimizer = Muon(groups, 0.05, weight_decay=0.1, backend="triton")
    before = [parameter.detach().clone() for parameter in [*matrices, *others]]
    optimizer.step()
    assert launches.count() == launches_of_a_step(num_gram_form=2, num_others=1)
    assert all(map(torch.equal, before, [*matrices, *others]))
    assert not any(value.any() for state in optimizer.state.values() for value in state.values())
    train([*matrices, *others], optimizer, range(1))
    assert launches.count() == launches_of_a_step(num_gram_form=2, num_others=1)


def test_adamw_is_torchs_own() -> None:
    ours, theirs = (nn.Parameter(random(5, 700)) for _ in range(2))
    mine = Muon([{"params": [ours], "algorithm": "adamw"}], 0.01, weight_decay=0.1, betas=(0.9, 0.99), backend="triton")
    torchs = torch.optim.AdamW([theirs], lr=0.01, weight_decay=0.1, betas=(0.9, 0.99))
    for step in range(20):
        ours.grad = random(5, 700, seed=step)
        theirs.grad = ours.grad.clone()
        mine.step()
        torchs.step()
    torch.testing.assert_close(ours, theirs, rtol=1e-6, atol=1e-7)


def test_muloco_with_fused_inner_steps() -> None:
    ours, plain = (nn.Parameter(random(40, 60)) for _ in range(2))
    fused = MuLoCo1([ours], 0.1, sync_interval=2, backend="triton")
    reference = MuLoCo1([plain], 0.1, sync_interval=2, backend="reference")
    for step in range(5):
        ours.grad, plain.grad = (random(40, 60, seed=step) for _ in range(2))
        fused.step()
        reference.step()
    assert relative_error(ours.detach(), plain.detach().double()) < 1e-2


@pytest.mark.thorough
def test_workers_share_one_workspace_and_step_as_alone() -> None:
    results = []
    for arenas in ([Arena(), Arena()], [Arena()] * 2):
        models = [[nn.Parameter(random(70, 40, seed=s)), nn.Parameter(random(40, 40, seed=s + 1))] for s in (0, 10)]
        workers = [Muon(ps, 0.02, backend="triton", arena=arena) for ps, arena in zip(models, arenas, strict=True)]
        for step in range(2):
            for number, (parameters, worker) in enumerate(zip(models, workers, strict=True)):
                for parameter in parameters:
                    parameter.grad = random(*parameter.shape, seed=100 * step + number)
                worker.step()
        results.append([p.detach().clone() for parameters in models for p in parameters])
        memories = {b.workspace.memory.untyped_storage().data_ptr() for w in workers for b in w._followed.buckets}
        assert len(memories) == len({id(arena) for arena in arenas})
    assert all(map(torch.equal, *results))


@pytest.mark.thorough
def test_large_buckets_are_worked_on_in_parts_in_one_workspace(monkeypatch: pytest.MonkeyPatch) -> None:
    whole, optimizer = build("triton")
    train(whole, optimizer, range(2))
    monkeypatch.setattr(tiles, "matrices_at_once", lambda rows, columns: 1)
    parted, optimizer = build("triton")
    train(parted, optimizer, range(2))
    for ours, theirs in zip(parted, whole, strict=True):
        assert torch.equal(ours, theirs)
    buckets = [bucket for bucket in optimizer._followed.groups[0].buckets if isinstance(bucket, FusedMatrixBucket)]
    # Beyond 4 bytes a parameter of momentum: X twice and four squares in storage dtype, of one matrix of one matrices.
    needed = []
    for rows, columns in MATRICES:
        side, size = min(rows, columns), 2 if min(rows, columns) >= 32 else 4
        needed.append(size * (2 * rows * aligned_columns(columns) + 4 * side * aligned_columns(side)))
    assert buckets[0].workspace.memory.untyped_storage().nbytes() == max(needed)
    assert len({bucket.workspace.memory.untyped_storage().data_ptr() for bucket in buckets}) == 1


@pytest.mark.filterwarnings("ignore::RuntimeWarning")
@pytest.mark.thorough
def test_fused_steps_follow_changes_and_stand_beside_splits() -> None:
    def changed(backend: str) -> list[Tensor]:
        first, second, fused = (nn.Parameter(random(*shape, seed=4)) for shape in [(34, 70), (50, 41), (102, 40)])
        groups = [{"params": [first, second]}, {"params": [fused], "split": 3}]
        optimizer = Muon(groups, 0.05, backend=backend, epsilon=1e-7)
        everything = [first, second, fused]
        for step in range(4):
            if step == 1:
                everything[0] = optimizer.param_groups[0]["params"][0] = nn.Parameter(random(34, 70, seed=9))
            if step == 2:
                optimizer.state[second]["momentum"] = optimizer.state[second]["momentum"] * 2
                optimizer.param_groups[0]["epsilon"] = 40.0  # about the momentum's norm
            if step == 3:
                optimizer.state.clear()
            for index, parameter in enumerate(everything):
                parameter.grad = random(*parameter.shape, seed=100 * step + index)
            optimizer.step()
        return [parameter.detach() for parameter in everything]

    for ours, theirs, start in zip(changed("triton"), changed("reference"), (9, 4, 4), strict=True):
        before = random(*ours.shape, seed=start)
        assert relative_error(ours - before, (theirs - before).double()) < 1e-2
