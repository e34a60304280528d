"""Power products of quantities that are known at some scales and only bounded at others.

    log y = log c + sum_j a_j log x_j + e,    e ~ Normal(0, (sigma w)^2)

An optimum on the edge of its grid is a bound, and enters the likelihood as the chance of lying beyond it (Tobit). With
h = 1/sigma and coefficients over sigma that likelihood is concave (Olsen 1978), so Newton's method finds its only
optimum. Without bounds the fit is weighted least squares and its intervals are exactly Student's; with bounds they come
from the information matrix, with as many degrees of freedom as values are known beyond the parameters.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike
from scipy import special

from analysis.confidence import t_quantile
from analysis.laws.fit import Estimate, NotIdentified
from analysis.laws.fit_law import MAX_EXPONENT
from analysis.laws.intervals import WIDEST_EXPONENT
from analysis.laws.power_law import MAX_CORRELATION, MIN_SPAN
from analysis.laws.solver import Array

_ITERATIONS = 200
_LEAST_SIGMA = 1e-6
"""Scatter in log below which points lie on the law to all digits that matter."""
_SAME = 1e-9


@dataclass(frozen=True)
class Bounds:
    """What is known of log y at each scale: `low` = `high` where it is known, an infinite end where it is bounded.

    `width` is the relative uncertainty of each: a known value weighs 1/width^2.
    """

    low: Array
    high: Array
    width: Array

    @property
    def known(self) -> np.ndarray:
        return np.asarray(self.low == self.high)


@dataclass(frozen=True)
class ProductLaw:
    """y = level * prod_j (x_j / centre_j)^exponent_j, fitted to logs."""

    exponents: dict[str, Estimate]
    centre: dict[str, float]
    """Geometric means of the inputs, where the level is known best."""
    level: Estimate
    """y at the centre."""
    scatter: float
    """Standard deviation of log y about the law at a scale of the mean weight."""
    freedom: int
    num_known: int
    num_above: int
    """Scales at which y lies above a bound."""
    num_below: int
    inputs: dict[str, tuple[float, float]]
    """Smallest and largest value of each input."""
    covariance: list[list[float]]
    """Of log level and the exponents, in their order."""

    def coefficient(self) -> float:
        """c of y = c prod_j x_j^a_j: the level carried to inputs of one."""
        logs = [e.value * np.log(self.centre[name]) for name, e in self.exponents.items()]
        return float(np.exp(np.log(self.level.value) - sum(logs)))

    def combined_exponent(self, *names: str) -> Estimate:
        """The sum of several exponents with its interval: how y grows where these inputs grow together."""
        chosen = np.array([0.0, *[float(name in names) for name in self.exponents]])
        value = sum(self.exponents[name].value for name in names)
        return _estimate(value, float(np.sqrt(chosen @ np.array(self.covariance) @ chosen)), self.freedom)

    def predict(self, at: Mapping[str, float]) -> Estimate:
        """y at the inputs `at`, with the 95% interval for one more scale: of the law and of the scatter about it."""
        x = np.array([1.0, *[np.log(at[name] / self.centre[name]) for name in self.exponents]])
        beta = np.array([np.log(self.level.value), *[e.value for e in self.exponents.values()]])
        log_se = float(np.sqrt(x @ np.array(self.covariance) @ x + self.scatter**2))
        return _of_log(float(x @ beta), log_se, self.freedom)


def fit_censored_product(inputs: Mapping[str, ArrayLike], bounds: Bounds) -> ProductLaw:
    """Fit y = c prod_j x_j^a_j by maximum likelihood.

    `inputs` maps names to one positive value a scale. Raises `NotIdentified` where inputs rise together or span too
    little, or where too few values are known.
    """
    logs = {name: np.log(np.asarray(values, dtype=float)) for name, values in inputs.items()}
    known = bounds.known
    needed = len(logs) + 2
    if known.sum() < needed:
        raise NotIdentified(
            f"{known.sum()} of {len(known)} scales give a value and {len(known) - known.sum()} a bound; "
            f"{needed} values are needed for {len(logs)} exponent{'s' if len(logs) > 1 else ''}"
        )
    for name, log_x in logs.items():
        span = float(np.exp(np.ptp(log_x[known])))
        if span < MIN_SPAN:
            raise NotIdentified(f"{name} spans a factor of {span:.4g} alone: an exponent needs {MIN_SPAN} at least")
    refuse_collinear({name: log_x[known] for name, log_x in logs.items()})
    centres = {name: float(log_x.mean()) for name, log_x in logs.items()}
    x = np.stack([np.ones(len(known)), *[log_x - centres[name] for name, log_x in logs.items()]], axis=1)
    width = bounds.width / np.sqrt(np.mean(bounds.width[known] ** 2))
    beta, sigma, covariance = _fit(x, bounds, width)
    freedom = int(known.sum()) - x.shape[1]
    exponents = {}
    for i, name in enumerate(logs, start=1):
        exponents[name] = _estimate(float(beta[i]), float(np.sqrt(covariance[i, i])), freedom)
        _require_sense(name, exponents[name])
    return ProductLaw(
        exponents=exponents,
        centre={name: float(np.exp(c)) for name, c in centres.items()},
        level=_of_log(float(beta[0]), float(np.sqrt(covariance[0, 0])), freedom),
        scatter=sigma,
        freedom=freedom,
        num_known=int(known.sum()),
        num_above=int(np.isinf(bounds.high).sum()),
        num_below=int(np.isinf(bounds.low).sum()),
        inputs={name: (float(np.exp(v.min())), float(np.exp(v.max()))) for name, v in logs.items()},
        covariance=[[float(v) for v in row] for row in covariance],
    )


def refuse_collinear(logs: Mapping[str, Array]) -> None:
    """Raise `NotIdentified` where the logs of two inputs rise together, as N and D do at one number of D/N."""
    names = list(logs)
    for i, one in enumerate(names):
        for other in names[i + 1 :]:
            correlation = float(np.corrcoef(logs[one], logs[other])[0, 1])
            if abs(correlation) > MAX_CORRELATION:
                raise NotIdentified(
                    f"{one} and {other} rise together (correlation of logs {correlation:.4f}, above "
                    f"{MAX_CORRELATION}): their exponents cannot be told apart; runs at other D/N would part them"
                )


def _fit(x_np: Array, bounds: Bounds, width: Array) -> tuple[Array, float, Array]:
    """Coefficients, sigma and the coefficients' covariance."""
    known = bounds.known
    rows, y = x_np[known] / width[known, None], bounds.low[known] / width[known]
    beta = np.linalg.lstsq(rows, y, rcond=None)[0]
    freedom = len(y) - x_np.shape[1]
    sigma = max(float(np.sqrt(((y - rows @ beta) ** 2).sum() / freedom)), _LEAST_SIGMA)
    if known.all():
        return beta, sigma, sigma**2 * np.linalg.inv(rows.T @ rows)
    beta, sigma, information = _most_likely(x_np, bounds, width, beta, sigma)
    correction = len(y) / freedom
    sigma = max(sigma * float(np.sqrt(correction)), _LEAST_SIGMA)
    return beta, sigma, np.linalg.inv(information)[1:, 1:] * correction


