"""Learning rate as a pure function of the step: linear warm-up, then the decay that the config describes."""

from __future__ import annotations

from muloco_runner.config import RunConfig


def lr_fraction(run: RunConfig, step: int) -> float:
    """Share of the peak learning rate for the inner step number `step`, counted from 0."""
    total, warmup, schedule = run.num_steps, run.warmup_steps, run.schedule
    if step < warmup:
        return (step + 1) / warmup
    final = schedule.final_lr_fraction
    return final + (1 - final) * schedule.decay(step, warmup, total)


def scheduled_lr(run: RunConfig, step: int) -> float:
    """The learning rate of inner step number `step`, counted from 0: the schedule's share of the peak."""
    return run.inner_optimizer.lr * lr_fraction(run, step)
