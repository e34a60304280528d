"""Tries schedules from outside the package: the learning rate of every step of the run, or of many of them."""

from __future__ import annotations

import math
from typing import Any

from muloco_runner.config import ConfigError, RunConfig, TargetScheduleConfig
from muloco_runner.config.checks import require

_MOST = 20_000
"""Steps that are looked at."""


def try_schedule(run: RunConfig) -> dict[str, Any]:
    """What is wrong with the run's schedule, if anything. It sees no parameters, so that their place cannot matter."""
    schedule, warmup, total = run.schedule, run.warmup_steps, run.num_steps
    assert isinstance(schedule, TargetScheduleConfig)
    steps = sorted({*range(warmup, total, max(1, (total - warmup) // _MOST)), total - 1})
    values = []
    for step in steps:
        where = f"for step {step} of {total}, warmup={warmup}"
        try:
            value = schedule.decay(step, warmup, total)
        except ConfigError:
            raise
        except (TypeError, ValueError, ArithmeticError) as error:
            raise ConfigError(f"{where}: {type(error).__name__}: {error}") from error
        require(
            math.isfinite(value) and 0 <= value <= 1,
            f"returns {value} {where}: must be from 0 to 1, which is inner_optimizer.lr",
        )
        values.append(value)
    require(
        [schedule.decay(step, warmup, total) for step in reversed(steps)] == values[::-1],
        "returns another value for the same step when it is asked again: a resumed run would not go on as it was",
    )
    return {}
