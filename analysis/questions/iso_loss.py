"""How much more compute, or time, the baseline needs for the same loss.

L_m(C) = E + A_m C^-alpha_m with one irreducible loss E for all methods, so that the ratio C_base(L)/C_m(L) is
a straight line in log-log. Scales are resampled together for all methods: what they share cancels. A ratio beyond the
data is an extrapolation and is marked as one; the error of leaving the largest scale out stands beside it.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import pandas as pd
from scipy import special

from analysis.confidence import CONFIDENCE, t_quantile
from analysis.laws.fit import Fit, NotIdentified
from analysis.laws.power_law import fit_loss_compute
from analysis.laws.solver import Array

MIN_SCALES = 3
TRUSTED_SCALES = 5
"""With fewer, resampling scales says little, and the report says so."""

_MOST_DECADES = 2.0
_FARTHEST = 700.0
"""Logs beyond which a double overflows."""


@dataclass(frozen=True)
class Ratio:
    """C_baseline(L) / C_series(L) at the loss that `series` reaches with `flops`."""

    series: str
    flops: float
    value: float
    ci: tuple[float, float] | None
    extrapolated: bool
    undefined: int = 0
    """Resamples in which the ratio does not exist."""


@dataclass(frozen=True)
class Holdout:
    """The largest scale predicted from the smaller ones."""

    series: str
    num_params: int
    predicted_loss: float
    observed_loss: float

    @property
    def relative_error(self) -> float:
        return self.predicted_loss / self.observed_loss - 1


@dataclass(frozen=True)
class IsoLoss:
    """The laws of all series with a shared irreducible loss, and what follows from them."""

    baseline: str
    fit: Fit
    scales: int
    """Sizes behind the laws."""
    ratios: list[Ratio]
    """Ratios at each series' own compute, scale by scale."""
    curves: dict[str, list[Ratio]]
    """Ratios on `ratio_grid`, for the figure."""
    holdouts: list[Holdout]
    holdout_reason: str | None
    series: list[str]
    refused: dict[str, str]
    """Series without a law, and why."""


def compute_iso_loss(
    best: pd.DataFrame, series: list[str], baseline: str, delta: float, bootstrap: int, seed: int
) -> IsoLoss:
    """`best` has one row a series and scale (columns series, num_params, flops, loss), all at one token budget."""
    counts = best.groupby("series")["num_params"].nunique()
    refused = {
        name: f"{counts.get(name, 0)} size(s) at this token budget, {MIN_SCALES} are needed"
        for name in series
        if counts.get(name, 0) < MIN_SCALES
    }
    used = [name for name in series if name not in refused]
    if not used:
        raise NotIdentified(f"no series has {MIN_SCALES} sizes at one token budget")
    rows = best[best["series"].isin(used)]
    fit, scales = _fit(rows, delta, bootstrap, seed), int(rows["num_params"].nunique())
    ratios: list[Ratio] = []
    curves: dict[str, list[Ratio]] = {}
    if baseline in used:
        grid = ratio_grid(fit)
        for name in used:
            if name == baseline:
                continue
            own = rows[rows["series"] == name].sort_values("flops")["flops"].to_numpy()
            found = [equal_loss_ratio(fit, scales, baseline, name, float(c)) for c in own]
            if why := _not_identified(found):
                refused[name] = why
                continue
            ratios += found
            curves[name] = [equal_loss_ratio(fit, scales, baseline, name, float(c)) for c in grid]
    holdouts, reason = _leave_largest_out(rows, delta)
    return IsoLoss(baseline, fit, scales, ratios, curves, holdouts, reason, used, refused)


def ratio_grid(fit: Fit) -> Array:
    """Compute at which ratio curves are drawn: the data's range and a decade beyond, no further."""
    low, high = fit.inputs["flops"]
    return np.geomspace(low, high * 10, 41)


def loss_at(fit: Fit, series: str, flops: float) -> float:
    """Loss of the series' law at `flops`."""
    return float(fit.value("E") + fit.value(f"A[{series}]") * flops ** -fit.value(f"alpha[{series}]"))


def prediction_error(iso: IsoLoss, first: str, second: str) -> float | None:
    """The larger relative error of both at the largest size, predicted from the smaller; None without one of both."""
    errors = {one.series: abs(one.relative_error) for one in iso.holdouts}
    return max(errors[first], errors[second]) if {first, second} <= errors.keys() else None


