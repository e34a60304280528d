"""cbs_joint: the critical batch from one model of all scales and batches of a series.

    L = E + A N^-alpha + B D_eff^-beta,    D_eff = D / (1 + B/B_c),    B_c = c N^q D^p, and its form in D alone

Steps above the critical batch bring ever less: a batch of B_c doubles the tokens that a loss costs. Only batches above
the best one take part: at it and below, other effects raise the loss, and the lowest of noisy losses lies too low.
Where sizes and tokens rise together alpha and beta cannot be told apart and are one exponent, and B_c has its form in D
alone. The model is an assumption, and the interval (asymptotic of an M-estimator, Student's t) knows of no other.
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
class JointInBoth:
    """B_c = c N^q D^p."""

    exponents: dict[str, Estimate]
    """q of `num_params`, p of `num_tokens`."""
    at: dict[str, float]
    """N and D in the middle of the data, where B_c is known best."""
    critical_batch_size: Estimate
    """B_c there, tokens."""
    residual_sd: float
    objective: float


@dataclass(frozen=True)
class JointLaw:
    """B_c = c D^p of one series, and its form in N and D."""

    series: str
    exponent: Estimate
    """p of the form in D alone."""
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
    in_both: JointInBoth | None = None
    in_both_reason: str | None = None
    """Why there is no form in N and D."""


def fit_joint(points: pd.DataFrame, series: str, delta: float) -> JointLaw:
    """`points` holds the best loss at each scale and batch (num_params, num_tokens, global_batch_tokens, loss).

    Raises `NotIdentified` where the data do not determine the model in D alone.
    """
    rows = above_the_best_batch(points[points["series"] == series])
    scales = rows.groupby(["num_params", "tokens_per_parameter"]).ngroups
    sizes = rows["num_params"].nunique()
    if sizes < MIN_SCALES:
        raise NotIdentified(f"{sizes} size(s), {MIN_SCALES} are needed")
    model = _Model.of(rows, ("num_tokens",))
    found = _fit(model, delta, scales)
    both, reason = None, "num_params and num_tokens rise together" if model.tied else None
    if not model.tied:
        try:
            both = _in_both(_Model.of(rows, ("num_params", "num_tokens")), delta, scales)
        except NotIdentified as error:
            reason = str(error)
    return JointLaw(
        series,
        found.exponents[0],
        float(np.exp(model.log_d.mean())),
        found.critical_batch_size,
        len(rows),
        scales,
        model.tied,
        found.residual_sd,
        found.objective,
        True,
        both,
        reason,
    )


def _in_both(model: _Model, delta: float, scales: int) -> JointInBoth:
    found = _fit(model, delta, scales)
    centre = {"num_params": float(np.exp(model.log_n.mean())), "num_tokens": float(np.exp(model.log_d.mean()))}
    exponents = dict(zip(("num_params", "num_tokens"), found.exponents, strict=True))
    return JointInBoth(exponents, centre, found.critical_batch_size, found.residual_sd, found.objective)


@dataclass(frozen=True)
class _Model:
    """Losses of one series, and what B_c depends on. Parameters: e, a, alpha, b, c, exponents of B_c, beta unless tied.

    Logs are of E, A, B and c where N and D have their geometric means.
    """

    log_n: Array
    log_d: Array
    log_b: Array
    log_l: Array
    inputs_pn: Array
    """Centred logs of what B_c depends on."""
    tied: bool

    @classmethod
    def of(cls, rows: pd.DataFrame, inputs: tuple[str, ...]) -> _Model:
        names = ("num_params", "num_tokens", "global_batch_tokens", "loss")
        logs = {name: np.log(rows[name].to_numpy(dtype=float)) for name in names}
        log_n, log_d, log_b, log_l = logs.values()
        tied = abs(float(np.corrcoef(log_n, log_d)[0, 1])) > MAX_CORRELATION
        return cls(log_n, log_d, log_b, log_l, np.stack([logs[name] - logs[name].mean() for name in inputs]), tied)

    @property
    def num_parameters(self) -> int:
        return 5 + len(self.inputs_pn) + (not self.tied)

    def _parts(self, theta: Array) -> tuple[Array, Array, Array, float]:
        """Logs of the three terms (3, n), tokens wasted (log) and the share of tokens lost (n,), beta."""
        e, a, alpha, b, c = theta[:5]
        beta = alpha if self.tied else theta[-1]
        n, d = self.log_n - self.log_n.mean(), self.log_d - self.log_d.mean()
        critical = c + theta[5 : 5 + len(self.inputs_pn)] @ self.inputs_pn
        wasted = np.logaddexp(0.0, self.log_b - critical)
        terms = np.stack([np.full_like(n, e), a - alpha * n, b - beta * (d - wasted)])
        return terms, wasted, 1 - np.exp(-wasted), float(beta)

    def residual(self, theta: Array) -> Array:
        return np.asarray(np.logaddexp.reduce(self._parts(theta)[0], axis=0) - self.log_l)

    def jacobian(self, theta: Array) -> Array:
        terms, wasted, share, beta = self._parts(theta)
        weight = np.exp(terms - np.logaddexp.reduce(terms, axis=0))
        by_alpha = -weight[1] * (self.log_n - self.log_n.mean())
        by_beta = -weight[2] * (self.log_d - self.log_d.mean() - wasted)
        by_c = -weight[2] * beta * share
        first = by_alpha + by_beta if self.tied else by_alpha
        columns = [weight[0], weight[1], first, weight[2], by_c, *(by_c * self.inputs_pn)]
        return np.stack(columns if self.tied else [*columns, by_beta], axis=1)

    def starts(self) -> list[Array]:
        out = []
        for share in (0.4, 0.8):
            for position in (0.5, 1.0):
                floor = np.log(share) + self.log_l.min()
                rest = np.log(np.expm1(np.median(self.log_l) - floor) / 2) + floor
                middle = self.log_b.min() + position * np.ptp(self.log_b)
                exponents = [0.0] * (len(self.inputs_pn) - 1) + [0.6]
                theta = [floor, rest, 0.3, rest, middle, *exponents]
                out.append(np.array(theta if self.tied else [*theta, 0.3]))
        return out


@dataclass(frozen=True)
class _Found:
    exponents: list[Estimate]
    critical_batch_size: Estimate
    residual_sd: float
    objective: float


def _fit(model: _Model, delta: float, scales: int) -> _Found:
    points, needed = len(model.log_l), model.num_parameters + scales
    if points < needed:
        raise NotIdentified(f"{points} losses above the best batches: {needed} are needed")
    finite = np.isfinite(delta)
    best = min(
        (
            least_squares(
                model.residual, start, jac=model.jacobian, method="trf", loss="huber" if finite else "linear",
                f_scale=delta if finite else 1.0, x_scale="jac", xtol=1e-10, ftol=1e-12, gtol=1e-12, max_nfev=200,
            )
            for start in model.starts()
        ),
        key=lambda found: found.cost,
    )  # fmt: skip
    theta, slope = best.x, model.jacobian(best.x)
    length = np.linalg.norm(slope, axis=0)
    condition = np.linalg.cond(slope / np.maximum(length, 1e-300))
    if not condition < _MAX_CONDITION:
        raise NotIdentified(
            f"its parameters trade off against each other (condition {condition:.1e}): larger batches are needed"
        )
    left = model.residual(theta)
    freedom = points - model.num_parameters
    errors = np.sqrt(np.diag(np.linalg.inv(slope.T @ slope)) * _variance(left, delta, freedom))
    t = t_quantile(freedom)
    exponents = []
    for value, se in zip(theta[5 : 5 + len(model.inputs_pn)], errors[5:], strict=False):
        _require_sense(value, t * se, t * errors[4], bool(best.status > 0))
        exponents.append(Estimate(float(value), float(se), (float(value - t * se), float(value + t * se))))
    c, c_se = theta[4], errors[4]
    size = Estimate(
        float(np.exp(c)), float(np.exp(c) * c_se), (float(np.exp(c - t * c_se)), float(np.exp(c + t * c_se)))
    )
    return _Found(exponents, size, float(np.std(left)), float(best.cost))


def _variance(left: Array, delta: float, freedom: int) -> float:
    """Of one residual as it drives the parameters: Huber's psi over its mean slope, never less than least squares'."""
    plain = float((left**2).sum()) / freedom
    psi, inside = np.clip(left, -delta, delta), float(np.mean(np.abs(left) < delta))
    return max(plain, float((psi**2).sum()) / freedom / inside**2) if inside else plain


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


def above_the_best_batch(rows: pd.DataFrame) -> pd.DataFrame:
    """The points of one series that the model is fitted to."""
    scales = ["num_params", "tokens_per_parameter"]
    best = rows.loc[rows.groupby(scales)["loss"].idxmin()].set_index(scales)["global_batch_tokens"]
    best_of_scale = best.reindex(pd.MultiIndex.from_frame(rows[scales])).to_numpy()
    return rows[rows["global_batch_tokens"].to_numpy() > best_of_scale].sort_values(scales, kind="stable")
