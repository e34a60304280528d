"""What an inner step does with a gradient: one dataclass an optimizer."""

from __future__ import annotations

import math
from abc import abstractmethod
from dataclasses import dataclass, field, fields
from typing import Any, Literal, get_args

from muloco_runner.config.checks import require, require_choice, require_positive
from muloco_runner.config.outside import FromOutside, check_arguments, check_name, label_of
from muloco_runner.config.plain import UNNAMED_AT_DEFAULT, default_of
from muloco_runner.config.variants import Implemented, table

WeightDecayRule = Literal["constant", "worker_batch", "independent"]
WeightDecayForm = Literal["decoupled", "cautious"]


@dataclass
class InnerOptimizerConfig(Implemented):
    """What inner optimizers share. One subclass an optimizer, with the facts that memory, records and names need."""

    name: str = "???"
    lr: float = 0.01
    """Peak learning rate of the inner steps."""
    betas: list[float] = field(default_factory=lambda: [0.9, 0.99])
    """AdamW's betas, for the parameters that AdamW updates (all of them, or embedding, head and gains under Muon)."""
    eps: float = 1e-8
    weight_decay: float = 0.01
    """Decoupled decay before `weight_decay_rule` scales it."""
    weight_decay_rule: str = "worker_batch"
    """worker_batch: decay * (B/K) / weight_decay_reference_tokens, which keeps lr*decay*steps constant at K=1;
    constant: as given, coupled to lr, so that a step at peak shrinks weights by lr*decay (also spelled coupled);
    independent: decay / lr, so that it shrinks them by the decay as given, whatever lr is (arXiv 2309.14322)."""
    weight_decay_reference_tokens: int = 512 * 2048
    """Worker batch, in tokens, at which the rule leaves the decay as given (512 sequences of 2048 in the study)."""

    def __post_init__(self) -> None:
        require_positive("inner_optimizer", lr=self.lr, eps=self.eps)
        require(
            len(self.betas) == 2 and all(0 <= beta < 1 for beta in self.betas),
            f"inner_optimizer.betas={self.betas}: must be two numbers, at least 0 and below 1",
        )
        require(
            math.isfinite(self.weight_decay) and self.weight_decay >= 0,
            f"inner_optimizer.weight_decay={self.weight_decay}: must be zero or positive",
        )
        if self.weight_decay_rule == "coupled":
            self.weight_decay_rule = "constant"
        require_choice("inner_optimizer.weight_decay_rule", self.weight_decay_rule, get_args(WeightDecayRule))
        require_positive("inner_optimizer", weight_decay_reference_tokens=self.weight_decay_reference_tokens)

    @property
    @abstractmethod
    def label(self) -> str:
        """What people call it."""

    @property
    @abstractmethod
    def matrix_state_bytes(self) -> int:
        """Bytes of state for each parameter in the matrices of attention and feed-forward."""

    @property
    @abstractmethod
    def other_state_bytes(self) -> int:
        """Bytes of state for each other parameter."""

    @property
    @abstractmethod
    def shares_matrices(self) -> bool:
        """Whether replicas that hold copies share the work: each owns some matrices, their gradients and state."""

    @property
    @abstractmethod
    def orthogonalizes(self) -> bool:
        """Whether a step orthogonalises the matrices, which takes memory of its own."""


