"""All series at one compute: how much more compute, or time, the baseline needs for the loss that each reaches with it.

The compute is the largest that every series was trained with, so that no ratio is extrapolated. A law that
predicts the largest size from the smaller ones with an error larger than the gap between two methods cannot tell them
apart, whatever its intervals say.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, assert_never

import numpy as np
import pandas as pd

from analysis.optima import RunsBehind
from analysis.page.listed import listed, listed_values
from analysis.page.numbers import flops, integer, ratio, spread
from analysis.page.page_table import Column, Table
from analysis.questions.iso_loss import TRUSTED_SCALES, IsoLoss, equal_loss_ratio, loss_at, prediction_error
from analysis.questions.measured_ratio import at_equal_loss, measured_ratio
from analysis.questions.question import NOT_IDENTIFIED, Inputs, Question
from analysis.questions.time_ratio import TimeRatio, compute_time_ratios, shared_definition

Standing = Literal["established", "not established", "too few sizes", "cannot be told apart"]
_MANY_SERIES = 6
"""Series from which on they share a sentence."""
_UNPREDICTED = "established by its interval; how well the law predicts a larger size is not known"


@dataclass(frozen=True)
class AtOneCompute:
    """One series against the baseline at the stated compute."""

    series: str
    compute_ratio: float
    """Compute of the baseline over the series', for the loss that the series reaches with the stated compute."""
    compute_ci: tuple[float, float] | None
    time_ratio: float | None
    """Training time of the baseline over the series', each at its critical batch; None without laws of both."""
    time_ci: tuple[float, float] | None
    tokens_ratio: float
    """Training tokens of the baseline over the series', both at the tokens per parameter that sizes are compared at."""
    tokens_ci: tuple[float, float] | None
    steps_ratio: float | None
    """Steps of the baseline over the series', each at its critical batch."""
    steps_ci: tuple[float, float] | None
    device_time_ratio: float | None
    """Device time of the baseline over the series', for the same loss, at the speed of their best runs."""
    device_time_ci: tuple[float, float] | None
    memory_ratio: float | None
    """Peak memory of the baseline's best run over that of the series', at the size of the stated compute."""
    memory_ci: tuple[float, float] | None
    not_measured: dict[str, str]
    """Device time and memory without a ratio or an interval, and why."""
    gap: float
    """Loss of the baseline's law at the stated compute over that of the series' law, minus one."""
    prediction_error: float | None
    """The larger of both series' errors at the largest size, predicted from the smaller ones, relative to the loss."""
    standing: Standing
    """What may be said of the two."""


@dataclass(frozen=True)
class OneCompute:
    """Every series at one compute, or why there is no such comparison."""

    baseline: str
    flops: float | None
    time_definition: str | None
    """Of the critical batch behind time ratios."""
    prediction_error_reason: str | None
    """Why no error of a prediction is known."""
    stands_on: RunsBehind | None
    series: list[AtOneCompute]
    reason: str | None = None


def compute(inputs: Inputs) -> OneCompute:
    """Ratios of all series with a law at the largest compute that all of them reached."""
    iso = inputs.iso_loss
    if isinstance(iso, str):
        return OneCompute(inputs.baseline, None, None, None, None, [], iso)
    named = [name for name in iso.series if name != inputs.baseline and name in iso.curves]
    if inputs.baseline not in iso.series or not named:
        why = "no other series has a law" if inputs.baseline in iso.series else f"{inputs.baseline} has no law"
        return OneCompute(inputs.baseline, None, None, iso.holdout_reason, None, [], f"{why} of loss against compute")
    rows = inputs.best[inputs.best["series"].isin([inputs.baseline, *named])]
    at = float(rows.groupby("series")["flops"].max().min())
    definition, batch_laws = shared_definition(inputs.critical_batch_laws, inputs.baseline)
    times: dict[str, TimeRatio] = {}
    if definition is not None:
        points, grid = {name: [at] for name in named}, np.empty(0)
        found = compute_time_ratios(
            iso.fit, batch_laws, definition, inputs.baseline, points, grid, inputs.budget, iso.scales
        )
        times = {one.series: one for one in found.ratios}
    rows = rows.assign(seconds_per_flop=rows["train_seconds"] * rows["num_ranks"] / rows["flops"])
    compared = [_compare(iso, name, at, times.get(name), rows) for name in named]
    behind = inputs.optima.runs_behind(rows)
    return OneCompute(inputs.baseline, at, definition, iso.holdout_reason, behind, compared)


