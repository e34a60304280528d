"""What is trained: one dataclass a kind of model, with the numbers that follow from it."""

from __future__ import annotations

from abc import abstractmethod
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from typing import Any, NamedTuple

from muloco_runner.config.checks import ConfigError, require, require_choice, require_positive
from muloco_runner.config.outside import FromOutside, check_arguments, check_name
from muloco_runner.config.plain import UNNAMED_AT_DEFAULT
from muloco_runner.config.variants import Implemented, table


class Shape(NamedTuple):
    """Parameters of one shape."""

    rows: int
    columns: int
    """Values of a row: 1 of a vector."""
    number: int
    """How many of them there are."""
    hidden: bool
    """Whether they are hidden matrices, which Muon updates."""


@dataclass
class AnyModelConfig(Implemented):
    """What all models share. One subclass a kind, with the facts that budgets, memory and names need."""

    name: str = "???"
    vocab_size: int = 128_256
    sequence_length: int = 2048
    """Tokens in one training sequence."""

    def __post_init__(self) -> None:
        require_positive("model", vocab_size=self.vocab_size, sequence_length=self.sequence_length)

    @property
    @abstractmethod
    def label(self) -> str:
        """What people call it; empty for the study's own, which no label names."""

    @property
    @abstractmethod
    def blocks(self) -> str:
        """Name of the list of its layers among its modules; empty where it has none."""

    @property
    @abstractmethod
    def num_layers(self) -> int:
        """Layers in that list; 1 where there is none."""

    @property
    @abstractmethod
    def num_params(self) -> int:
        """Exact parameter count N, embedding and head included."""

    @property
    @abstractmethod
    def shapes(self) -> list[Shape]:
        """All parameters by their shape."""

    @property
    @abstractmethod
    def params_in_blocks(self) -> int:
        """Parameters of its layers, or all where it has no list of them."""

    @property
    @abstractmethod
    def embedding_params(self) -> int:
        """Values of its largest embedding or head."""

    @property
    @abstractmethod
    def flops_per_token(self) -> float:
        """Flops of training for a token by which compute C is counted."""

    @property
    @abstractmethod
    def hardware_flops_per_token(self) -> float:
        """Flops that devices compute for a token of training."""

    @abstractmethod
    def check_execution(self, attention: str, activation_checkpointing: bool | None) -> None:
        """Settings of `ExecutionConfig` that it does not follow raise `ConfigError`."""

    @property
    def num_hidden_params(self) -> int:
        """Parameters in hidden matrices, which Muon updates."""
        return sum(shape.rows * shape.columns * shape.number for shape in self.shapes if shape.hidden)

    @property
    def largest_matrices(self) -> Shape:
        """The hidden matrices of the largest shape; none of one value where there are none."""
        hidden = [shape for shape in self.shapes if shape.hidden]
        return max(hidden, key=lambda shape: shape.rows * shape.columns, default=Shape(1, 1, 0, True))


