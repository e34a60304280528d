"""Tries models from outside the package: counts their parameters without memory, and takes a few steps of training.

Axes: B batch, T time, D width of hidden states, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Mapping
from fnmatch import fnmatchcase
from typing import Any

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.autograd.graph import saved_tensors_hooks

from muloco_runner.config import ConfigError, TargetModelConfig
from muloco_runner.config.checks import require
from muloco_runner.model.target_model import TargetModel, build_target_model, layers_of, shard_target
from muloco_runner.optimizers import parameter_kinds
from muloco_runner.trials.two_ranks import on_two_ranks

_CPU = torch.device("cpu")
_LARGEST = 100_000_000
"""Parameters of a model that is tried as it is: some gigabytes, and a minute of a core."""
_LENGTH = 48
"""Tokens in a sequence that is tried."""
_STEPS = 4
_LR = 3e-3


def try_model(config: TargetModelConfig) -> dict[str, Any]:
    """What is wrong with the model, if anything; what it is in numbers, and whether it takes sharded parameters."""
    try:
        facts = _facts(config)
        _check(config)
    except ConfigError as error:
        problem = str(error).removeprefix(f"model._target_={config._target_}: ")
        return {"problem": " ".join(problem.split())}
    except Exception as error:
        return {"problem": " ".join(f"trying it failed: {type(error).__name__}: {error}".split())}
    why_not = " ".join(on_two_ranks(lambda: _sharded_problem(config)).split())
    return {"takes_dtensors": not why_not, "why_not": why_not, "facts": facts}


def _facts(config: TargetModelConfig) -> dict[str, Any]:
    """`TargetModelConfig.facts`. Parameters that cannot be trained raise `ConfigError`."""
    with FakeTensorMode():
        try:
            model = build_target_model(config, 0, _CPU)
        except ConfigError as error:
            if not isinstance(error.__cause__, RuntimeError):
                raise
            raise ConfigError(
                f"{error}; it is built without memory first, so that conversions (.to) and values (.item) in its "
                "constructor fail"
            ) from error
        parameters = dict(model.named_parameters())
        require(bool(parameters), "has no parameters")
        for name, parameter in parameters.items():
            require(
                parameter.dtype == torch.float32,
                f"{name} is {parameter.dtype}: parameters must be float32; precision is another setting",
            )
            require(parameter.requires_grad, f"{name} takes no gradient: make what is not trained a buffer")
        if config.head:
            weight_VD = dict(model.named_parameters(remove_duplicate=False)).get(config.head)
            require(
                weight_VD is not None and weight_VD.ndim == 2 and len(weight_VD) == config.vocab_size,
                f"model.head={config.head} is {'no parameter' if weight_VD is None else tuple(weight_VD.shape)}, must "
                f"be one of shape ({config.vocab_size}, width)",
            )
        layers = layers_of(model, config)
        in_layers = {id(parameter) for layer in layers for parameter in layer.parameters()}
        kinds = parameter_kinds(model)
        for pattern in config.matrices:
            require(
                any(fnmatchcase(name, pattern) for name in parameters),
                f"model.matrices: {pattern!r} matches no parameter; there are {', '.join(list(parameters)[:12])}",
            )
        shapes: dict[tuple[int, int, bool], int] = {}
        for name, parameter in parameters.items():
            rows = parameter.shape[0] if parameter.ndim else 1
            key = (rows, parameter.numel() // max(1, rows), kinds[name] == "hidden")
            shapes[key] = shapes.get(key, 0) + 1
        count = sum(parameter.numel() for parameter in parameters.values())
        return {
            "num_params": count,
            "num_layers": max(1, len(layers)),
            "shapes": [[rows, columns, number, hidden] for (rows, columns, hidden), number in shapes.items()],
            "params_in_blocks": sum(p.numel() for p in parameters.values() if id(p) in in_layers) if layers else count,
            "lookup_params": _lookup_params(model, config),
            "kept_bytes": 0.0 if config.activation_bytes_per_token else _kept_bytes(model, config),
        }


def _lookup_params(model: TargetModel, config: TargetModelConfig) -> int:
    """Values of embeddings that take part in no product, since they are no head."""
    heads = {id(module.weight) for module in model.modules() if isinstance(module, nn.Linear)}
    if config.head:
        heads.add(id(model.get_parameter(config.head)))
    embedded = {id(m.weight): m.weight.numel() for m in model.modules() if isinstance(m, nn.Embedding)}
    return sum(number for key, number in embedded.items() if key not in heads)


def _kept_bytes(model: TargetModel, config: TargetModelConfig) -> float:
    """Bytes that a forward pass on one sequence keeps for its backward pass, its parameters not counted."""
    own = {parameter.untyped_storage()._cdata for parameter in model.parameters()}
    kept: dict[int, Tensor] = {}

    def keep(tensor: Tensor) -> Tensor:
        kept[tensor.untyped_storage()._cdata] = tensor
        return tensor

    try:
        with saved_tensors_hooks(keep, lambda tensor: tensor):
            _forward(model, torch.zeros(1, config.sequence_length, dtype=torch.int64))
    except Exception as error:
        raise ConfigError(
            "its forward pass cannot be followed without memory, so that what it keeps is not known: say "
            f"model.activation_bytes_per_token ({type(error).__name__}: {error})"
        ) from error
    return float(sum(t.untyped_storage().nbytes() for key, t in kept.items() if key not in own))


def _forward(model: TargetModel, tokens_BT: Tensor) -> Tensor:
    """What the user's class returns, before it is made a loss."""
    cls = type(model)
    documents = {"documents": torch.zeros_like(tokens_BT)} if cls.muloco_takes_documents else {}
    output: Tensor = cls.muloco_forward(model, tokens_BT, **documents)
    return output


