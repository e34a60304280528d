"""Tries optimizers from outside the package: a tiny model, or the run's own from outside, takes steps with made-up
gradients; two forked ranks take the same ones on parameters sharded by rows, as FSDP2 holds them."""

from __future__ import annotations

import io
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode

from muloco_runner.config import AnyModelConfig, ConfigError, ModelConfig, RunConfig, TargetConfig, TargetModelConfig
from muloco_runner.model.target_model import TargetModel, build_target_model, shard_target
from muloco_runner.model.transformer import Transformer, build_model
from muloco_runner.optimizers.target import build_target, start_training, trial_rate
from muloco_runner.trials.own_process import in_own_process
from muloco_runner.trials.two_ranks import on_two_ranks

_MODEL = ModelConfig(width=16, num_layers=1, head_width=8, vocab_size=32, sequence_length=8)
_STEPS = 3
_LR = 1e-3
"""At which a class is tried that has no default of its own."""
_A_STEP = "a step of a tiny model"


def try_run(run: RunConfig) -> dict[str, Any]:
    """What is wrong with the run's optimizer, if anything, and whether it takes sharded parameters."""
    torch.manual_seed(0)
    try:
        run = in_own_process(lambda: _at_trial_rate(run), _A_STEP)
        problem = in_own_process(lambda: _problem(run), _A_STEP) or _resume_problem(run)
        # Two of them are compared in one process, which tells nothing of one that keeps state in its class.
        problem = problem or in_own_process(lambda: _rate_problem(run) or _gradient_problem(run), _A_STEP)
    except ConfigError as error:
        problem = str(error)
    if problem:
        return {"problem": " ".join(problem.split())}
    why_not = _sharded_problem(run)
    return {"takes_dtensors": not why_not, "why_not": " ".join(why_not.split())}


def build_at_rates(run: RunConfig) -> dict[str, Any]:
    """Build the run's optimizer with its learning rate and weight decay. What cannot be built raises `ConfigError`."""
    build_target(_model_of(run), run)
    return {}


def build_for_size(run: RunConfig) -> dict[str, Any]:
    """Build the run's optimizer on parameters of its model's shapes, without memory.

    What cannot be built raises `ConfigError`; what cannot be built without memory, whatever the shapes, is not judged.
    """
    with FakeTensorMode():
        try:
            build_target(_of_full_size(run.model), run)
        except ConfigError:
            try:
                build_target(_without_values(run), run)
            except ConfigError:
                return {}
            raise
    return {}


def _of_full_size(model: AnyModelConfig) -> nn.Module:
    if isinstance(model, TargetModelConfig):
        return build_target_model(model, 0, torch.device("cpu"))
    assert isinstance(model, ModelConfig)
    return Transformer(model)


def _without_values(run: RunConfig) -> nn.Module:
    """The model of `_model_of`, but for initial values, which need memory."""
    return _model_of(run) if isinstance(run.model, TargetModelConfig) else Transformer(_tiny(run))


def _at_trial_rate(run: RunConfig) -> RunConfig:
    """The run at the rate at which its class is tried; as it is, where the class refuses that one."""
    inner = run.inner_optimizer
    assert isinstance(inner, TargetConfig)
    rate = trial_rate(f"inner_optimizer._target_={inner._target_}", inner._target_, _LR)
    tried = replace(run, inner_optimizer=replace(inner, lr=rate))
    try:
        build_target(_model_of(tried), tried)
    except ConfigError:
        return run
    return tried


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
    for group in optimizer.param_groups:
        rate = float(group.get("lr", run.inner_optimizer.lr))
        if not math.isclose(rate, run.inner_optimizer.lr, rel_tol=1e-6) or "initial_lr" in group:
            return "its step sets group['lr'] or group['initial_lr'], which the schedule does: keep a factor of its own"
    return ""


def _rate_problem(run: RunConfig) -> str:
    """A step at half the rate must end elsewhere: schedules do nothing but set each group's."""
    (model, optimizer), (other, slower) = _built(run), _built(run)
    for number in range(_STEPS):
        if number == _STEPS - 1:
            for group in slower.param_groups:
                group["lr"] = run.inner_optimizer.lr / 2
        for one, its in ((model, optimizer), (other, slower)):
            torch.manual_seed(number)
            _step(one, its, number)
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    for group, its_group in zip(optimizer.param_groups, slower.param_groups, strict=True):
        pairs = zip(group["params"], its_group["params"], strict=True)
        if all(torch.equal(parameter.detach(), halved.detach()) for parameter, halved in pairs):
            name = names[id(group["params"][0])]
            return (
                f"it does not follow group['lr'], which the schedule sets: half of it moves {name} just as far: read "
                "the rate from the group in step()"
            )
    return ""


