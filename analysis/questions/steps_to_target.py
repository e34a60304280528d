"""The critical batch from training curves: how the steps to one loss fall with the batch.

    S = S_min (1 + B_c / B),    tokens = S B = S_min (B + B_c)

(McCandlish et al. 2018). At B_c a run takes twice the fewest steps and twice the fewest tokens; a batch of B_c / 5
costs a fifth more tokens than the fewest. The target is the lowest loss that the curves of all batches reach. Curves
whose learning rate decays reach a loss late: B_c is then that of their schedules.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, cast

import numpy as np
import pandas as pd
from scipy.optimize import least_squares

from analysis.confidence import t_quantile
from analysis.laws.fit import Estimate, NotIdentified
from analysis.laws.solver import Array
from analysis.page.axes import log_axis
from analysis.page.drawing import Drawing, finish, panel, series_slug
from analysis.page.numbers import count, integer
from analysis.page.page_table import Column, Table
from analysis.page.styles import Styles
from analysis.questions.question import NOT_IDENTIFIED, Inputs, Question
from analysis.seeds import run_folders
from muloco_runner.record import RecordError, RunFolder

MIN_BATCHES = 4
_WIDEST = np.log(100.0)
"""Largest log ratio between B_c and an end of its interval."""


@dataclass(frozen=True)
class StepsToTarget:
    """One series at one scale."""

    series: str
    num_params: int
    tokens_per_parameter: float
    target_loss: float | None
    batches: list[float]
    steps: list[float]
    """Steps to the target at each batch."""
    critical_batch: Estimate | None
    fewest_steps: float | None
    reason: str | None


@dataclass(frozen=True)
class CurveBatches:
    """Every scale with curves at several batches, or why there are no curves."""

    scales: list[StepsToTarget]
    reason: str | None


def compute(inputs: Inputs) -> CurveBatches:
    """The critical batch of every series and scale whose best runs logged validation losses."""
    if inputs.study.folder is None:
        return CurveBatches([], "a table has one loss a run, and no curves")
    if against := inputs.optima.reason_against("global_batch_tokens", "loss"):
        return CurveBatches([], against)
    keys = ["series", "num_params", "tokens_per_parameter"]
    scales = []
    points = inputs.optima.points
    points = points.assign(folder=pd.Series(run_folders(inputs.study, points), points.index, dtype=object))
    for key, rows in points.groupby(keys, sort=True, observed=True):
        series, num_params, budget = cast("tuple[str, int, float]", key)
        if rows["global_batch_tokens"].nunique() < MIN_BATCHES:
            continue
        curves = {
            float(b): _curve(folder) for b, folder in zip(rows["global_batch_tokens"], rows["folder"], strict=True)
        }
        if not any(len(curve) for curve in curves.values()):
            continue
        scales.append(steps_to_target(series, int(num_params), float(budget), curves))
    return CurveBatches(
        scales, None if scales else f"no scale has {MIN_BATCHES} batches whose runs logged validation losses"
    )


def _curve(folder: RunFolder) -> Array:
    """Steps and validation losses of a run, (points, 2)."""
    try:
        logged = folder.read_steps()
    except (RecordError, OSError):
        return np.zeros((0, 2))
    return np.array([(s.step, s.validation_loss) for s in logged if s.validation_loss], dtype=float).reshape(-1, 2)


def steps_to_target(
    series: str, num_params: int, tokens_per_parameter: float, curves: Mapping[float, Array]
) -> StepsToTarget:
    """Fit the steps to the lowest loss that all of `curves` reach; each maps a batch to steps and losses."""
    usable = {batch: curve for batch, curve in sorted(curves.items()) if len(curve) > 1}
    target, steps, found, fewest, reason = None, {}, None, None, None
    if len(usable) < MIN_BATCHES:
        reason = f"{len(usable)} batches have curves of validation losses, {MIN_BATCHES} are needed"
    else:
        target = max(float(curve[:, 1].min()) for curve in usable.values())
        steps = {batch: reached for batch, curve in usable.items() if (reached := _steps_to(curve, target)) is not None}
        try:
            found, fewest = fit_critical_batch_of_steps(np.array([*steps]), np.array([*steps.values()]))
        except NotIdentified as error:
            reason = str(error)
    return StepsToTarget(
        series, num_params, tokens_per_parameter, target, [*steps], [*steps.values()], found, fewest, reason
    )


def _steps_to(curve: Array, target: float) -> float | None:
    """Where a curve, straight in log steps, first reaches the target; None where it lies below from the start."""
    below = int((curve[:, 1] <= target).argmax())
    if below == 0:
        return None
    (before, high), (after, low) = curve[below - 1], curve[below]
    return float(before * (after / before) ** ((high - target) / (high - low)))


def fit_critical_batch_of_steps(batch: Array, steps: Array) -> tuple[Estimate, float]:
    """B_c with its 95% interval, and S_min. Raises `NotIdentified` where the steps do not bend."""
    if len(batch) < MIN_BATCHES:
        raise NotIdentified(f"{len(batch)} curves pass the target while logged, {MIN_BATCHES} are needed")

    def residual(theta: Array) -> Array:
        return np.asarray(theta[0] + np.logaddexp(0.0, theta[1] - np.log(batch)) - np.log(steps))

    middle = float(np.log(batch).mean())
    starts = [np.array([np.log(steps.min()), middle + shift]) for shift in (-2.0, 0.0, 2.0)]
    best = min((least_squares(residual, start, x_scale="jac") for start in starts), key=lambda one: float(one.cost))
    freedom = len(batch) - 2
    slope = np.asarray(best.jac)
    information = slope.T @ slope
    variance = 2 * float(best.cost) / freedom
    share = information[1, 1] - information[0, 1] ** 2 / information[0, 0]
    log_se = float(np.sqrt(variance / share)) if share > 0 else np.inf
    reach = t_quantile(freedom) * log_se
    value = float(np.exp(best.x[1]))
    if not (reach < _WIDEST and batch.min() / 100 < value < batch.max() * 100):
        side = "larger" if value > batch.max() else "smaller"
        raise NotIdentified(f"the steps do not bend between these batches: {side} ones are needed")
    interval = (float(np.exp(best.x[1] - reach)), float(np.exp(best.x[1] + reach)))
    return Estimate(value, value * log_se, interval), float(np.exp(best.x[0]))


def section(result: CurveBatches) -> list[str]:
    """The law, and why there may be none."""
    if result.reason:
        return [f"{NOT_IDENTIFIED}{result.reason}."]
    return [
        "Steps to one loss, S = S_min (1 + B_c / B): at B_c a run takes twice the fewest steps and twice the fewest "
        "tokens. The target is the lowest validation loss that the best runs of all batches reach; curves whose "
        "learning rate decays reach it late."
    ]


def rows(result: CurveBatches) -> list[Table]:
    """One row a scale."""
    table = Table(
        "steps_to_target",
        "Critical batch from steps to one loss",
        [
            Column("series"), Column("size", "count", "parameters"), Column("tokens per parameter", "number"),
            Column("target loss", "loss", "nats per token"), Column("B_c", "count", "tokens"),
            Column("B_c 95% interval", "count", joint=" "), Column("fewest steps", "integer"),
            Column("batches", "integer"), Column("why not"),
        ],
        [
            [
                s.series, s.num_params, s.tokens_per_parameter, s.target_loss,
                s.critical_batch.value if s.critical_batch else None,
                s.critical_batch.ci if s.critical_batch else None, s.fewest_steps,
                len(s.batches), s.reason or "–",
            ]
            for s in result.scales
        ],
    )  # fmt: skip
    return [table] if table.rows else []


def plot(result: CurveBatches, styles: Styles) -> list[Drawing]:
    """Steps to the target against batch, a figure a named series."""
    out = []
    fitted = [one for one in result.scales if one.critical_batch]
    for series in dict.fromkeys(one.series for one in fitted if one.series in styles.named):
        mine = [one for one in fitted if one.series == series]
        title = f"{series}: steps to one loss"
        figure, axes = panel(title, "batch B (tokens)", "steps")
        for i, one in enumerate(mine):
            style: dict[str, Any] = styles.nth(i)
            label = f"{count(one.num_params)}, D/N {one.tokens_per_parameter:g}"
            axes.plot(one.batches, one.steps, **{**style, "linestyle": "none"}, label=label)
            grid = np.geomspace(min(one.batches), max(one.batches), 60)
            assert one.critical_batch is not None
            line = (one.fewest_steps or 0) * (1 + one.critical_batch.value / grid)
            axes.plot(grid, line, color=style["color"], linestyle=style["linestyle"])
        log_axis(axes.xaxis, [b for one in mine for b in one.batches], count)
        log_axis(axes.yaxis, [s for one in mine for s in one.steps], integer)
        finish(figure, axes)
        alt = f"Steps to one loss against batch for {series}."
        out.append(Drawing(f"steps_{series_slug(series)}", title, alt, figure))
    return out


# No findings: another definition of the critical batch stands in the verdict.
QUESTION = Question(
    name="steps_to_target",
    title="Critical batch from curves",
    result=CurveBatches,
    compute=compute,
    section=section,
    rows=rows,
    plot=plot,
)