@dataclass
class ModelConfig(AnyModelConfig):
    """A decoder-only transformer of the study's shape (SwiGLU, QK-norm, pre- and post-norm, untied head)."""

    name: str = field(default="transformer", metadata=UNNAMED_AT_DEFAULT)
    width: int = 512
    """Residual width D."""
    num_layers: int = 6
    head_width: int = 128
    """Width of one attention head; the number of heads is width / head_width."""
    ffn_ratio: float = 2.75
    """SwiGLU hidden width over D."""
    rope_theta: float = 500_000.0
    norm_eps: float = 1e-6

    implementation = "muloco_runner.model.transformer:build_model"
    label = ""
    blocks = "blocks"

    def __post_init__(self) -> None:
        super().__post_init__()
        require_positive(
            "model",
            width=self.width,
            num_layers=self.num_layers,
            head_width=self.head_width,
            ffn_ratio=self.ffn_ratio,
            rope_theta=self.rope_theta,
            norm_eps=self.norm_eps,
        )
        require(
            self.head_width % 2 == 0,
            f"model.head_width={self.head_width}: rotary embeddings need an even width",
        )
        require(
            self.width % self.head_width == 0,
            f"model.width={self.width} is not a multiple of model.head_width={self.head_width}: "
            f"choose a width such as {max(1, self.width // self.head_width) * self.head_width}",
        )
        require(
            float(self.width * self.ffn_ratio).is_integer(),
            f"model.width={self.width} times model.ffn_ratio={self.ffn_ratio} is not a whole number: change one",
        )

    @property
    def num_heads(self) -> int:
        return self.width // self.head_width

    @property
    def ffn_width(self) -> int:
        return round(self.width * self.ffn_ratio)

    @property
    def hardware_flops_per_token(self) -> float:
        """Flops that devices compute for a token of training: 6 (N - V D) + 7 L T D.

        The embedding is looked up, not multiplied: at small sizes 6 N is far more. Attention takes two products forward
        and five backward, scores computed again, each 2 T D a layer and half of it under the causal mask. Where
        sequences hold several documents it takes less; activations that are recomputed are not counted.
        """
        return 6 * (self.num_params - self.embedding_params) + 7 * self.num_layers * self.sequence_length * self.width

    @property
    def flops_per_token(self) -> float:
        """6N."""
        return 6 * self.num_params

    @property
    def shapes(self) -> list[Shape]:
        width, ffn, layers = self.width, self.ffn_width, self.num_layers
        return [
            Shape(self.vocab_size, width, 2, hidden=False),
            Shape(width, width, 4 * layers, hidden=True),
            Shape(ffn, width, 2 * layers, hidden=True),
            Shape(width, ffn, layers, hidden=True),
            Shape(width, 1, 4 * layers + 1, hidden=False),
            Shape(self.head_width, 1, 2 * layers, hidden=False),
        ]

    @property
    def num_params(self) -> int:
        return sum(shape.rows * shape.columns * shape.number for shape in self.shapes)

    @property
    def params_in_blocks(self) -> int:
        # The norm before the head counts as one: it is nothing beside a layer.
        return self.num_params - 2 * self.embedding_params

    @property
    def embedding_params(self) -> int:
        return self.vocab_size * self.width

    def check_execution(self, attention: str, activation_checkpointing: bool | None) -> None:
        """It follows them all."""


