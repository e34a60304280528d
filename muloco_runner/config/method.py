"""How workers share what they learn: one dataclass a distributed method, composed of what DiLoCo is made of."""

from __future__ import annotations

import math
from abc import abstractmethod
from dataclasses import dataclass, field

from muloco_runner.config.averaging import INTERVAL, MU_Y, check_averaging, mu_x_of_interval
from muloco_runner.config.checks import require, require_positive
from muloco_runner.config.compression import COMPRESSIONS, CompressionConfig, NoCompressionConfig
from muloco_runner.config.outer_optimizer import OUTER_OPTIMIZERS, OuterOptimizerConfig, OuterSgdConfig
from muloco_runner.config.plain import UNNAMED_AT_DEFAULT
from muloco_runner.config.variants import Implemented, require_variant, table


@dataclass
class StreamingConfig:
    """The model in fragments of consecutive layers, shared once in H steps at its own offset (arXiv 2501.18512)."""

    num_fragments: int = 1
    """Fragment i of F is shared where the step is (i+1)*H/F modulo H; one fragment is the whole model."""
    delay_steps: int = 0
    """tau: inner steps that go on while a fragment's exchange is pending."""
    mixing: float = 0.0
    """alpha: share of its own parameters that a worker keeps in an outer step; 0 takes the synchronised ones."""

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
class MethodConfig(Implemented):
    """How workers share what they learn. One subclass a method, with the facts that names and reports need."""

    name: str = "???"

    @property
    @abstractmethod
    def workers(self) -> int:
        """K, the number of replicas that train apart between outer steps (1 for data parallel)."""

    @property
    @abstractmethod
    def bits_per_value(self) -> float:
        """Bits of a value that workers exchange in an outer step; NaN where nothing is compressed."""

    @property
    @abstractmethod
    def choices(self) -> dict[str, str]:
        """What it is composed of, by setting, as people call it; reports tell runs apart by it."""

    @abstractmethod
    def algorithm(self, inner_optimizer: str) -> str:
        """The name of method times inner optimizer, given by its label."""

    @abstractmethod
    def check(self, num_steps: int, num_layers: int) -> None:
        """A run of so many inner steps, or a model of so many layers, that it cannot train raises `ConfigError`."""


@dataclass
class DataParallelConfig(MethodConfig):
    """Gradients averaged over all ranks at every step."""

    name: str = "data_parallel"

    implementation = "muloco_runner.diloco.method:build_data_parallel"
    workers = 1
    bits_per_value = math.nan

    @property
    def choices(self) -> dict[str, str]:
        return {}

    def algorithm(self, inner_optimizer: str) -> str:
        return f"DDP-{inner_optimizer}"

    def check(self, num_steps: int, num_layers: int) -> None:
        """Any will do."""


@dataclass
class DiLoCoConfig(MethodConfig):
    """K workers apart for H inner steps, then one outer step (arXiv 2311.08105).

    One that takes the workers' plain average (outer lr 1, no momentum) makes it local SGD (arXiv 1805.09767; in the
    study's configs `semi_sync_method: local_sgd`), and is called so.
    """

    name: str = "diloco"
    num_workers: int = 1
    """K."""
    sync_interval: int = 30
    """H, inner steps between two outer steps."""
    outer_optimizer: OuterOptimizerConfig = field(default_factory=OuterSgdConfig)
    compression: CompressionConfig = field(default_factory=NoCompressionConfig, metadata=UNNAMED_AT_DEFAULT)
    streaming: StreamingConfig = field(default_factory=StreamingConfig, metadata=UNNAMED_AT_DEFAULT)

    implementation = "muloco_runner.diloco.method:build_diloco"

    def __post_init__(self) -> None:
        require_variant("method.outer_optimizer", self.outer_optimizer, OUTER_OPTIMIZERS)
        require_variant("method.compression", self.compression, COMPRESSIONS)
        require_positive("method", num_workers=self.num_workers, sync_interval=self.sync_interval)
        streaming = self.streaming
        require(
            streaming.num_fragments <= self.sync_interval,
            f"method.streaming.num_fragments={streaming.num_fragments}: at most one fragment is shared at a step, so "
            f"use at most method.sync_interval={self.sync_interval}",
        )
        require(
            streaming.delay_steps < self.sync_interval,
            f"method.streaming.delay_steps={streaming.delay_steps}: an exchange must complete before the next one, "
            f"so use less than method.sync_interval={self.sync_interval}",
        )

    @property
    def workers(self) -> int:
        return self.num_workers

    @property
    def bits_per_value(self) -> float:
        return math.nan if self.compression.is_exact else self.compression.bits_per_value

    @property
    def choices(self) -> dict[str, str]:
        return {"outer_optimizer": self.outer_optimizer.label}

    def algorithm(self, inner_optimizer: str) -> str:
        if self.outer_optimizer.averages:
            return f"LocalSGD-{inner_optimizer}"
        return _PUBLISHED_NAMES.get(inner_optimizer, f"DiLoCo-{inner_optimizer}")

    def check(self, num_steps: int, num_layers: int) -> None:
        require(
            num_steps >= self.sync_interval,
            f"method.sync_interval={self.sync_interval} is longer than the run of {num_steps} steps, "
            "so no outer step would happen: lower it, lower global_batch_tokens or raise tokens_per_parameter",
        )
        require(
            self.streaming.num_fragments <= num_layers,
            f"method.streaming.num_fragments={self.streaming.num_fragments}: a fragment holds whole layers, "
            f"so use at most model.num_layers={num_layers}",
        )