def _built(config: TargetModelConfig) -> TargetModel:
    return build_target_model(config, 0, _CPU, config.trial_arguments)


def _tokens(config: TargetModelConfig, seed: int) -> Tensor:
    """Two sequences with the first and the last token of the vocabulary among theirs."""
    length = min(config.sequence_length, _LENGTH)
    tokens_BT = torch.randint(config.vocab_size, (2, length), generator=torch.Generator().manual_seed(seed))
    tokens_BT[0, 0], tokens_BT[1, -1] = config.vocab_size - 1, 0
    return tokens_BT


def _check(config: TargetModelConfig) -> None:
    """What cannot be trained raises `ConfigError`, as all functions here do."""
    with FakeTensorMode():
        count = sum(parameter.numel() for parameter in _built(config).parameters())
    require(
        count <= _LARGEST,
        f"has {count:,} parameters, too many to be tried here (at most {_LARGEST:,}): say smaller sizes for that, such "
        "as model.trial_arguments={width: 64}",
    )
    model, again = _built(config), _built(config)
    for (name, parameter), other in zip(model.named_parameters(), again.parameters(), strict=True):
        require(bool(torch.isfinite(parameter).all()), f"{name} is not finite after construction")
        require(
            torch.equal(parameter, other),
            f"{name} begins with other values each time it is built: draw them with torch's generator alone",
        )
    _check_output(model, config)
    _check_no_randomness(model, config)
    _check_steps(model, config)
    _check_causality(model, config)
    _check_resume(model, config)


def _check_output(model: TargetModel, config: TargetModelConfig) -> None:
    tokens_BT = _tokens(config, 0)
    length = tokens_BT.shape[1]
    try:
        output = _forward(model, tokens_BT)
    except Exception as error:
        raise ConfigError(
            f"a forward pass on tokens (2, {length}), each below model.vocab_size={config.vocab_size}, failed: "
            f"{type(error).__name__}: {error}"
        ) from error
    require(isinstance(output, Tensor), f"its forward pass returns a {type(output).__name__}, not a tensor")
    width, what = config.vocab_size, "logits"
    if config.returns == "hidden":
        width, what = model.get_parameter(config.head).shape[1], "hidden states"
    require(
        output.shape == (2, length, width),
        f"returns {tuple(output.shape)} for tokens (2, {length}): must be {what} (2, {length}, {width}) with "
        f"model.returns={config.returns} and model.vocab_size={config.vocab_size}",
    )
    require(bool(torch.isfinite(output).all()), "its first output is not finite")


@torch.no_grad()
def _check_no_randomness(model: TargetModel, config: TargetModelConfig) -> None:
    outputs = []
    for seed in (1, 2):
        torch.manual_seed(seed)
        outputs.append(_forward(model, _tokens(config, 0)))
    require(
        torch.equal(*outputs),
        "its forward pass draws random numbers (dropout) or remembers the last one, so that a result would depend on "
        "how many ranks compute it: set its rate to 0",
    )