@dataclass
class BuiltInConfig(InnerOptimizerConfig):
    """What the trainer's own optimizers share: AdamW on all parameters or beside another.

    A parameter's lr, with which its decay goes, may be a multiple of `lr`, as in nanochat (lr .2, .004 and .02 of
    embedding, head and matrices) and modded-nanogpt (`lr_mul`). Records say lr without it.
    """

    embedding_lr_factor: float = field(default=1.0, metadata=UNNAMED_AT_DEFAULT)
    """Factor on lr of token embeddings."""
    head_lr_factor: float = field(default=1.0, metadata=UNNAMED_AT_DEFAULT)
    """Factor on lr of the head."""
    scalar_lr_factor: float = field(default=1.0, metadata=UNNAMED_AT_DEFAULT)
    """Factor on lr of vectors: norm gains, and biases of a model from outside."""
    weight_decay_form: str = field(default="decoupled", metadata=UNNAMED_AT_DEFAULT)
    """decoupled: every weight decays (arXiv 1711.05101); cautious: those that the step's update moves towards zero or
    not at all, W <- W - lr decay 1[U W >= 0] W - lr U (arXiv 2510.12402)."""

    def __post_init__(self) -> None:
        super().__post_init__()
        require_positive("inner_optimizer", **{name: getattr(self, name) for name in _LR_FACTORS.values()})
        require_choice("inner_optimizer.weight_decay_form", self.weight_decay_form, get_args(WeightDecayForm))

    def lr_factor(self, kind: str, num_dimensions: int) -> float:
        """Return the factor on lr of a parameter. `kind` is one of `parameter_groups.parameter_kinds`."""
        name = self.lr_factor_name(kind, num_dimensions)
        return 1.0 if name is None else float(getattr(self, name))

    @staticmethod
    def lr_factor_name(kind: str, num_dimensions: int) -> str | None:
        """Return the field that has the factor of such a parameter, if any."""
        return _LR_FACTORS.get("scalar" if kind == "other" and num_dimensions < 2 else kind)

    @property
    def lr_factors(self) -> set[str]:
        """The fields of factors that are set."""
        return {name for name in _LR_FACTORS.values() if getattr(self, name) != 1}


_LR_FACTORS = {kind: f"{kind}_lr_factor" for kind in ("embedding", "head", "scalar")}


@dataclass
class AdamWConfig(BuiltInConfig):
    """AdamW on every parameter, weight decay on every parameter, as in the study."""

    name: str = "adamw"
    lr: float = 0.004

    implementation = "muloco_runner.optimizers.build:build_adamw"
    label = "AdamW"
    matrix_state_bytes = 8
    other_state_bytes = 8
    shares_matrices = False
    orthogonalizes = False


MomentumForm = Literal["sum", "ema"]
LrScale = Literal["spectral", "keller_jordan", "moonlight", "none"]
Coefficients = Literal["muloco", "keller_jordan", "polar_express"]


@dataclass
class MuonConfig(BuiltInConfig):
    """Muon on the matrices of attention and feed-forward; AdamW, same lr and decay, on embedding, head and gains."""

    name: str = "muon"
    lr: float = 0.02
    momentum: float = 0.9
    momentum_form: str = "sum"
    """sum: M <- momentum*M + G (the study); ema: M <- momentum*M + (1-momentum)*G."""
    nesterov: bool = False
    lr_scale: str = "spectral"
    """spectral: sqrt(fan_out/fan_in); keller_jordan: sqrt(max(1, out/in)); moonlight: 0.2*sqrt(max(out, in));
    none: 1."""
    coefficients: str = "muloco"
    """Newton-Schulz polynomial by name."""
    num_iterations: int = 5
    """Newton-Schulz steps."""

    implementation = "muloco_runner.optimizers.build:build_muon"
    label = "Muon"
    matrix_state_bytes = 4
    other_state_bytes = 8
    shares_matrices = True
    orthogonalizes = True

    def __post_init__(self) -> None:
        super().__post_init__()
        require(
            0 <= self.momentum < 1,
            f"inner_optimizer.momentum={self.momentum}: must be at least 0 and below 1",
        )
        require_choice("inner_optimizer.momentum_form", self.momentum_form, get_args(MomentumForm))
        require_choice("inner_optimizer.lr_scale", self.lr_scale, get_args(LrScale))
        require_choice("inner_optimizer.coefficients", self.coefficients, get_args(Coefficients))
        require_positive("inner_optimizer", num_iterations=self.num_iterations)
        if self.coefficients == "muloco":
            require(
                self.num_iterations == 5,
                f"inner_optimizer.num_iterations={self.num_iterations}: coefficients=muloco are five per-step triples; "
                "use num_iterations=5 or coefficients=keller_jordan",
            )
        if self.coefficients == "polar_express":
            require(
                self.num_iterations <= 5,
                f"inner_optimizer.num_iterations={self.num_iterations}: coefficients=polar_express are at most five "
                "per-step triples; use num_iterations=5 or coefficients=keller_jordan",
            )


