"""How many times longer the baseline trains for the same loss when every method uses its critical batch.

Training at the critical batch takes T = C / B_crit(D) steps' worth of time, D = sqrt(k C / 6) at k tokens per
parameter. The ratio T_baseline / T_series multiplies the compute ratio by that of the critical batches. One resample
of the scales drives the laws of loss, the laws of the critical batch, and the ratio.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from analysis.laws.fit import Fit
from analysis.laws.solver import Array
from analysis.questions.critical_batch_size import CriticalBatchLaw
from analysis.questions.iso_loss import Ratio, interval_of, is_beyond, ratio_at

DEFINITIONS = ("cbs_overhead20", "cbs_1pct_interpolated", "cbs_1pct")
"""Critical batches for time ratios, the preferred definition first."""


def shared_definition(laws: Sequence[CriticalBatchLaw], baseline: str) -> tuple[str | None, dict[str, Fit]]:
    """The first definition by which the baseline and another series have a law, and the laws by series."""
    for definition in DEFINITIONS:
        fits = {law.series: law.fit for law in laws if law.definition == definition and law.fit}
        if baseline in fits and len(fits) > 1:
            return definition, fits
    return None, {}


@dataclass(frozen=True)
class TimeRatio(Ratio):
    """T_baseline / T_series, and the ratio of their steps alone."""

    steps: float = 1.0
    """Steps of the baseline over the series': models that are larger take fewer for the same compute."""
    steps_ci: tuple[float, float] | None = None


@dataclass(frozen=True)
class TimeRatios:
    """Ratios at each scale's own compute, curves for the figure, and series without one."""

    definition: str
    """Definition of the critical batch."""
    ratios: list[TimeRatio]
    curves: dict[str, list[TimeRatio]]
    refused: dict[str, str]


def time_ratio_at(
    loss_laws: Mapping[str, Array],
    batch_laws: Mapping[str, Mapping[str, Array]],
    baseline: str,
    series: str,
    flops: float,
    tokens_per_parameter: float,
) -> Array:
    """T_baseline / T_series where the series trains with `flops`; laws map parameters to arrays of draws."""
    compute = ratio_at(loss_laws, baseline, series, flops)

    def critical_batch(name: str, compute_of: Array) -> Array:
        tokens = np.sqrt(tokens_per_parameter * compute_of / 6)
        law = batch_laws[name]
        return np.asarray(law["A"] * tokens ** law["alpha"])

    own = critical_batch(series, np.full_like(compute, flops))
    with np.errstate(over="ignore", invalid="ignore"):
        return np.asarray(compute * own / critical_batch(baseline, compute * flops))


def at_baselines_flops(loss_laws: Mapping[str, Array], baseline: str, series: str, flops: float) -> float:
    """The series' compute at which the baseline needs `flops` for the same loss."""
    alpha, base_alpha = loss_laws[f"alpha[{series}]"][0], loss_laws[f"alpha[{baseline}]"][0]
    log_reducible = np.log(loss_laws[f"A[{baseline}]"][0]) - base_alpha * np.log(flops)
    return float(np.exp((np.log(loss_laws[f"A[{series}]"][0]) - log_reducible) / alpha))


def compute_time_ratios(
    loss_fit: Fit,
    batch_fits: Mapping[str, Fit],
    definition: str,
    baseline: str,
    points: Mapping[str, list[float]],
    grid: Array,
    tokens_per_parameter: float,
    scales: int,
) -> TimeRatios:
    """`points`: each series' own compute, scale by scale. All fits must come from one bootstrap over `scales` sizes."""
    refused = {name: "no law of its critical batch" for name in points if name not in batch_fits}
    if baseline not in batch_fits:
        return TimeRatios(definition, [], {}, dict.fromkeys(points, f"{baseline} has no law of its critical batch"))
    loss_laws = {name: np.array([e.value]) for name, e in loss_fit.parameters.items()}
    batch_laws = {
        name: {key: np.array([e.value]) for key, e in fit.parameters.items()} for name, fit in batch_fits.items()
    }
    batch_draws = {name: fit.draws for name, fit in batch_fits.items()}

    def ratio(series: str, flops: float) -> TimeRatio:
        arguments = (baseline, series, flops, tokens_per_parameter)
        value = float(time_ratio_at(loss_laws, batch_laws, *arguments)[0])
        # Tokens, and so parameters, grow as the root of compute; steps are time over the size of the model.
        steps = value / float(np.sqrt(ratio_at(loss_laws, baseline, series, flops)[0]))
        ci, undefined, steps_ci = None, 0, None
        if loss_fit.draws and batch_draws[series] and batch_draws[baseline]:
            draws = time_ratio_at(loss_fit.draws, batch_draws, *arguments)
            ci, undefined = interval_of(draws, value, scales)
            steps_ci, _ = interval_of(draws / np.sqrt(ratio_at(loss_fit.draws, baseline, series, flops)), steps, scales)
        return TimeRatio(series, flops, value, ci, is_beyond(loss_fit, flops), undefined, steps, steps_ci)

    named = [name for name in points if name != baseline and name in batch_fits]
    return TimeRatios(
        definition,
        [ratio(name, flops) for name in named for flops in points[name]],
        {name: [ratio(name, float(flops)) for flops in grid] for name in named},
        refused,
    )
