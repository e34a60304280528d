"""Models from outside the package: any class that takes tokens, made to compute the loss too.

Axes: B batch, T time, D width of hidden states, V vocabulary.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from muloco_runner.config import AnyModelConfig, ConfigError, TargetModelConfig
from muloco_runner.config.outside import import_target
from muloco_runner.model.compile import compile_each_shape
from muloco_runner.model.cross_entropy import linear_cross_entropy
from muloco_runner.model.language_model import LanguageModel

_GIVEN = ("vocab_size", "sequence_length")
"""Settings that a class gets where it has arguments of these names."""


class TargetModel(LanguageModel):
    """Stands before a user's class among the bases of its models, so that parameters keep their names.

    Its attributes are read from the class: what the user's model sets on itself hides none of them.
    """

    muloco_config: ClassVar[TargetModelConfig]
    muloco_forward: ClassVar[Callable[..., Any]]
    """The user's forward pass, compiled where that was asked for."""
    muloco_takes_documents: ClassVar[bool]

    def forward(
        self, tokens_BT: Tensor, documents_BT: Tensor | None = None, targets_BT: Tensor | None = None
    ) -> Tensor:
        cls = type(self)
        documents = {"documents": documents_BT} if cls.muloco_takes_documents else {}
        y: Tensor = cls.muloco_forward(self, tokens_BT, **documents)
        if cls.muloco_config.returns == "hidden":
            weight_VD = self.get_parameter(cls.muloco_config.head)
            if targets_BT is not None:
                return linear_cross_entropy(y.flatten(0, 1), weight_VD, targets_BT.flatten())
            y = F.linear(y, weight_VD)
        return y if targets_BT is None else F.cross_entropy(y.flatten(0, 1).float(), targets_BT.flatten())

    def set_execution(self, attention: str, recompute: bool, compiled: bool, most_chunk: int = 0) -> None:
        cls = type(self)
        if compiled:
            cls.muloco_forward = staticmethod(compile_each_shape(cls.muloco_forward))


def build_target_model(
    config: AnyModelConfig, seed: int, device: torch.device, arguments: Mapping[str, Any] | None = None
) -> TargetModel:
    """The model that a `TargetModelConfig` names, with the values that its class draws on a CPU from `seed`.

    `arguments` take the place of some of its own. What cannot be built as it was asked for raises `ConfigError`.
    """
    assert isinstance(config, TargetModelConfig)
    cls = load_class(f"model._target_={config._target_}", config._target_, nn.Module, "torch.nn.Module")
    given = given_arguments(cls, config, arguments or {})
    try:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            model = cls(**given)
    except Exception as error:
        raise ConfigError(
            f"model._target_={config._target_}: cannot be built with {', '.join(given) or 'no arguments'}: "
            f"{type(error).__name__}: {error}"
        ) from error
    if not isinstance(model, cls):
        raise ConfigError(
            f"model._target_={config._target_}: its constructor makes a {type(model).__module__}."
            f"{type(model).__qualname__}, which is none of its class: name that one"
        )
    count = sum(parameter.numel() for parameter in model.parameters())
    if arguments is None and config.facts and count != config.num_params:
        raise ConfigError(
            f"model._target_={config._target_}: has {count:,} parameters, and had {config.num_params:,} when they were "
            "counted: what its constructor reads beside its arguments has changed: make it an argument, "
            "or set another model.version"
        )
    forward = inspect.signature(cls.forward).parameters
    model.__class__ = type(
        cls.__name__,
        (TargetModel, cls),
        {"muloco_config": config, "muloco_forward": cls.forward, "muloco_takes_documents": "documents" in forward},
    )
    if device.type != "cpu":
        model.to(device)
    trained: TargetModel = model.train()
    return trained


def load_class(where: str, target: str, base: type, base_name: str) -> type[Any]:
    """The class of that name. One that is not there, or no class of `base`, raises `ConfigError`."""
    cls = import_target(where, target)
    if not (isinstance(cls, type) and issubclass(cls, base)):
        raise ConfigError(f"{where}: is no class of {base_name}")
    return cls


def given_arguments(cls: type, config: TargetModelConfig, replaced: Mapping[str, Any]) -> dict[str, Any]:
    """The arguments of a model's class. One that it does not name raises `ConfigError`: whatever takes **anything may
    ignore it."""
    taken = list(inspect.signature(cls).parameters)
    given = {name: getattr(config, name) for name in _GIVEN if name in taken} | {**config.arguments, **replaced}
    for name in given:
        if name not in taken:
            raise ConfigError(
                f"model._target_={config._target_}: has no argument {name}; it takes {', '.join(taken) or 'none'}"
            )
    return given


def layers_of(model: nn.Module, config: TargetModelConfig) -> list[nn.Module]:
    """The layers that `config.blocks` names; none where it names none. What is no list of them raises `ConfigError`."""
    if not config.blocks:
        return []
    where = f"model.blocks={config.blocks}"
    try:
        layers = model.get_submodule(config.blocks)
    except AttributeError:
        lists = [name for name, module in model.named_modules() if isinstance(module, nn.ModuleList)]
        raise ConfigError(f"{where}: has no such module; it has the lists {', '.join(lists) or 'none'}") from None
    if not isinstance(layers, nn.ModuleList | nn.Sequential) or not len(layers):
        raise ConfigError(f"{where}: must be an nn.ModuleList or nn.Sequential with a layer or more")
    return list(layers)


def shard_target(model: nn.Module, mesh: Any) -> None:
    """Shards a model's parameters by rows over a mesh (FSDP2), its layers apart; the casts are left to autocast."""
    # torch's FSDP and DTensor take most of a second to import.
    from torch.distributed.fsdp import MixedPrecisionPolicy, fully_shard

    assert isinstance(model, TargetModel)
    policy = MixedPrecisionPolicy(reduce_dtype=torch.float32)
    for part in [*layers_of(model, type(model).muloco_config), model]:
        fully_shard(part, mesh=mesh, mp_policy=policy, reshard_after_forward=True)