_SAID_ELSEWHERE = {name: f"inner_optimizer.{name}" for name in ("params", "lr", "weight_decay")}
"""Arguments that the trainer gives itself, and the settings that say them."""


@dataclass
class TargetConfig(FromOutside, InnerOptimizerConfig):
    """An optimizer from outside the package: any `torch.optim.Optimizer` class, by its name. Shares no work.

    Which parameters are matrices is `optimizers.parameter_groups`' rule. `betas` and `eps` are those of AdamW where it
    updates the rest.
    """

    name: str = "target"
    lr: float = 0.001
    weight_decay: float = 0.0
    """After `weight_decay_rule` given to whichever optimizer has an argument of that name; another one than 0 is an
    error where the target has none. What it does with it (decoupled or not) is its own affair."""
    _target_: str = "???"
    """`package.module.Class`."""
    arguments: dict[str, Any] = field(default_factory=dict)
    """Its further arguments."""
    applies_to: Any = "all"
    """all, matrices, or {pattern of parameters' names: target or rest}; of several patterns the first decides, and
    what none matches is rest."""
    rest: dict[str, Any] = field(default_factory=dict)
    """What updates the rest: {_target_: ..., arguments: {...}}; empty for AdamW. It has the same lr."""
    version: str = "1"
    """Part of a run's name: another one after its code has changed makes new runs."""
    label: str = ""
    """What people call it; empty for the class's name. No part of a run's name."""
    state_bytes_per_parameter: float = 8.0
    """For the memory estimate. No part of a run's name."""

    implementation = "muloco_runner.optimizers.target:build_target"
    shares_matrices = False
    orthogonalizes = False
    not_in_hash = ("label", "state_bytes_per_parameter")

    def __post_init__(self) -> None:
        super().__post_init__()
        self.version = str(self.version)
        for target in self.targets:
            check_name("inner_optimizer._target_", target)
        check_arguments("inner_optimizer.arguments", self.arguments, _SAID_ELSEWHERE)
        if self.rest:
            require(
                set(self.rest) <= {"_target_", "arguments"} and "_target_" in self.rest,
                f"inner_optimizer.rest={self.rest}: must be {{_target_: CLASS, arguments: {{}}}}; empty for AdamW",
            )
            check_arguments("inner_optimizer.rest.arguments", self.rest.get("arguments", {}), _SAID_ELSEWHERE)
        self._check_applies_to()
        defaults = {f.name: f for f in fields(self)}
        if self.applies_to == "all" or self.rest:
            unused = [name for name in ("betas", "eps") if getattr(self, name) != default_of(defaults[name])]
            require(
                not unused,
                f"inner_optimizer.{', '.join(unused)}: of AdamW, which updates nothing here, so without effect: give "
                "the target its own as inner_optimizer.arguments",
            )
        taken = (AdamWConfig.label, MuonConfig.label)
        self.label = label_of("inner_optimizer", self._target_, self.label, taken)
        require_positive("inner_optimizer", state_bytes_per_parameter=self.state_bytes_per_parameter)

    @property
    def targets(self) -> list[str]:
        return [self._target_, *([self.rest.get("_target_", "")] if self.rest else [])]

    @property
    def matrix_state_bytes(self) -> int:
        return math.ceil(self.state_bytes_per_parameter)

    @property
    def other_state_bytes(self) -> int:
        return math.ceil(self.state_bytes_per_parameter) if self.applies_to == "all" else 8

    def _check_applies_to(self) -> None:
        where = f"inner_optimizer.applies_to={self.applies_to!r}"
        if isinstance(self.applies_to, dict):
            groups = set(self.applies_to.values())
            require(
                "target" in groups and groups <= {"target", "rest"},
                f"{where}: must be {{pattern: target or rest}}, with one target",
            )
        else:
            require(self.applies_to in ("all", "matrices"), f"{where}: must be all, matrices, or {{pattern: group}}")
        require(self.applies_to != "all" or not self.rest, f"{where}: leaves nothing to inner_optimizer.rest: drop it")


INNER_OPTIMIZERS: dict[str, type[InnerOptimizerConfig]] = table(adamw=AdamWConfig, muon=MuonConfig, target=TargetConfig)
