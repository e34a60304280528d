"""What the outer steps do with the workers' average pseudogradient."""

from __future__ import annotations

from dataclasses import dataclass, field

from muloco_runner.config.checks import require, require_positive
from muloco_runner.config.plain import UNNAMED_AT_DEFAULT


@dataclass
class OuterOptimizerConfig:
    """SGD on the pseudogradient: theta <- anchor - mu*u - lr*delta with u <- mu*u + lr*delta when `nesterov`.

    Without `nesterov` it is heavy ball, anchor - u; with lr=1 and momentum=0 the workers' plain average.
    """

    name: str = field(default="sgd", metadata=UNNAMED_AT_DEFAULT)
    lr: float = 0.7
    momentum: float = 0.6
    nesterov: bool = True

    def __post_init__(self) -> None:
        require_positive("method.outer_optimizer", lr=self.lr)
        require(
            0 <= self.momentum < 1,
            f"method.outer_optimizer.momentum={self.momentum}: must be at least 0 and below 1",
        )


@dataclass
class OuterMuonConfig(OuterOptimizerConfig):
    """Muon on the hidden matrices' pseudogradients, M <- matrix_momentum*M + delta; SGD, as above, on all others."""

    name: str = "muon"
    matrix_lr: float = 0.05
    """On the orthogonalised momentum, times sqrt(fan_out/fan_in)."""
    matrix_momentum: float = 0.6

    def __post_init__(self) -> None:
        super().__post_init__()
        require_positive("method.outer_optimizer", matrix_lr=self.matrix_lr)
        require(
            0 <= self.matrix_momentum < 1,
            f"method.outer_optimizer.matrix_momentum={self.matrix_momentum}: must be at least 0 and below 1",
        )


OUTER_OPTIMIZERS: dict[str, type[OuterOptimizerConfig]] = {"sgd": OuterOptimizerConfig, "muon": OuterMuonConfig}