def _most_likely(x_np: Array, bounds: Bounds, width: Array, beta: Array, sigma: float) -> tuple[Array, float, Array]:
    """Newton's method in (h, beta h), h = 1/sigma; then the information in (log sigma, beta)."""
    known, above = bounds.known, np.isinf(bounds.high)
    ends = np.where(above, bounds.low, bounds.high)
    v = np.column_stack([ends, -x_np]) / width[:, None]
    sign = np.where(known, 0.0, np.where(above, 1.0, -1.0))
    a = np.array([1.0, *beta]) / sigma

    def log_likelihood(a: Array) -> float:
        if a[0] <= 0:
            return -np.inf
        z = v @ a
        beyond = special.log_ndtr(-sign[~known] * z[~known]).sum()
        return float(known.sum() * np.log(a[0]) - (z[known] ** 2).sum() / 2 + beyond - (_LEAST_SIGMA * a[0]) ** 2 / 2)

    value, hessian = log_likelihood(a), np.eye(len(a))
    for _ in range(_ITERATIONS):
        z = v @ a
        slope, curve = _derivatives(z, sign)
        gradient = v.T @ slope
        gradient[0] += known.sum() / a[0] - _LEAST_SIGMA**2 * a[0]
        hessian = (v * curve[:, None]).T @ v
        hessian[0, 0] += known.sum() / a[0] ** 2 + _LEAST_SIGMA**2
        step = np.linalg.lstsq(hessian, gradient, rcond=None)[0]
        size = 1.0
        while size > _SAME and log_likelihood(a + size * step) < value:
            size /= 2
        if size <= _SAME:
            break
        a = a + size * step
        gained, value = log_likelihood(a) - value, log_likelihood(a)
        if gained < _SAME:
            break
    # (log sigma, beta) from (h, beta h).
    h, beta = a[0], a[1:] / a[0]
    change = np.zeros((len(a), len(a)))
    change[:, 0] = -a
    change[1:, 1:] = h * np.eye(len(a) - 1)
    return beta, float(1 / h), change.T @ hessian @ change


def _derivatives(z: Array, sign: Array) -> tuple[Array, Array]:
    """Slope of the log-likelihood in z, and minus its curvature, of known values and of bounds."""
    s = sign * z
    mills = np.exp(-(s**2) / 2 - special.log_ndtr(-s)) / np.sqrt(2 * np.pi)
    return np.where(sign == 0, -z, -sign * mills), np.where(sign == 0, 1.0, mills * (mills - s))


def _estimate(value: float, se: float, freedom: int) -> Estimate:
    reach = t_quantile(freedom) * se
    return Estimate(value, se, (value - reach, value + reach))


def _of_log(log_value: float, log_se: float, freedom: int) -> Estimate:
    reach = t_quantile(freedom) * log_se
    value = float(np.exp(log_value))
    with np.errstate(over="ignore"):
        return Estimate(value, value * log_se, (float(np.exp(log_value - reach)), float(np.exp(log_value + reach))))


def _require_sense(name: str, exponent: Estimate) -> None:
    low, high = exponent.ci or (-np.inf, np.inf)
    if abs(exponent.value) > MAX_EXPONENT:
        raise NotIdentified(f"the exponent of {name} would be {exponent.value:.3g}, beyond {MAX_EXPONENT:g}")
    if not high - low < WIDEST_EXPONENT:
        raise NotIdentified(
            f"the interval of the exponent of {name}, [{low:.3g}, {high:.3g}], exceeds {WIDEST_EXPONENT:g}: these "
            "scales do not determine it; scales further apart, or more of them, would"
        )