def _compare(iso: IsoLoss, series: str, at: float, time: TimeRatio | None, best: pd.DataFrame) -> AtOneCompute:
    ratio = equal_loss_ratio(iso.fit, iso.scales, iso.baseline, series, at)
    gap = loss_at(iso.fit, iso.baseline, at) / loss_at(iso.fit, series, at) - 1
    error = prediction_error(iso, iso.baseline, series)
    standing = standing_of(ratio.ci, gap, error, iso.scales < TRUSTED_SCALES)
    speed, memory = (
        measured_ratio(best, iso.baseline, series, name, at) for name in ("seconds_per_flop", "memory_bytes")
    )
    device_time = at_equal_loss(speed, ratio.value, ratio.ci)
    reasons = {"device time": speed.reason, "memory": memory.reason}
    return AtOneCompute(
        series,
        ratio.value,
        ratio.ci,
        time.value if time else None,
        time.ci if time else None,
        float(np.sqrt(ratio.value)),
        (float(np.sqrt(ratio.ci[0])), float(np.sqrt(ratio.ci[1]))) if ratio.ci else None,
        time.steps if time else None,
        time.steps_ci if time else None,
        device_time.value if device_time else None,
        device_time.ci if device_time else None,
        memory.ratio.value if memory.ratio else None,
        memory.ratio.ci if memory.ratio else None,
        {name: reason for name, reason in reasons.items() if reason},
        gap,
        error,
        standing,
    )


def standing_of(ci: tuple[float, float] | None, gap: float, error: float | None, few: bool) -> Standing:
    """What may be said, the strongest objection first."""
    if error is not None and error > abs(gap):
        return "cannot be told apart"
    if few:
        return "too few sizes"
    if ci is None or ci[0] <= 1 <= ci[1]:
        return "not established"
    return "established"


def findings(result: OneCompute) -> list[str]:
    """Every series at the same compute: one sentence each, or a shared one where they are many."""
    if result.flops is None or result.stands_on is None:
        return []
    runs = f"(on {integer(result.stands_on.runs)} of {integer(result.stands_on.of)} runs)"
    if len(result.series) > _MANY_SERIES:
        return [_shared_sentence(result, runs), *_shared_standings(result)]
    return [_sentence(result, one, runs) for one in result.series]


def _sentence(result: OneCompute, one: AtOneCompute, runs: str) -> str:
    text = (
        f"{result.baseline} needs {_with_interval(one.compute_ratio, one.compute_ci)} times the compute of "
        f"{one.series} at {flops(result.flops or 0)} FLOPs"
    )
    if one.time_ratio is not None:
        text += (
            f", and {_with_interval(one.time_ratio, one.time_ci)} times its training time with each at its critical "
            f"batch ({result.time_definition})"
        )
    return f"{text} {runs}: {_in_words(one)}."


def _in_words(one: AtOneCompute) -> str:
    match one.standing:
        case "cannot be told apart":
            return (
                "but the law cannot tell them apart, as it misses the largest size by "
                f"{spread(one.prediction_error or 0)}, more than the {spread(abs(one.gap))} between them"
            )
        case "too few sizes":
            return "too few sizes to establish it"
        case "not established":
            return "which of the two needs less is not established"
        case "established":
            return "established" if one.prediction_error is not None else _UNPREDICTED
        case _:
            assert_never(one.standing)


