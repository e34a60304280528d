"""Tries optimizers from outside the package before anything is queued.

    python -m muloco_runner.optimizers.try_target < {"path": [...], "runs": {KEY: run, ...}}

The last line of its output is JSON: for each key what `muloco_runner.targets.Answer` holds. A tiny model takes steps
with made-up gradients; two forked ranks take the same ones on parameters sharded by rows, as FSDP2 holds them.
"""

from __future__ import annotations

import contextlib
import io
import json
import multiprocessing
import sys
import tempfile
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

from muloco_runner.config import ConfigError, ModelConfig, RunConfig
from muloco_runner.model.transformer import build_model
from muloco_runner.optimizers.target import build_target, start_training

_MODEL = ModelConfig(width=16, num_layers=1, head_width=8, vocab_size=32, sequence_length=8)
_STEPS = 3
_RANKS_SECONDS = 60.0


def try_run(run: RunConfig) -> dict[str, Any]:
    """What is wrong with the run's optimizer, if anything, and whether it takes sharded parameters."""
    torch.manual_seed(0)
    try:
        problem = _problem(run)
    except ConfigError as error:
        problem = str(error)
    except Exception as error:
        problem = f"a step of a tiny model failed: {type(error).__name__}: {error}"
    if problem:
        return {"problem": " ".join(problem.split())}
    why_not = _sharded_problem(run)
    return {"takes_dtensors": not why_not, "why_not": " ".join(why_not.split())}


def _problem(run: RunConfig) -> str:
    model, optimizer = _built(run)
    before = [parameter.detach().clone() for parameter in model.parameters()]
    if broken := _not_finite(model):
        return f"{broken} is not finite after construction"
    for number in range(_STEPS):
        _step(model, optimizer, number)
    for (name, parameter), start in zip(model.named_parameters(), before, strict=True):
        if torch.equal(parameter.detach(), start):
            return f"it never moves {name} ({_STEPS} steps with gradients that are not zero)"
    if broken := _not_finite(model):
        return f"{broken} is not finite after {_STEPS} steps"
    return _resume_problem(run, model, optimizer)


def _resume_problem(run: RunConfig, model: nn.Module, optimizer: torch.optim.Optimizer) -> str:
    """Save, load into new ones, and take the next step in both: they must agree to the bit."""
    file = io.BytesIO()
    torch.save({"model": model.state_dict(), "optimizer": optimizer.state_dict()}, file)
    file.seek(0)
    try:
        saved = torch.load(file, weights_only=True)
    except Exception as error:
        return f"its state_dict cannot be read from a checkpoint, which holds tensors and plain values: {error}"
    other, resumed = _built(run)
    other.load_state_dict(saved["model"])
    resumed.load_state_dict(saved["optimizer"])
    for number in (_STEPS, _STEPS + 1):
        for one, its in ((model, optimizer), (other, resumed)):
            torch.manual_seed(number)
            _step(one, its, number)
    for (name, parameter), again in zip(model.named_parameters(), other.parameters(), strict=True):
        if not torch.equal(parameter.detach(), again.detach()):
            return (
                f"its state does not resume: after save, load and two steps {name} differs, so state_dict misses some"
            )
    return ""


def _built(run: RunConfig) -> tuple[nn.Module, torch.optim.Optimizer]:
    model = build_model(_MODEL, 0, torch.device("cpu"))
    optimizer = build_target(model, run)
    start_training(optimizer)
    return model, optimizer


def _step(model: nn.Module, optimizer: torch.optim.Optimizer, number: int) -> None:
    for gradient, parameter in zip(_gradients(model.parameters(), number), model.parameters(), strict=True):
        parameter.grad = gradient
    optimizer.step()
    optimizer.zero_grad(set_to_none=True)


def _gradients(parameters: Iterable[Tensor], number: int) -> list[Tensor]:
    generator = torch.Generator().manual_seed(number)
    return [torch.randn(parameter.shape, generator=generator) for parameter in parameters]


def _not_finite(model: nn.Module) -> str:
    return next((name for name, p in model.named_parameters() if not bool(torch.isfinite(p).all())), "")


def _sharded_problem(run: RunConfig) -> str:
    """Why two ranks with sharded parameters do not get what one rank gets; empty where they do."""
    model, optimizer = _built(run)
    for number in range(_STEPS):
        _step(model, optimizer, number)
    expected = [parameter.detach().clone() for parameter in model.parameters()]
    context = multiprocessing.get_context("fork")
    with tempfile.TemporaryDirectory() as folder:
        ranks = [context.Process(target=_rank, args=(rank, folder, run, expected)) for rank in range(2)]
        for one in ranks:
            one.start()
        for one in ranks:
            one.join(_RANKS_SECONDS)
            if one.is_alive():
                one.kill()
        said = [file.read_text() for file in sorted(Path(folder).glob("problem*"))]
    if len(said) < len(ranks):
        return "two ranks with sharded parameters did not come to an end"
    return next((text for text in said if text), "")


def _rank(rank: int, folder: str, run: RunConfig, expected: list[Tensor]) -> None:
    problem = ""
    with contextlib.redirect_stdout(sys.stderr):
        try:
            problem = _steps_on(rank, folder, run, expected)
        except Exception as error:
            problem = f"a step on sharded parameters failed: {type(error).__name__}: {error}"
    (Path(folder) / f"problem{rank}").write_text(problem)


def _steps_on(rank: int, folder: str, run: RunConfig, expected: list[Tensor]) -> str:
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import fully_shard
    from torch.distributed.tensor import DTensor, distribute_tensor

    dist.init_process_group("gloo", init_method=f"file://{folder}/store", rank=rank, world_size=2)
    try:
        model = build_model(_MODEL, 0, torch.device("cpu"))
        fully_shard(model, mesh=init_device_mesh("cpu", (2,)))
        optimizer = build_target(model, run)
        start_training(optimizer)
        for number in range(_STEPS):
            for gradient, parameter in zip(_gradients(expected, number), model.parameters(), strict=True):
                assert isinstance(parameter, DTensor)
                parameter.grad = distribute_tensor(gradient, parameter.device_mesh, parameter.placements)
            optimizer.step()
        for (name, parameter), value in zip(model.named_parameters(), expected, strict=True):
            assert isinstance(parameter, DTensor)
            if not torch.allclose(parameter.full_tensor().detach(), value, rtol=1e-4, atol=1e-5):
                return f"on sharded parameters {name} differs from one rank's"
        return ""
    finally:
        dist.destroy_process_group()


def main() -> None:
    words = json.load(sys.stdin)
    sys.path[:0] = words["path"]
    # What a target prints must not be taken for the answer.
    with contextlib.redirect_stdout(sys.stderr):
        answers = {key: try_run(RunConfig.from_dict(run)) for key, run in words["runs"].items()}
    print(json.dumps(answers), flush=True)


if __name__ == "__main__":
    main()