def is_beyond(fit: Fit, flops: float) -> bool:
    """Whether a law is used beyond its data; a rounding error is not."""
    return fit.extrapolation_decades("flops", flops) > 1e-4


def ratio_at(parameters: Mapping[str, Array], baseline: str, series: str, flops: float) -> Array:
    """C_baseline / C at equal loss; `parameters` maps E or E[...], A[...] and alpha[...] to arrays.

    Not a number where the baseline's irreducible loss, its own, is not below the loss that the series reaches.
    """
    log_reducible = np.log(parameters[f"A[{series}]"]) - parameters[f"alpha[{series}]"] * np.log(flops)
    if "E" not in parameters:
        above = parameters[f"E[{series}]"] + np.exp(log_reducible) - parameters[f"E[{baseline}]"]
        log_reducible = np.log(np.where(above > 0, above, np.nan))
    log_base = (np.log(parameters[f"A[{baseline}]"]) - log_reducible) / parameters[f"alpha[{baseline}]"]
    ratio: Array = np.exp(np.clip(log_base - np.log(flops), -_FARTHEST, _FARTHEST))
    return ratio


def interval_of(draws: Array, value: float, scales: int) -> tuple[tuple[float, float] | None, int]:
    """95% interval that holds `value`, and the number of draws in which there is no ratio.

    Percentiles of few scales lie too close together: their distance from `value`, in logs, grows by `widening`.
    """
    finite = draws[np.isfinite(draws) & (draws > 0)]
    if len(finite) < len(draws) / 2:
        return None, len(draws) - len(finite)
    apart = widening(scales) * np.log(np.quantile(finite, [0.025, 0.975]) / value)
    low, high = np.exp(np.clip(np.log(value) + apart, -_FARTHEST, _FARTHEST))
    return (min(float(low), value), max(float(high), value)), len(draws) - len(finite)


def widening(scales: int) -> float:
    """By how much percentiles over `scales` sizes lie too close together, for laws of two parameters each.

    Student's t instead of the normal distribution, and residuals that the fit has made smaller (Hesterberg 2015,
    section 3.5).
    """
    freedom = max(1, scales - 2)
    return t_quantile(freedom) / float(special.ndtri(0.5 + CONFIDENCE / 2)) * float(np.sqrt(scales / freedom))


def equal_loss_ratio(fit: Fit, scales: int, baseline: str, series: str, flops: float) -> Ratio:
    """The ratio with its interval where `series` has `flops`; `scales` sizes are behind the laws."""
    point = ratio_at({k: np.array([e.value]) for k, e in fit.parameters.items()}, baseline, series, flops)
    ci, undefined = None, 0
    if fit.draws:
        ci, undefined = interval_of(ratio_at(fit.draws, baseline, series, flops), float(point[0]), scales)
    return Ratio(series, flops, float(point[0]), ci, is_beyond(fit, flops), undefined)


def _not_identified(ratios: list[Ratio]) -> str | None:
    """Why the ratios of a series mean nothing: none of them, not even the best known, is known to two decades."""
    widths = [np.log10(r.ci[1] / r.ci[0]) if r.ci[0] > 0 else np.inf for r in ratios if r.ci]
    if not widths or min(widths) <= _MOST_DECADES:
        return None
    return f"the interval of its ratio spans {min(widths):.2g} decades or more at every size"


def _fit(rows: pd.DataFrame, delta: float, bootstrap: int, seed: int) -> Fit:
    return fit_loss_compute(
        rows["flops"],
        rows["loss"],
        groups=rows["series"].tolist(),
        delta=delta,
        bootstrap=bootstrap,
        seed=seed,
        resample_by=rows["num_params"].tolist(),
    )


def _leave_largest_out(rows: pd.DataFrame, delta: float) -> tuple[list[Holdout], str | None]:
    largest = rows["num_params"].max()
    smaller = rows[rows["num_params"] < largest]
    if smaller.groupby("series")["num_params"].nunique().min() < MIN_SCALES:
        return [], f"leaving the largest size out would leave fewer than {MIN_SCALES} sizes"
    try:
        fit = _fit(smaller, delta, 0, 0)
    except NotIdentified as error:
        return [], str(error)
    out = []
    for row in rows[rows["num_params"] == largest].to_dict("records"):
        name = row["series"]
        if f"A[{name}]" not in fit.parameters:
            continue
        out.append(Holdout(name, int(largest), loss_at(fit, name, row["flops"]), float(row["loss"])))
    return out, None