def _shared_sentence(result: OneCompute, runs: str) -> str:
    ranked = sorted(result.series, key=lambda one: -one.compute_ratio)
    each = listed_values([(one.series, _with_interval(one.compute_ratio, one.compute_ci)) for one in ranked])
    return (
        f"At {flops(result.flops or 0)} FLOPs {result.baseline} needs so many times the compute of each series {runs}: "
        f"{each}."
    )


def _shared_standings(result: OneCompute) -> list[str]:
    """One sentence for all series of a standing, but for the established ones."""
    words: dict[Standing, str] = {
        "cannot be told apart": "The law misses the largest size by more than the gap, and cannot tell from "
        f"{result.baseline}",
        "too few sizes": "Not established, for want of sizes",
        "not established": "Not established, as the interval holds 1",
    }
    out = []
    for standing, head in words.items():
        names = [one.series for one in result.series if one.standing == standing]
        out += [f"{head}: {listed(names)}."] if names else []
    return out


def _with_interval(value: float, ci: tuple[float, float] | None) -> str:
    return ratio(value) + (f" [{ratio(ci[0])}, {ratio(ci[1])}]" if ci else "")


def section(result: OneCompute) -> list[str]:
    """What is compared, and when the law may not be believed."""
    if result.flops is None:
        return [f"{NOT_IDENTIFIED}{result.reason}."]
    text = (
        f"Each series spends {flops(result.flops)} FLOPs, the largest compute that all were trained with; the ratio is "
        f"{result.baseline}'s compute for the same loss over that. Where the law misses the largest size, predicted "
        "from the smaller ones, by more than the gap between two series, it cannot tell them apart."
    )
    what = (
        "Tokens, at as many for each parameter; steps and time with each at its critical batch, time were a step as "
        "long as its model is large; device time at the speed of the best runs, on the same device and number of "
        "ranks as far as records say; peak memory of the main rank at one size."
    )
    if result.prediction_error_reason:
        text += f" Here that error is not known: {result.prediction_error_reason}."
    missing = _not_measured(result)
    return [text, what, *([" ".join(missing)] if missing else [])]


def _not_measured(result: OneCompute) -> list[str]:
    """A sentence for each ratio or interval that is missing, and why."""
    out = []
    if result.time_definition is None:
        out.append(f"Steps and time: no law of the critical batch that {result.baseline} shares with another series.")
    found: dict[tuple[str, str], list[str]] = {}
    for one in result.series:
        for quantity, why in one.not_measured.items():
            found.setdefault((quantity, why), []).append(one.series)
    for (quantity, why), names in found.items():
        whose = "" if len(names) == len(result.series) else f" of {listed(names)}"
        out.append(f"{quantity[0].upper()}{quantity[1:]}{whose}: {why}.")
    return out


def rows(result: OneCompute) -> list[Table]:
    """One row a series."""
    table = Table(
        "one_compute",
        f"Each series at {flops(result.flops or 0)} FLOPs: what {result.baseline} needs for its loss over that",
        [
            Column("series"), Column("compute ratio", "ratio"),
            Column("compute ratio 95% interval", "ratio", joint=" "), *_columns("tokens ratio"),
            *_columns("steps ratio"), *_columns("time ratio"), *_columns("device time ratio"),
            *_columns("memory ratio"), Column("gap in loss", "percent"),
            Column("error at the largest size", "spread"), Column("standing"),
        ],
        [
            [
                one.series, one.compute_ratio, one.compute_ci, one.tokens_ratio, one.tokens_ci,
                one.steps_ratio, one.steps_ci, one.time_ratio, one.time_ci, one.device_time_ratio, one.device_time_ci,
                one.memory_ratio, one.memory_ci, one.gap, one.prediction_error, one.standing,
            ]
            for one in result.series
        ],
    )  # fmt: skip
    return [table] if table.rows else []


def _columns(name: str) -> tuple[Column, Column]:
    return Column(name, "ratio"), Column(f"{name} 95% interval", "ratio", joint=" ")


QUESTION = Question(
    name="one_compute",
    title="All series at one compute",
    result=OneCompute,
    compute=compute,
    findings=findings,
    section=section,
    rows=rows,
)
