"""How workers share what they learn: one dataclass a distributed method, composed of what DiLoCo is made of."""

from __future__ import annotations

from dataclasses import dataclass, field

from muloco_runner.config.checks import require, require_positive
from muloco_runner.config.compression import CompressionConfig
from muloco_runner.config.outer_optimizer import OuterOptimizerConfig
from muloco_runner.config.plain import UNNAMED_AT_DEFAULT


@dataclass
class StreamingConfig:
    """The model in fragments of consecutive layers, shared once in H steps at its own offset (arXiv 2501.18512)."""

    num_fragments: int = 1
    """Fragment i of F is shared where the step is (i+1)*H/F modulo H; one fragment is the whole model."""
    delay_steps: int = 0
    """tau: inner steps that go on while a fragment is on its way."""
    mixing: float = 0.0
    """alpha: share of a worker's own parameters that stays when a fragment arrives; 0 takes the synchronised ones."""

    def __post_init__(self) -> None:
        require_positive("method.streaming", num_fragments=self.num_fragments)
        require(
            self.delay_steps >= 0,
            f"method.streaming.delay_steps={self.delay_steps}: must be zero or positive",
        )
        require(
            0 <= self.mixing < 1,
            f"method.streaming.mixing={self.mixing}: must be at least 0 and below 1",
        )


@dataclass
class MethodConfig:
    """How workers share what they learn. One subclass a method; `num_workers` is K."""

    name: str = "???"

    @property
    def workers(self) -> int:
        """K, the number of replicas that train apart between outer steps (1 for data parallel)."""
        return 1


@dataclass
class DataParallelConfig(MethodConfig):
    """Gradients averaged over all ranks at every step."""

    name: str = "data_parallel"


@dataclass
class DiLoCoConfig(MethodConfig):
    """K workers apart for H inner steps, then one outer step (arXiv 2311.08105)."""

    name: str = "diloco"
    num_workers: int = 1
    """K."""
    sync_interval: int = 30
    """H, inner steps between two outer steps."""
    outer_optimizer: OuterOptimizerConfig = field(default_factory=OuterOptimizerConfig)
    compression: CompressionConfig = field(default_factory=CompressionConfig, metadata=UNNAMED_AT_DEFAULT)
    streaming: StreamingConfig = field(default_factory=StreamingConfig, metadata=UNNAMED_AT_DEFAULT)

    def __post_init__(self) -> None:
        require_positive("method", num_workers=self.num_workers, sync_interval=self.sync_interval)
        streaming = self.streaming
        require(
            streaming.num_fragments <= self.sync_interval,
            f"method.streaming.num_fragments={streaming.num_fragments}: at most one fragment is shared at a step, so "
            f"use at most method.sync_interval={self.sync_interval}",
        )
        require(
            streaming.delay_steps < self.sync_interval,
            f"method.streaming.delay_steps={streaming.delay_steps}: a fragment must arrive before it is shared again, "
            f"so use less than method.sync_interval={self.sync_interval}",
        )

    @property
    def workers(self) -> int:
        return self.num_workers


METHODS: dict[str, type[MethodConfig]] = {
    "data_parallel": DataParallelConfig,
    "diloco": DiLoCoConfig,
}