_PUBLISHED_NAMES = {"AdamW": "DiLoCo", "Muon": "MuLoCo"}
"""Label of an inner optimizer -> the name of DiLoCo with it."""
WITH_INNER_NAMED = ("DiLoCo", "LocalSGD", "GPA")
"""What algorithms other than data parallel are called before a dash and the inner optimizer's label; DiLoCo also
alone."""


@dataclass
class PrimalAveragingConfig(MethodConfig):
    """Generalized Primal Averaging (GPA, arXiv 2512.17131): z takes the inner optimizer's updates, x its average, which
    is evaluated, and gradients are taken at y = mu_y x + (1 - mu_y) z; after each update x <- mu_x x + (1 - mu_x) z."""

    name: str = "gpa"
    num_workers: int = 1
    """K."""
    sync_interval: int = INTERVAL
    """H: workers average z every H steps, without an outer optimizer; of one worker it sets mu_x alone."""
    mu_x: float | None = None
    """Share of x that an update keeps; null for 0.9^(1/H), the paper's: .974 for H=4, .9967 for 32, .9984 for 64."""
    mu_y: float = MU_Y
    """Share of x in y."""
    compression: CompressionConfig = field(default_factory=NoCompressionConfig, metadata=UNNAMED_AT_DEFAULT)
    """What workers send of how far their z have moved."""

    implementation = "muloco_runner.diloco.primal_averaging:build_primal_averaging"

    def __post_init__(self) -> None:
        require_variant("method.compression", self.compression, COMPRESSIONS)
        require_positive("method", num_workers=self.num_workers, sync_interval=self.sync_interval)
        check_averaging("method.", self.share_kept, self.mu_y)
        require(
            self.num_workers > 1 or isinstance(self.compression, NoCompressionConfig),
            f"method/compression={self.compression.name} has no effect with method.num_workers=1, which sends no z: "
            "leave it out or raise method.num_workers",
        )
        require(
            self.num_workers > 1 or self.mu_x is None or self.sync_interval == INTERVAL,
            f"method.sync_interval={self.sync_interval} has no effect with method.num_workers=1 and "
            f"method.mu_x={self.mu_x}, which it would set: leave one of them out",
        )

    @property
    def share_kept(self) -> float:
        """mu_x."""
        return mu_x_of_interval(self.sync_interval) if self.mu_x is None else self.mu_x

    @property
    def of_z(self) -> DiLoCoConfig | None:
        """DiLoCo whose workers hold z in place of parameters and average them; None for one worker."""
        if self.num_workers == 1:
            return None
        average = OuterSgdConfig(lr=1.0, momentum=0.0, nesterov=False)
        return DiLoCoConfig(
            num_workers=self.num_workers,
            sync_interval=self.sync_interval,
            outer_optimizer=average,
            compression=self.compression,
        )

    @property
    def workers(self) -> int:
        return self.num_workers

    @property
    def bits_per_value(self) -> float:
        return math.nan if self.of_z is None else self.of_z.bits_per_value

    @property
    def choices(self) -> dict[str, str]:
        return {}

    def algorithm(self, inner_optimizer: str) -> str:
        return f"GPA-{inner_optimizer}"

    def check(self, num_steps: int, num_layers: int) -> None:
        require(
            self.num_workers == 1 or num_steps >= self.sync_interval,
            f"method.sync_interval={self.sync_interval} is longer than the run of {num_steps} steps, so its workers "
            "would meet at the end alone: lower it, lower global_batch_tokens or raise tokens_per_parameter",
        )


METHODS: dict[str, type[MethodConfig]] = table(
    data_parallel=DataParallelConfig, diloco=DiLoCoConfig, gpa=PrimalAveragingConfig
)