def _check_steps(model: TargetModel, config: TargetModelConfig) -> None:
    """Takes a few steps of training, which move every parameter and nothing else."""
    moved, buffers = dict.fromkeys((n for n, _ in model.named_parameters()), False), _buffers(model)
    optimizer = torch.optim.AdamW(model.parameters(), lr=_LR)
    for number in range(_STEPS):
        tokens_BT = _tokens(config, number)
        loss = model(tokens_BT, torch.zeros_like(tokens_BT), tokens_BT.roll(-1, dims=1))
        require(bool(torch.isfinite(loss)), f"its loss is {float(loss)} at step {number + 1}")
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        for name, parameter in model.named_parameters():
            if parameter.grad is None:
                raise ConfigError(f"{name} never gets a gradient: the loss does not depend on it")
            moved[name] |= bool(parameter.grad.any())
        optimizer.step()
    for name, has_moved in moved.items():
        require(has_moved, f"{name} never gets a gradient other than 0 ({_STEPS} steps)")
    for name, value in _buffers(model).items():
        require(
            torch.equal(value, buffers[name]),
            f"its buffer {name} changes while it trains: workers average and resume parameters alone",
        )


def _buffers(model: nn.Module) -> dict[str, Tensor]:
    return {name: buffer.clone() for name, buffer in model.named_buffers()}


@torch.no_grad()
def _check_causality(model: TargetModel, config: TargetModelConfig) -> None:
    """No output may depend on a later token or on another sequence, in training or evaluation: looked for in a
    trained model, since layers may begin as zeros."""
    tokens_BT = _tokens(config, _STEPS)
    length = tokens_BT.shape[1]
    for mode in (model.train, model.eval):
        mode()
        before = _forward(model, tokens_BT)
        for place in sorted({1, length // 2, length - 1} & set(range(1, length))):
            changed_BT = tokens_BT.clone()
            changed_BT[0, place] = (changed_BT[0, place] + 1 + config.vocab_size // 2) % config.vocab_size
            after = _forward(model, changed_BT)
            require(
                _same(before[0, :place], after[0, :place]),
                f"looks at the future: another token at place {place} changes outputs before it, so no loss counts",
            )
            require(_same(before[1], after[1]), "mixes sequences: a token of one changes outputs of another one")
            require(
                not torch.equal(before[0, place:], after[0, place:]),
                f"does not look at its tokens: another one at place {place} changes no output",
            )
    model.train()


def _same(one: Tensor, other: Tensor) -> bool:
    """Equal but for the rounding of products that are computed in another order."""
    return torch.allclose(one, other, rtol=1e-4, atol=1e-5 * max(1.0, float(one.abs().max())))


@torch.no_grad()
def _check_resume(model: TargetModel, config: TargetModelConfig) -> None:
    """A new one with the trained one's parameters must do as it does: a checkpoint holds nothing else."""
    other = _built(config)
    for parameter, value in zip(other.parameters(), model.parameters(), strict=True):
        parameter.copy_(value)
    require(
        torch.equal(_forward(other, _tokens(config, 9)), _forward(model, _tokens(config, 9))),
        "does not resume: built again and given its parameters it computes something else",
    )


def _sharded_problem(config: TargetModelConfig) -> str:
    """Why two ranks with sharded parameters do not get one rank's gradients; empty where they do."""
    import torch.distributed as dist
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.tensor import DTensor

    tokens_BT = _tokens(config, 0)
    expected = _gradients(_built(config), tokens_BT)
    model = _built(config)
    shard_target(model, init_device_mesh("cpu", (2,)))
    rank = dist.get_rank()
    found = _gradients(model, tokens_BT[rank : rank + 1])
    for name, gradient in found.items():
        assert isinstance(gradient, DTensor)
        full = gradient.full_tensor()
        if not torch.allclose(
            full, expected[name], rtol=1e-3, atol=1e-5 * max(1e-3, float(expected[name].abs().max()))
        ):
            return f"the gradient of {name} differs from one rank's"
    return ""


def _gradients(model: TargetModel, tokens_BT: Tensor) -> Mapping[str, Tensor]:
    model(tokens_BT, torch.zeros_like(tokens_BT), tokens_BT.roll(-1, dims=1)).backward()
    found = {}
    for name, parameter in model.named_parameters():
        assert parameter.grad is not None
        found[name] = parameter.grad
    return found
