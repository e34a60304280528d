"""Learning rate as a pure function of the step: linear warm-up, then the decay that the config names."""

from __future__ import annotations

import math

from muloco_runner.config import CosineConfig, RunConfig, WarmupStableDecayConfig


def lr_fraction(run: RunConfig, step: int) -> float:
    """Share of the peak learning rate for the inner step number `step`, counted from 0."""
    total, warmup, schedule = run.num_steps, run.warmup_steps, run.schedule
    if step < warmup:
        return (step + 1) / warmup
    final = schedule.final_lr_fraction
    match schedule:
        case CosineConfig():
            progress = (step - warmup) / max(1, total - warmup)
            return final + (1 - final) * 0.5 * (1 + math.cos(math.pi * progress))
        case WarmupStableDecayConfig():
            decay_steps = max(1, round(schedule.decay_fraction * total))
            remaining = min(1.0, (total - step) / decay_steps)
            return final + (1 - final) * remaining
    raise AssertionError(f"schedule {schedule.name} has no decay")


def scheduled_lr(run: RunConfig, step: int) -> float:
    """The learning rate of inner step number `step`, counted from 0: the schedule's share of the peak."""
    return run.inner_optimizer.lr * lr_fraction(run, step)
