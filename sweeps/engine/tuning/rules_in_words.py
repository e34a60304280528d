"""The rules of a study, one sentence each, as plans and reports state them."""

from __future__ import annotations

from collections.abc import Iterator
from typing import assert_never

from sweeps.engine.tuning.benchmark_rules import MARGIN, NATS_PER_100_STEPS, BenchmarkPair, BenchmarkTarget
from sweeps.engine.tuning.halving import HalveRule
from sweeps.engine.tuning.sequential import PairRule
from sweeps.engine.tuning.study import DecideRule, ExtendRule, ReplicateRule, Study, TuneRule


def rule_lines(study: Study) -> Iterator[str]:
    """Yield each rule in the order in which they apply."""
    if study.extend is not None:
        yield extend_line(study.extend)
    if study.tune is not None:
        yield tune_line(study.tune)
    if study.halve is not None:
        yield halve_line(study.halve)
    if study.replicate is not None:
        yield replicate_line(study.replicate)
    if study.decide is not None:
        yield decide_line(study.decide)


def extend_line(rule: ExtendRule) -> str:
    return (
        f"extend: until every best value has {_counted(rule.margin, 'point')} on each side; at most "
        f"{rule.max_runs:,} more for each series and size"
    )


def tune_line(rule: TuneRule) -> str:
    return (
        "tune: one key at a time around the best setting so far, until none improves the loss by more than "
        f"{rule.threshold:g} nats; at most {rule.max_runs:,} more for each series and size"
    )


def halve_line(rule: HalveRule) -> str:
    rungs = ", ".join(f"{float(share):.3g}" for share in rule.rungs)
    return (
        f"halve: at {rungs} of its tokens a run stops that is not among the best 1/{rule.eta} of its series, size and "
        f"batch and would have to gain more than {rule.gain_factor:g} times what any of {rule.eta} or more finished "
        "ones gained from there on to end as low as the lowest of them"
    )


def replicate_line(rule: ReplicateRule) -> str:
    which = "the best setting" if rule.best == 1 else f"each of the {rule.best} best settings"
    each = f", the best at each batch {_counted(rule.each_batch, 'seed')}" if rule.each_batch else ""
    return f"replicate: {which} of each series and size gets {_counted(rule.seeds, 'seed')}{each}"


def decide_line(decide: DecideRule) -> str:
    rule = decide.rule
    match rule:
        case PairRule():
            return (
                f"decide: {_counted(len(decide.contests), 'pair')} of series at one size, until one is better with "
                f"{rule.confidence:.0%} confidence or they lie within {rule.gap:g} nats; after {rule.max_seeds} seeds "
                "it is a tie"
            )
        case BenchmarkPair():
            return (
                f"decide: {_counted(len(decide.contests), 'pair')} of series, until (loss difference + steps saved / "
                f"100 * {NATS_PER_100_STEPS:g}) / sqrt(1/n1 + 1/n2) is {MARGIN:g} for one of them, or {rule.max_seeds} "
                "seeds of each are used"
            )
        case BenchmarkTarget():
            return (
                f"decide: {len(decide.contests)} series and sizes, until ({rule.target:g} - mean loss) * sqrt(n) is "
                f"{MARGIN:g}, or minus that, or {rule.max_seeds} seeds are used"
            )
        case _:
            assert_never(rule)


def _counted(count: int, word: str) -> str:
    return f"{count:,} {word}" if count == 1 else f"{count:,} {word}s"