@dataclass
class TargetModelConfig(FromOutside, AnyModelConfig):
    """A model from outside the package: any `torch.nn.Module` class that takes tokens, by its name.

    Its parameters are float32, all of them trained; hidden matrices, which Muon updates, are what
    `optimizers.parameter_groups` takes for some, unless `matrices` says otherwise.
    """

    name: str = "target"
    _target_: str = "???"
    """`package.module.Class`. Its `forward` takes token ids, an int64 tensor (B, T), and, where it has an argument
    `documents`, the number of each token's document, (B, T)."""
    arguments: dict[str, Any] = field(default_factory=dict)
    """Its arguments. It is also given `vocab_size` and `sequence_length` where it has arguments of these names."""
    returns: str = "logits"
    """logits: (B, T, V); hidden: states (B, T, D), which `head` turns into logits."""
    head: str = ""
    """With returns=hidden, the name of the parameter (V, D) whose product with the states is the logits: an embedding's
    where the two are tied."""
    blocks: str = ""
    """Name of the `nn.ModuleList` of its layers: fragments (method.streaming) are of whole layers, and FSDP gathers one
    at a time. Empty: one fragment, and FSDP gathers all."""
    matrices: dict[str, str] = field(default_factory=dict)
    """{pattern of parameters' names: hidden, embedding, head or other}; the first that matches decides, and where none
    does the rule of `optimizers.parameter_groups`: embeddings by `nn.Embedding`, heads by name, ties and shape."""
    version: str = "1"
    """Part of a run's name: another one after its code has changed makes new runs."""
    label: str = ""
    """What people call it; empty for the class's name. No part of a run's name."""
    flops_per_token: float = 0.0
    """Flops of training for a token; 0 for 6N. No part of a run's name."""
    activation_bytes_per_token: float = 0.0
    """What its forward pass keeps for the backward pass, in float32; 0 for what was measured. No part of a run's
    name."""
    trial_arguments: dict[str, Any] = field(default_factory=dict)
    """Arguments in place of some of `arguments` while it is tried, for a model too large for that. No part of a run's
    name."""
    facts: Any = None
    """What was found when it was built without memory; filled in by whoever composes the run. No part of its name."""

    implementation = "muloco_runner.model.target_model:build_target_model"
    not_in_hash = ("label", "flops_per_token", "activation_bytes_per_token", "trial_arguments", "facts")

    def __post_init__(self) -> None:
        super().__post_init__()
        self.version = str(self.version)
        check_name("model._target_", self._target_)
        for name, arguments in (("arguments", self.arguments), ("trial_arguments", self.trial_arguments)):
            check_arguments(f"model.{name}", arguments, {k: f"model.{k}" for k in ("vocab_size", "sequence_length")})
        require_choice("model.returns", self.returns, ("logits", "hidden"))
        require(
            bool(self.head) == (self.returns == "hidden"),
            f"model.head={self.head!r}: names the parameter that turns hidden states into logits, with "
            "model.returns=hidden, and only there",
        )
        for pattern, kind in self.matrices.items():
            require_choice(f"model.matrices.{pattern}", kind, ("hidden", "embedding", "head", "other"))
        for name in ("flops_per_token", "activation_bytes_per_token"):
            value = getattr(self, name)
            require(0 <= value < float("inf"), f"model.{name}={value}: must be positive, or 0 to leave it open")
        self.label = self.label or self._target_.rpartition(".")[2]
        self.flops_per_token = self.flops_per_token or (6.0 * self.num_params if self.facts else 0.0)

    @property
    def targets(self) -> list[str]:
        return [self._target_]

    def kind_of(self, parameter: str) -> str | None:
        """What `matrices` says of a parameter; None where it says nothing."""
        return next((kind for pattern, kind in self.matrices.items() if fnmatchcase(parameter, pattern)), None)

    def _fact(self, name: str) -> Any:
        if not self.facts:
            raise ConfigError(f"model._target_={self._target_}: it was not built yet: its parameters are not counted")
        return self.facts[name]

    @property
    def num_params(self) -> int:
        return int(self._fact("num_params"))

    @property
    def num_layers(self) -> int:
        return int(self._fact("num_layers"))

    @property
    def shapes(self) -> list[Shape]:
        return [Shape(*values) for values in self._fact("shapes")]

    @property
    def params_in_blocks(self) -> int:
        return int(self._fact("params_in_blocks"))

    @property
    def embedding_params(self) -> int:
        return max((shape.rows * shape.columns for shape in self.shapes if not shape.hidden), default=0)

    @property
    def kept_bytes_per_token(self) -> float:
        """Upper bound of what the forward pass keeps for the backward pass."""
        return self.activation_bytes_per_token or float(self._fact("kept_bytes")) / self.sequence_length

    @property
    def hardware_flops_per_token(self) -> float:
        """As declared, or 6N without the embeddings that are looked up alone; attention is not in it."""
        if self.flops_per_token != 6.0 * self.num_params:
            return self.flops_per_token
        return 6.0 * (self.num_params - int(self._fact("lookup_params")))

    def check_execution(self, attention: str, activation_checkpointing: bool | None) -> None:
        given = {"attention": attention != "auto", "activation_checkpointing": bool(activation_checkpointing)}
        for name in (name for name, is_given in given.items() if is_given):
            raise ConfigError(
                f"execution.{name}: has no effect on {self._target_}, which computes its own way: drop it"
            )


MODELS: dict[str, type[AnyModelConfig]] = table(transformer=ModelConfig, target=TargetModelConfig)
