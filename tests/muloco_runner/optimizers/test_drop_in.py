"""Muon and MuLoCo1 in somebody else's training script: torch alone, schedulers, checkpoints, and memory that stays."""

from __future__ import annotations

import copy
import io
import pickle
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import psutil
import pytest
import torch
from torch import Tensor, nn

from muloco_runner.optimizers import MuLoCo1, Muon, parameter_groups

ROOT = Path(__file__).parents[3]
# Put before the README's lines: all that this project depends on and torch does not.
WITHOUT_OTHER_PACKAGES = """
import sys
names = "hydra omegaconf yaml submitit cloudpickle psutil pandas scipy matplotlib rich triton"
sys.modules.update(dict.fromkeys(names.split()))
"""


def test_the_readmes_lines_train_a_model_with_torch_alone() -> None:
    (lines,) = re.findall(r"^```python\n(.*?)^```", (ROOT / "README.md").read_text(), re.DOTALL | re.MULTILINE)
    assert len([line for line in lines.splitlines() if line and not line.startswith("#")]) <= 10
    check = "assert float(loss) < 0.5, float(loss)\nassert optimizer.param_groups[0]['lr'] < 1e-6\n"
    done = subprocess.run(
        [sys.executable, "-c", WITHOUT_OTHER_PACKAGES + "import torch\ntorch.manual_seed(0)\n" + lines + check],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("kind", [Muon, MuLoCo1])
def test_a_schedulers_lr_is_that_of_the_next_step(kind: type[Muon]) -> None:
    weight, same = (nn.Parameter(torch.eye(4, 6)) for _ in range(2))
    scheduled, constant = kind([weight], 0.1), kind([same], 0.1)
    schedule = torch.optim.lr_scheduler.LambdaLR(scheduled, lambda step: 0.5**step)
    for step in range(3):
        weight.grad = same.grad = torch.randn(4, 6, generator=torch.Generator().manual_seed(step))
        constant.param_groups[0]["lr"] = 0.1 * 0.5**step
        scheduled.step()
        constant.step()
        schedule.step()
    assert torch.equal(weight, same)


def test_muloco_continues_from_a_file_to_the_bit() -> None:
    def build() -> tuple[nn.Module, MuLoCo1]:
        torch.manual_seed(0)
        model = nn.Sequential(nn.Linear(8, 12), nn.Linear(12, 8))
        return model, MuLoCo1(parameter_groups(model), 0.05, sync_interval=3)

    def train(model: nn.Module, optimizer: MuLoCo1, steps: range) -> None:
        for step in steps:
            x = torch.randn(16, 8, generator=torch.Generator().manual_seed(step))
            (model(x) - x).square().mean().backward()
            optimizer.step()
            optimizer.zero_grad()

    whole, optimizer = build()
    train(whole, optimizer, range(8))
    first, optimizer = build()
    train(first, optimizer, range(4))
    file = io.BytesIO()
    torch.save({"model": first.state_dict(), "optimizer": optimizer.state_dict()}, file)
    file.seek(0)
    saved = torch.load(file, weights_only=True)
    again, optimizer = build()
    again.load_state_dict(saved["model"])
    optimizer.load_state_dict(saved["optimizer"])
    train(again, optimizer, range(4, 8))
    for ours, theirs in zip(again.parameters(), whole.parameters(), strict=True):
        assert torch.equal(ours, theirs)


def test_a_thousand_steps_take_no_more_memory_than_a_hundred() -> None:
    """State is 12 bytes a parameter (momentum, anchor, outer momentum); one lost tensor a step would be 59 MB."""
    weights = [nn.Parameter(torch.randn(128, 128)) for _ in range(2)]
    optimizer = MuLoCo1(weights, sync_interval=7, nesterov=True)
    before = 0
    for step in range(1000):
        for weight in weights:
            weight.grad = torch.randn(128, 128)
        optimizer.step()
        if step == 99:
            before = psutil.Process().memory_info().rss
    assert psutil.Process().memory_info().rss - before < 8e6
    held = {name: value for state in optimizer.state.values() for name, value in state.items()}
    assert held.keys() == {"momentum", "anchor", "outer_momentum"}
    assert sum(value.nbytes for state in optimizer.state.values() for value in state.values()) == 12 * 2 * 128 * 128


def test_a_graph_without_fused_kernels_is_refused() -> None:
    with pytest.raises(ValueError, match="cuda_graph=True needs backend=triton"):
        Muon([nn.Parameter(torch.eye(4))], cuda_graph=True)
    optimizer = Muon([nn.Parameter(torch.eye(4))])
    optimizer._followed._capturable = True
    with pytest.raises(ValueError, match="cuda_graph=True"):
        optimizer.add_param_group({"params": [nn.Parameter(torch.eye(4))]})
    assert len(optimizer.param_groups) == len(optimizer.state_dict()["state"]) == 1


def test_hooks_of_a_step_run_once() -> None:
    """Also of MuLoCo1 in a process that has a Muon, whose own steps torch wraps as well."""
    weight = nn.Parameter(torch.eye(4))
    Muon([weight])
    optimizer = MuLoCo1([weight])
    calls: list[str] = []
    optimizer.register_step_pre_hook(lambda *_: calls.append("before"))
    optimizer.register_step_post_hook(lambda *_: calls.append("after"))
    optimizer.step()
    assert calls == ["before", "after"]


def by_columns(matrix: Tensor) -> Tensor:
    return matrix.T.contiguous().T


def two_groups(kind: type[Muon], turned: bool = False) -> Muon:
    """Two matrices, one of each algorithm, which lie by columns where `turned`."""
    torch.manual_seed(0)
    matrices = [nn.Parameter(torch.randn(4, 6)) for _ in range(2)]
    if turned:
        matrices = [nn.Parameter(by_columns(matrix.detach())) for matrix in matrices]
    groups = [{"params": matrices[:1]}, {"params": matrices[1:], "algorithm": "adamw"}]
    return kind(groups, 0.1, weight_decay=0.1, nesterov=True, **({"sync_interval": 2} if kind is MuLoCo1 else {}))


def matrices_after(
    optimizer: Muon, steps: range, step: Callable[[], object] | None = None, turned: bool = False
) -> list[Tensor]:
    matrices = [matrix for group in optimizer.param_groups for matrix in group["params"]]
    for number in steps:
        generator = torch.Generator().manual_seed(number)
        for matrix in matrices:
            gradient = torch.randn(matrix.shape, generator=generator)
            matrix.grad = by_columns(gradient) if turned else gradient
        (step or optimizer.step)()
    return [matrix.detach() for matrix in matrices]


@pytest.mark.parametrize("kind", [Muon, MuLoCo1])
def test_memory_layouts_of_parameter_and_gradient_do_not_matter(kind: type[Muon]) -> None:
    cases = [(parameter, gradient) for parameter in (False, True) for gradient in (False, True)]
    plain, *others = [matrices_after(two_groups(kind, turned=p), range(5), turned=g) for p, g in cases]
    for other in others:
        for one, matrix in zip(plain, other, strict=True):
            torch.testing.assert_close(matrix, one, rtol=1e-6, atol=1e-7)


@pytest.mark.parametrize("kind", [Muon, MuLoCo1])
def test_a_compiled_step_is_the_step(kind: type[Muon]) -> None:
    optimizer = two_groups(kind)
    compiled = torch.compile(optimizer.step, backend="eager")
    for one, other in zip(
        matrices_after(optimizer, range(5), compiled), matrices_after(two_groups(kind), range(5)), strict=True
    ):
        assert torch.equal(one, other)


@pytest.mark.parametrize("copied", [copy.deepcopy, lambda optimizer: pickle.loads(pickle.dumps(optimizer))])
@pytest.mark.parametrize("kind", [Muon, MuLoCo1])
def test_a_copy_goes_its_own_way_and_takes_further_groups(kind: type[Muon], copied: Callable[[Muon], Muon]) -> None:
    optimizer = two_groups(kind)
    matrices_after(optimizer, range(3))
    other = copied(optimizer)
    matrices_after(other, range(10, 13))
    other.add_param_group({"params": [nn.Parameter(torch.eye(3))]})
    assert other.param_groups[2].keys() >= other.param_groups[0].keys()
    for one, expected in zip(
        matrices_after(optimizer, range(3, 6)), matrices_after(two_groups(kind), range(6)), strict=True
    ):
        assert torch.equal(one, expected)


def test_a_shallow_copy_leaves_the_state_to_its_optimizer() -> None:
    optimizer = two_groups(Muon)
    copy.copy(optimizer)
    matrices_after(optimizer, range(1))
    assert float(optimizer.state[optimizer.param_groups[0]["params"][0]]["momentum"].norm()) > 0
