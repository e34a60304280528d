"""The learning rate over a run: one dataclass a schedule."""

from __future__ import annotations

import inspect
import math
from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import cache
from typing import Any, Literal, assert_never, cast, get_args

from muloco_runner.config.checks import require, require_choice
from muloco_runner.config.outside import OneTarget, import_target
from muloco_runner.config.plain import UNNAMED_AT_DEFAULT
from muloco_runner.config.variants import table


@dataclass
class ScheduleConfig(ABC):
    """Learning rate over the run: linear warm-up, then one subclass's decay to `final_lr_fraction` of the peak."""

    name: str = "???"
    warmup_steps: int = 500
    """Steps of linear warm-up, where the run is long enough: just so many with `max_warmup_fraction` 1."""
    max_warmup_fraction: float = 0.1
    """Warm-up never takes more than this share of a run's steps."""
    final_lr_fraction: float = 0.1

    def __post_init__(self) -> None:
        require(
            self.warmup_steps >= 0,
            f"schedule.warmup_steps={self.warmup_steps}: must be zero or positive",
        )
        for name in ("max_warmup_fraction", "final_lr_fraction"):
            value = getattr(self, name)
            require(0 <= value <= 1, f"schedule.{name}={value}: must lie between 0 and 1")

    def check(self, num_steps: int) -> None:  # noqa: B027  # most schedules are those of any run
        """A run of so many steps that it cannot be the schedule of raises `ConfigError`; by default there is none."""

    def stable_until(self, num_steps: int) -> int | None:
        """Up to which step a run of so many, once warm, stays at the peak whatever its length; None where its rates
        depend on that from the first step after warm-up on."""
        return None

    @abstractmethod
    def decay(self, step: int, warmup: int, total: int) -> float:
        """After warm-up, 1 at the peak down to 0 at `final_lr_fraction`. `step`, from 0, is one of `total` steps."""


@dataclass
class CosineConfig(ScheduleConfig):
    """Half a cosine from the peak to the final fraction."""

    name: str = "cosine"

    def decay(self, step: int, warmup: int, total: int) -> float:
        progress = (step - warmup) / max(1, total - warmup)
        return 0.5 * (1 + math.cos(math.pi * progress))


@dataclass
class LinearConfig(ScheduleConfig):
    """A line from the peak to the final fraction (arXiv 2310.07831; 2502.15938 prefers 0 for that fraction)."""

    name: str = "linear"

    def decay(self, step: int, warmup: int, total: int) -> float:
        return (total - step) / max(1, total - warmup)


DecayForm = Literal["linear", "sqrt"]


@dataclass
class WarmupStableDecayConfig(ScheduleConfig):
    """Constant at the peak, then decay over the last `decay_fraction` of the run."""

    name: str = "wsd"
    decay_fraction: float = 0.2
    decay_steps: int | None = field(default=None, metadata=UNNAMED_AT_DEFAULT)
    """Steps of decay, in place of a fraction of the run; null for the fraction."""
    decay_form: str = field(default="linear", metadata=UNNAMED_AT_DEFAULT)
    """At the share s of the decay: linear, 1 - s; sqrt, 1 - sqrt(s), which is steep at first (arXiv 2405.18392)."""

    def __post_init__(self) -> None:
        super().__post_init__()
        require_choice("schedule.decay_form", self.decay_form, get_args(DecayForm))
        require(
            self.decay_steps is None or self.decay_steps > 0,
            f"schedule.decay_steps={self.decay_steps}: must be a positive number of steps",
        )
        default = WarmupStableDecayConfig.__dataclass_fields__["decay_fraction"].default
        require(
            self.decay_steps is None or self.decay_fraction == default,
            f"schedule.decay_steps={self.decay_steps} and schedule.decay_fraction={self.decay_fraction}: give one",
        )
        require(
            0 < self.decay_fraction <= 1,
            f"schedule.decay_fraction={self.decay_fraction}: must be above 0 and at most 1",
        )

    def decay(self, step: int, warmup: int, total: int) -> float:
        remaining = min(1.0, (total - step) / self._decay_steps_of(total))
        match cast(DecayForm, self.decay_form):
            case "linear":
                return remaining
            case "sqrt":
                return 1 - math.sqrt(1 - remaining)
            case unknown:
                assert_never(unknown)

    def _decay_steps_of(self, total: int) -> int:
        return self.decay_steps or max(1, round(self.decay_fraction * total))

    def stable_until(self, num_steps: int) -> int:
        # The first of its decay's steps still has the peak rate.
        return max(0, num_steps - self._decay_steps_of(num_steps) + 1)

    def check(self, num_steps: int) -> None:
        require(
            self.decay_steps is None or self.decay_steps <= num_steps,
            f"schedule.decay_steps={self.decay_steps} is longer than the run of {num_steps} steps: lower it, or raise "
            "tokens_per_parameter",
        )


_GIVEN = ("step", "warmup", "total")
"""What a decay from outside is given where it has arguments of these names."""


@dataclass
class TargetScheduleConfig(OneTarget, ScheduleConfig):
    """A decay from outside the package: a function of `step` and, where it has arguments of these names, `warmup` and
    `total`, as in `decay`. It returns a number from 0 to 1, and whatever it returns depends on nothing else."""

    name: str = "target"

    def __post_init__(self) -> None:
        super().__post_init__()
        said = {"step": "", "warmup": "schedule.warmup_steps", "total": "tokens_per_parameter"}
        self.check_target("schedule", said)

    @property
    def function(self) -> Callable[..., float]:
        """The function itself. What is no function, and one that does not name its arguments, raises `ConfigError`."""
        where = f"schedule._target_={self._target_}"
        function = import_target(where, self._target_)
        require(callable(function) and not isinstance(function, type), f"{where}: is no function")
        known = _arguments_of(function)
        require("step" in known, f"{where}: has no argument step, which the learning rate follows")
        for name in self.arguments:
            require(name in known, f"{where}: has no argument {name}; it takes {', '.join(known)}")
        return cast("Callable[..., float]", function)

    def decay(self, step: int, warmup: int, total: int) -> float:
        function = self.function
        known = _arguments_of(function)
        given = {name: value for name, value in zip(_GIVEN, (step, warmup, total), strict=True) if name in known}
        return float(function(**given, **self.arguments))


@cache
def _arguments_of(function: Callable[..., Any]) -> tuple[str, ...]:
    return tuple(inspect.signature(function).parameters)


SCHEDULES: dict[str, type[ScheduleConfig]] = table(
    cosine=CosineConfig, linear=LinearConfig, wsd=WarmupStableDecayConfig, target=TargetScheduleConfig
)
