"""cbs_joint: the critical batch from one model of all scales and batches of a series.

    L = E + A N^-alpha + B D_eff^-beta,    D_eff = D / (1 + B/B_c),    B_c = c D^p

Steps above the critical batch bring ever less: a batch of B_c doubles the tokens that a loss costs. Only batches from
the best one upwards take part: below it, other effects raise the loss. Where sizes and tokens rise together alpha and
beta cannot be told apart and are one exponent. The model is an assumption, and the interval (asymptotic, Student's t)
knows of no other.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pandas as pd
from scipy.optimize import least_squares

from analysis.confidence import t_quantile
from analysis.laws.fit import Estimate, NotIdentified
from analysis.laws.fit_law import MAX_EXPONENT
from analysis.laws.intervals import WIDEST_EXPONENT
from analysis.laws.power_law import MAX_CORRELATION
from analysis.laws.solver import Array

MIN_SCALES = 3
_MAX_CONDITION = 1e6
MAX_FACTOR = 100.0
"""Largest factor between the critical batch and an end of its interval."""


@dataclass(frozen=True)
class JointLaw:
    """B_c = c D^p of one series."""

    series: str
    exponent: Estimate
    """p."""
    at_tokens: float
    """D in the middle of the data, where B_c is known best."""
    critical_batch_size: Estimate
    """B_c at that D, tokens."""
    num_points: int
    num_scales: int
    tied: bool
    """alpha = beta, because N and D rise together."""
    residual_sd: float
    objective: float
    converged: bool


def fit_joint(points: pd.DataFrame, series: str, delta: float) -> JointLaw:
    """`points` holds the best loss at each scale and batch (num_params, num_tokens, global_batch_tokens, loss).

    Raises `NotIdentified` where the data do not determine the model.
    """
    rows = from_the_best_batch(points[points["series"] == series])
    scales = rows.groupby(["num_params", "tokens_per_parameter"]).ngroups
    sizes = rows["num_params"].nunique()
    if sizes < MIN_SCALES:
        raise NotIdentified(f"{sizes} size(s), {MIN_SCALES} are needed")
    log_n, log_d, log_b, log_l = (
        np.log(rows[name].to_numpy(dtype=float)) for name in ("num_params", "num_tokens", "global_batch_tokens", "loss")
    )
    n, d = log_n - log_n.mean(), log_d - log_d.mean()
    tied = abs(float(np.corrcoef(log_n, log_d)[0, 1])) > MAX_CORRELATION
    num_parameters = 6 if tied else 7
    if len(rows) < num_parameters + scales:
        raise NotIdentified(f"{len(rows)} losses at or above the best batches: {num_parameters + scales} are needed")

    def parts(theta: Array) -> tuple[Array, Array, Array]:
        """Logs of the three terms, and the share of tokens lost, (3, n), (n,), (n,)."""
        e, a, alpha, b, c, p = theta[:6]
        beta = alpha if tied else theta[6]
        wasted = np.logaddexp(0.0, log_b - c - p * d)
        terms = np.stack([np.full_like(n, e), a - alpha * n, b - beta * (d - wasted)])
        return terms, wasted, 1 - np.exp(-wasted)

    def residual(theta: Array) -> Array:
        terms, _, _ = parts(theta)
        return np.asarray(np.logaddexp.reduce(terms, axis=0) - log_l)

    def jacobian(theta: Array) -> Array:
        terms, wasted, share = parts(theta)
        weight = np.exp(terms - np.logaddexp.reduce(terms, axis=0))
        beta = theta[2] if tied else theta[6]
        by_alpha, by_beta = -weight[1] * n, -weight[2] * (d - wasted)
        by_c = -weight[2] * beta * share
        columns = [weight[0], weight[1], by_alpha + by_beta if tied else by_alpha, weight[2], by_c, by_c * d]
        return np.stack(columns if tied else [*columns, by_beta], axis=1)

    best = min(
        (
            least_squares(
                residual, start, jac=jacobian, method="trf", loss="huber" if np.isfinite(delta) else "linear",
                f_scale=delta if np.isfinite(delta) else 1.0, x_scale="jac", xtol=1e-10, ftol=1e-12, gtol=1e-12,
                max_nfev=200,
            )
            for start in _starts(log_l, log_b, tied)
        ),
        key=lambda found: found.cost,
    )  # fmt: skip
    theta, slope = best.x, jacobian(best.x)
    length = np.linalg.norm(slope, axis=0)
    condition = np.linalg.cond(slope / np.maximum(length, 1e-300))
    if not condition < _MAX_CONDITION:
        raise NotIdentified(
            f"its parameters trade off against each other (condition {condition:.1e}): larger batches are needed"
        )
    left = residual(theta)
    freedom = len(rows) - num_parameters
    covariance = np.linalg.inv(slope.T @ slope) * float((left**2).sum()) / freedom
    t = t_quantile(freedom)
    p_se, c_se = np.sqrt(covariance[5, 5]), np.sqrt(covariance[4, 4])
    c, p = theta[4], theta[5]
    _require_sense(p, t * p_se, t * c_se, bool(best.status > 0))
    return JointLaw(
        series,
        Estimate(float(theta[5]), float(p_se), (float(theta[5] - t * p_se), float(theta[5] + t * p_se))),
        float(np.exp(log_d.mean())),
        Estimate(float(np.exp(c)), float(np.exp(c) * c_se), (float(np.exp(c - t * c_se)), float(np.exp(c + t * c_se)))),
        len(rows),
        scales,
        tied,
        float(np.std(left)),
        float(best.cost),
        bool(best.status > 0),
    )


def _require_sense(exponent: float, exponent_width: float, log_width: float, converged: bool) -> None:
    """Refuse a model whose optimum was not reached, or whose intervals (half widths) hold everything."""
    if not converged:
        raise NotIdentified("its optimum was not reached: these points leave the model's parameters open")
    if not 2 * exponent_width < WIDEST_EXPONENT or abs(exponent) > MAX_EXPONENT:
        raise NotIdentified(
            f"the exponent of the critical batch, {exponent:.3g} +- {exponent_width:.3g}, is not determined: batches "
            "further above the best are needed, or more sizes"
        )
    if not log_width < np.log(MAX_FACTOR):
        raise NotIdentified(
            f"the critical batch is known to a factor of {np.exp(min(log_width, 690.0)):.2g} alone: batches further "
            "above the best are needed"
        )


def from_the_best_batch(rows: pd.DataFrame) -> pd.DataFrame:
    """The points of one series that the model is fitted to."""
    scales = ["num_params", "tokens_per_parameter"]
    best = rows.loc[rows.groupby(scales)["loss"].idxmin()].set_index(scales)["global_batch_tokens"]
    best_of_scale = best.reindex(pd.MultiIndex.from_frame(rows[scales])).to_numpy()
    return rows[rows["global_batch_tokens"].to_numpy() >= best_of_scale].sort_values(scales, kind="stable")


def _starts(log_l: Array, log_b: Array, tied: bool) -> list[Array]:
    out = []
    for share in (0.4, 0.8):
        for position in (0.5, 1.0):
            floor = np.log(share) + log_l.min()
            rest = np.log(np.expm1(np.median(log_l) - floor) / 2) + floor
            middle = log_b.min() + position * np.ptp(log_b)
            theta = [floor, rest, 0.3, rest, middle, 0.6]
            out.append(np.array(theta if tied else [*theta, 0.3]))
    return out
