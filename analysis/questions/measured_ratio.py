"""A measured quantity of the baseline over that of another series at one compute: device time, memory.

Both are compared at each size that both were trained at, on the same device and number of ranks as far as records say.
The logs of these ratios follow a line in log compute; its value at the stated compute has Student's interval, which
holds what the sizes scatter about the line.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pandas as pd

from analysis.confidence import t_quantile
from analysis.laws.fit import Estimate
from analysis.laws.solver import Array

_LEAST_SIZES = 3


@dataclass(frozen=True)
class MeasuredRatio:
    """The baseline over the series, at one size."""

    ratio: Estimate | None
    growth: Estimate
    """Exponent with which the baseline's own quantity grows with compute."""
    reason: str | None
    """Why there is no ratio, or no interval."""


_UNKNOWN_GROWTH = Estimate(0.0, 0.0, (0.0, 0.0))


def measured_ratio(best: pd.DataFrame, baseline: str, series: str, quantity: str, at: float) -> MeasuredRatio:
    """The ratio of `quantity`, a column of `best` (one row a series and size), at `at` flops."""
    own, base = (best[best["series"] == name].set_index("num_params") for name in (series, baseline))
    both = own.join(base.add_suffix(" of baseline"), how="inner")
    known = both[(both[quantity] > 0) & (both[f"{quantity} of baseline"] > 0)]
    if known.empty:
        return MeasuredRatio(None, _UNKNOWN_GROWTH, "not recorded at a size that both have")
    same = known[
        (known["device"] == known["device of baseline"]) & (known["num_ranks"] == known["num_ranks of baseline"])
    ]
    if same.empty:
        return MeasuredRatio(None, _UNKNOWN_GROWTH, "recorded on other devices, or another number of them")
    x = np.log(same["flops"].to_numpy(dtype=float)) - np.log(at)
    above = np.log(same[f"{quantity} of baseline"].to_numpy(dtype=float))
    ratios = above - np.log(same[quantity].to_numpy(dtype=float))
    if len(same) < _LEAST_SIZES:
        value = float(np.exp(ratios[np.abs(x).argmin()]))
        reason = f"{len(same)} size(s) recorded, {_LEAST_SIZES} are needed for an interval"
        return MeasuredRatio(Estimate(value), _UNKNOWN_GROWTH, reason)
    (level, _), (error, _) = _line(x, ratios)
    (_, slope), (_, slope_error) = _line(x, above)
    reach = t_quantile(len(x) - 2)
    ends = (float(np.exp(level - reach * error)), float(np.exp(level + reach * error)))
    growth = Estimate(slope, slope_error, (slope - reach * slope_error, slope + reach * slope_error))
    return MeasuredRatio(Estimate(float(np.exp(level)), float(np.exp(level)) * error, ends), growth, None)


def _line(x: Array, y: Array) -> tuple[tuple[float, float], tuple[float, float]]:
    """Level at zero and slope of the least-squares line, and the standard errors of both."""
    design = np.stack([np.ones_like(x), x], axis=1)
    inverse = np.linalg.inv(design.T @ design)
    level, slope = inverse @ design.T @ y
    variance = ((y - level - slope * x) ** 2).sum() / (len(x) - 2)
    errors = np.sqrt(variance * np.diag(inverse))
    return (float(level), float(slope)), (float(errors[0]), float(errors[1]))


def at_equal_loss(same_size: MeasuredRatio, compute: float, compute_ci: tuple[float, float] | None) -> Estimate | None:
    """Quantity of the baseline with `compute` times the compute over that of the series; `quantity` is one per flop.

    The three uncertain parts (compute, the ratio at one size, and how the quantity grows with compute) are independent:
    half widths in log add as squares.
    """
    if same_size.ratio is None:
        return None
    growth, log_compute = same_size.growth, float(np.log(compute))
    power = 1 + growth.value
    value = float(np.exp(power * log_compute)) * same_size.ratio.value
    if compute_ci is None or same_size.ratio.ci is None or growth.ci is None:
        return Estimate(value)
    bend = (growth.ci[1] - growth.value) * abs(log_compute)
    ends = []
    for i in (0, 1):
        widths = (
            power * (np.log(compute_ci[i]) - log_compute),
            np.log(same_size.ratio.ci[i] / same_size.ratio.value),
            bend,
        )
        ends.append(value * float(np.exp((2 * i - 1) * np.sqrt(sum(w**2 for w in widths)))))
    return Estimate(value, None, (ends[0], ends[1]))
