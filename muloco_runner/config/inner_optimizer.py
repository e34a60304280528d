"""What an inner step does with a gradient: one dataclass an optimizer."""

from __future__ import annotations

import math
from abc import abstractmethod
from dataclasses import dataclass, field
from typing import Literal, get_args

from muloco_runner.config.checks import require, require_choice, require_positive
from muloco_runner.config.variants import Implemented, table

WeightDecayRule = Literal["constant", "worker_batch", "independent"]


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
class AdamWConfig(InnerOptimizerConfig):
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
class MuonConfig(InnerOptimizerConfig):
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


INNER_OPTIMIZERS: dict[str, type[InnerOptimizerConfig]] = table(adamw=AdamWConfig, muon=MuonConfig)
