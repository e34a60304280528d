"""What the outer steps do with the workers' average pseudogradient: one dataclass an optimizer."""

from __future__ import annotations

import math
from abc import abstractmethod
from dataclasses import dataclass, field

from muloco_runner.config.checks import require, require_positive
from muloco_runner.config.outside import OneTarget
from muloco_runner.config.plain import UNNAMED_AT_DEFAULT
from muloco_runner.config.variants import Implemented, table


@dataclass
class OuterOptimizerConfig(Implemented):
    """What outer optimizers share. One subclass an optimizer, with the facts that memory and reports need."""

    name: str = "???"
    lr: float = 0.7
    """Outer learning rate, on the pseudogradient (anchor minus parameters, mean over workers)."""

    def __post_init__(self) -> None:
        require_positive("method.outer_optimizer", lr=self.lr)

    @property
    @abstractmethod
    def label(self) -> str:
        """What people call it."""

    @property
    @abstractmethod
    def state_bytes(self) -> int:
        """Bytes of state for each parameter, beside the anchor."""

    @property
    @abstractmethod
    def step_bytes(self) -> int:
        """Bytes of temporaries of a step for each parameter that it moves at once, those of orthogonalising aside."""

    @property
    @abstractmethod
    def orthogonalizes(self) -> bool:
        """Whether a step orthogonalises the hidden matrices, which takes memory of its own."""

    @property
    @abstractmethod
    def averages(self) -> bool:
        """Whether a step takes the workers' plain average and nothing else, which is local SGD (arXiv 1805.09767)."""


@dataclass
class OuterMomentumConfig(OuterOptimizerConfig):
    """SGD on the pseudogradient: theta <- anchor - mu*u - lr*delta with u <- mu*u + lr*delta when `nesterov`.

    Without `nesterov` it is heavy ball, anchor - u; with lr=1 and momentum=0 the workers' plain average.
    """

    momentum: float = 0.6
    nesterov: bool = True

    def __post_init__(self) -> None:
        super().__post_init__()
        require(
            0 <= self.momentum < 1,
            f"method.outer_optimizer.momentum={self.momentum}: must be at least 0 and below 1",
        )


@dataclass
class OuterSgdConfig(OuterMomentumConfig):
    """SGD with momentum on every parameter."""

    name: str = field(default="sgd", metadata=UNNAMED_AT_DEFAULT)

    implementation = "muloco_runner.diloco.outer_optimizer:OuterSgd"
    label = "SGD"
    step_bytes = 0
    orthogonalizes = False

    @property
    def averages(self) -> bool:
        return self.lr == 1 and self.momentum == 0

    @property
    def state_bytes(self) -> int:
        return 0 if self.averages else 4


@dataclass
class OuterMuonConfig(OuterMomentumConfig):
    """Muon on the hidden matrices' pseudogradients, M <- matrix_momentum*M + delta; SGD, as above, on all others."""

    name: str = "muon"
    matrix_lr: float = 0.05
    """On the orthogonalised momentum, times sqrt(fan_out/fan_in)."""
    matrix_momentum: float = 0.6

    implementation = "muloco_runner.diloco.outer_optimizer:OuterMuon"
    label = "Muon"
    state_bytes = 4
    step_bytes = 0
    orthogonalizes = True
    averages = False

    def __post_init__(self) -> None:
        super().__post_init__()
        require_positive("method.outer_optimizer", matrix_lr=self.matrix_lr)
        require(
            0 <= self.matrix_momentum < 1,
            f"method.outer_optimizer.matrix_momentum={self.matrix_momentum}: must be at least 0 and below 1",
        )


@dataclass
class OuterAdamConfig(OuterOptimizerConfig):
    """Adam on the pseudogradient of every parameter, without weight decay (arXiv 1412.6980)."""

    name: str = "adam"
    lr: float = 0.001
    """Near the size of a step of each parameter: pseudogradients are divided by their root mean square."""
    betas: list[float] = field(default_factory=lambda: [0.9, 0.99])
    """Decay of the first and of the second moment, in outer steps."""
    eps: float = 1e-8
    """Beside a pseudogradient's root mean square."""

    implementation = "muloco_runner.diloco.outer_optimizer:OuterAdam"
    label = "Adam"
    state_bytes = 8
    step_bytes = 0
    orthogonalizes = False
    averages = False

    def __post_init__(self) -> None:
        super().__post_init__()
        require_positive("method.outer_optimizer", eps=self.eps)
        require(
            len(self.betas) == 2 and all(0 <= beta < 1 for beta in self.betas),
            f"method.outer_optimizer.betas={self.betas}: must be two numbers, at least 0 and below 1",
        )


@dataclass
class TargetOuterConfig(OneTarget, OuterOptimizerConfig):
    """An optimizer from outside the package: any `torch.optim.Optimizer` class.

    Its parameters are the anchor's tensors, their gradients the workers' mean pseudogradient.
    """

    name: str = "target"
    state_bytes_per_parameter: float = 8.0
    """For the memory estimate; one that keeps more is refused. No part of a run's name."""

    implementation = "muloco_runner.diloco.target_outer:build_target_outer"
    not_in_hash = ("label", "state_bytes_per_parameter")
    orthogonalizes = False
    averages = False
    step_bytes = 16
    """A copy of the gradient, and what torch's own take for all tensors at once."""

    def __post_init__(self) -> None:
        super().__post_init__()
        taken = (OuterSgdConfig.label, OuterMuonConfig.label, OuterAdamConfig.label)
        where = "method.outer_optimizer"
        self.check_target(where, {"params": "", "lr": f"{where}.lr"}, taken)
        require(
            0 <= self.state_bytes_per_parameter < math.inf,
            f"{where}.state_bytes_per_parameter={self.state_bytes_per_parameter}: must be zero or positive",
        )

    @property
    def state_bytes(self) -> int:
        return math.ceil(self.state_bytes_per_parameter)


OUTER_OPTIMIZERS: dict[str, type[OuterOptimizerConfig]] = table(
    sgd=OuterSgdConfig, muon=OuterMuonConfig, adam=OuterAdamConfig, target=TargetOuterConfig
)