def _resume_problem(run: RunConfig) -> str:
    """Save, load in a new process, and take the next steps in both: they must agree to the bit."""
    saved, end = in_own_process(lambda: _trained(run), _A_STEP)
    return in_own_process(lambda: _resumed_problem(run, saved, end), "loading its state")


def _trained(run: RunConfig) -> tuple[bytes, bytes]:
    """A checkpoint, and the parameters two steps later."""
    model, optimizer = _built(run)
    for number in range(_STEPS):
        torch.manual_seed(number)
        _step(model, optimizer, number)
    saved = _as_bytes({"model": model.state_dict(), "optimizer": optimizer.state_dict()})
    _last_steps(model, optimizer)
    return saved, _as_bytes(dict(model.named_parameters()))


def _resumed_problem(run: RunConfig, saved: bytes, end: bytes) -> str:
    try:
        states = torch.load(io.BytesIO(saved), weights_only=True)
    except Exception as error:
        return f"its state_dict cannot be read from a checkpoint, which holds tensors and plain values: {error}"
    model, optimizer = _built(run)
    model.load_state_dict(states["model"])
    optimizer.load_state_dict(states["optimizer"])
    _last_steps(model, optimizer)
    expected = torch.load(io.BytesIO(end), weights_only=True)
    for name, parameter in model.named_parameters():
        if not torch.equal(parameter.detach(), expected[name]):
            return (
                f"its state does not resume: after save, load in a new process and two steps {name} differs, so "
                "state_dict misses some"
            )
    return ""


def _last_steps(model: nn.Module, optimizer: torch.optim.Optimizer) -> None:
    for number in (_STEPS, _STEPS + 1):
        torch.manual_seed(number)
        _step(model, optimizer, number)


def _as_bytes(values: dict[str, Any]) -> bytes:
    file = io.BytesIO()
    torch.save(values, file)
    return file.getvalue()


def _gradient_problem(run: RunConfig) -> str:
    """Gradients that lie where the last ones lay, as replicas' do, and other random numbers must change nothing."""
    end = _end(run)
    if (name := _difference(end, _end(run, in_place=True))) is not None:
        return f"it keeps gradients from step to step, where replicas write the next ones ({name} differs): clone them"
    if run.num_workers > 1 and (name := _difference(end, _end(run, seed=1000))) is not None:
        return (
            f"its step draws random numbers ({name} differs), so that what {run.num_workers} workers draw would depend "
            "on how many ranks there are: use it with method=data_parallel or one worker"
        )
    return ""


def _end(run: RunConfig, seed: int = 0, in_place: bool = False) -> dict[str, Tensor]:
    """The parameters after some steps. `in_place`: each gradient is written over the last one."""
    model, optimizer = _built(run)
    kept = [torch.empty_like(parameter) for parameter in model.parameters()]
    for number in range(_STEPS):
        torch.manual_seed(seed + number)
        _step(model, optimizer, number, kept if in_place else None)
    return dict(model.named_parameters())


def _difference(one: Mapping[str, Tensor], other: Mapping[str, Tensor]) -> str | None:
    """The first parameter that differs."""
    return next((name for name, value in one.items() if not torch.equal(value, other[name])), None)


def _built(run: RunConfig) -> tuple[nn.Module, torch.optim.Optimizer]:
    model = _model_of(run)
    optimizer = build_target(model, run)
    start_training(optimizer)
    return model, optimizer


def _model_of(run: RunConfig) -> nn.Module:
    if isinstance(run.model, TargetModelConfig):
        return build_target_model(run.model, 0, torch.device("cpu"), run.model.trial_arguments)
    return build_model(_tiny(run), 0, torch.device("cpu"))


def _tiny(run: RunConfig) -> ModelConfig:
    named = isinstance(run.inner_optimizer, TargetConfig) and isinstance(run.inner_optimizer.applies_to, dict)
    # Patterns may name layers.
    return replace(_MODEL, num_layers=run.model.num_layers) if named else _MODEL


def _step(
    model: nn.Module, optimizer: torch.optim.Optimizer, number: int, kept: Sequence[Tensor] | None = None
) -> None:
    """`kept`: where the gradients are to lie."""
    gradients = _gradients(model.parameters(), number)
    if kept is not None:
        gradients = [place.detach().copy_(gradient) for place, gradient in zip(kept, gradients, strict=True)]
    for gradient, parameter in zip(gradients, model.parameters(), strict=True):
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
    return on_two_ranks(lambda: _steps_on_shards(run, expected))


def _steps_on_shards(run: RunConfig, expected: list[Tensor]) -> str:
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import fully_shard
    from torch.distributed.tensor import DTensor, distribute_tensor

    model, mesh = _model_of(run), init_device_mesh("cpu", (2,))
    if isinstance(model, TargetModel):
        shard_target(model, mesh)
    else:
        fully_shard(model, mesh=mesh)
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
