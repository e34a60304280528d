"""Intervals of parameters: a weighted bootstrap over points or scales, an asymptotic covariance, Student's t."""

from __future__ import annotations

import dataclasses
import zlib
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from scipy import special

from analysis.confidence import t_quantile
from analysis.laws.fit import Estimate, Fit, NotIdentified
from analysis.laws.optimum import MANY_POINTS, Law
from analysis.laws.solver import Array, LogSumExpModel, derivatives, solve

WIDEST_EXPONENT = 2.0
"""Width of an exponent's interval from which on the law says nothing."""
_MOST_DECADES = 6.0


def draw_parameters(
    law: Law,
    theta: Array,
    zero: tuple[int, ...],
    weight_n: Array,
    delta: float,
    bootstrap: int,
    seed: int,
    resample_by: Sequence[Any] | None,
) -> tuple[Array, str]:
    """Parameters under resampled weights (Rubin's Bayesian bootstrap), each solved from the fit; and how they came."""
    model, log_y = law.model, law.log_y
    if not bootstrap:
        return theta[None][:0], "none"
    units = list(range(model.num_points)) if resample_by is None else list(resample_by)
    order = {unit: i for i, unit in enumerate(dict.fromkeys(units))}
    member = np.array([order[unit] for unit in units])
    if model.num_points > MANY_POINTS:
        generator = np.random.default_rng(seed)
        covariance = _covariance(model, theta, log_y, weight_n, delta, member)
        how = "asymptotic covariance of an M-estimator" + ("" if resample_by is None else ", clustered")
        return generator.multivariate_normal(theta, covariance, bootstrap), how
    drawn_Ru = np.stack([_weights_of(unit, seed, bootstrap) for unit in order], axis=1)
    weight_Rn = weight_n * (drawn_Ru / drawn_Ru.mean(axis=1, keepdims=True))[:, member]
    starts = [theta]
    if zero:  # an irreducible loss of zero is the edge for these points, not for every resample
        inside = theta.copy()
        inside[list(zero)] = log_y.min() + np.log(0.1)
        starts.append(inside)
    solutions = [solve(model, log_y, weight_Rn, np.repeat(s[None], bootstrap, axis=0), delta) for s in starts]
    chosen = np.stack([s.objective_R for s in solutions]).argmin(axis=0)
    draws_Rp = np.stack([s.theta_Rp for s in solutions])[chosen, np.arange(bootstrap)]
    unit_name = "points" if resample_by is None else "clusters of points"
    return draws_Rp, f"weighted bootstrap over {unit_name}, percentiles widened for few points"


def estimates(
    law: Law, theta: Array, zero: tuple[int, ...], draws_Rp: Array, resample_by: Sequence[Any] | None
) -> tuple[dict[str, Estimate], tuple[str, ...], dict[str, Array]]:
    """Named parameters, those at zero, and the draws of each; without draws there are no intervals."""
    drawn = {name: np.asarray(v) for name, v in law.natural(draws_Rp).items()} if len(draws_Rp) else {}
    model = law.model
    units = model.num_points if resample_by is None else _num_units(law, resample_by)
    at_bounds = tuple(law.floors[index] for index in zero)
    parameters = {}
    for name, value in law.natural(theta[None]).items():
        number = 0.0 if name in at_bounds else float(value[0])
        if not drawn:
            parameters[name] = Estimate(number)
            continue
        low, high = expanded_percentiles(drawn[name], units, model.num_parameters)
        finite = drawn[name][np.isfinite(drawn[name])]
        se = float(np.std(finite, ddof=1)) if len(finite) > 1 else float("nan")
        low = 0.0 if name in at_bounds else min(low, number)
        parameters[name] = Estimate(number, se, (low, max(high, number)))
    return parameters, at_bounds, drawn


def expanded_percentiles(draws: Array, num_points: int, num_parameters: int) -> tuple[float, float]:
    """95% percentile interval of `draws`, widened for few points as a t interval is (Hesterberg 2015, section 3.5)."""
    freedom = max(1, num_points - num_parameters)
    tail = special.ndtr(-np.sqrt(num_points / freedom) * t_quantile(freedom))
    finite = draws[np.isfinite(draws)]
    if not len(finite):
        return (float("nan"), float("nan"))
    low, high = np.quantile(finite, [tail, 1 - tail])
    return float(low), float(high)


def is_exponent(name: str) -> bool:
    return name.startswith(("alpha", "beta"))


def without_absurd_intervals(fit: Fit) -> Fit:
    """Refuse a law whose exponent may be anything; leave out the interval of a level that spans decades.

    A level is the law's value where its inputs are one, far from any data: its interval may say nothing though the
    law is well known where the points lie.
    """
    parameters, spans = {}, []
    for name, estimate in fit.parameters.items():
        low, high = estimate.ci or (estimate.value, estimate.value)
        if is_exponent(name) and fit.form != "power" and not high - low < WIDEST_EXPONENT:
            raise NotIdentified(
                f"the interval of {name} in {fit.formula}, [{low:.3g}, {high:.3g}], is wider than {WIDEST_EXPONENT:g}: "
                "these points do not determine it; points further apart, or more of them, would"
            )
        if name in ("A", "B") or name.startswith(("A[", "B[")):
            decades = np.log10(high / low) if 0 < low <= high < np.inf else np.inf
            if decades > _MOST_DECADES:
                spans.append(name)
        parameters[name] = Estimate(estimate.value) if name in spans else estimate
    if not spans:
        return fit
    warning = f"{', '.join(spans)}: the interval spans more than {_MOST_DECADES:g} decades and is left out"
    return dataclasses.replace(fit, parameters=parameters, warnings=(*fit.warnings, warning))


def widened_by_students_t(fit: Fit, t_intervals: Mapping[str, tuple[float, float, float]]) -> Fit:
    """The wider of the fit's intervals and Student's t on the (weighted) least-squares plane of logs."""
    parameters = {}
    for name, estimate in fit.parameters.items():
        se, low, high = t_intervals[name]
        ci = estimate.ci or (low, high)
        parameters[name] = Estimate(estimate.value, max(se, estimate.se or 0.0), (min(low, ci[0]), max(high, ci[1])))
    freedom = fit.num_points - fit.num_parameters
    interval = f"wider of Student's t with {freedom} degrees of freedom and {fit.interval}"
    return dataclasses.replace(fit, parameters=parameters, interval=interval)


def with_students_t(fit: Fit, t_intervals: Mapping[str, tuple[float, float, float]]) -> Fit:
    """Student's t on the least-squares plane of logs, as wide as the fit's values need: of few points a bootstrap is
    erratic, and the wider of both holds the truth more often than it says."""
    parameters = {}
    for name, estimate in fit.parameters.items():
        se, low, high = t_intervals[name]
        parameters[name] = Estimate(estimate.value, se, (min(low, estimate.value), max(high, estimate.value)))
    interval = f"Student's t with {fit.num_points - fit.num_parameters} degrees of freedom"
    return dataclasses.replace(fit, parameters=parameters, interval=interval)


def students_t(log_x: Array, log_y: Array, weight_n: Array | None = None) -> list[tuple[float, float, float]]:
    """(se, low, high) of A and of each exponent: the least-squares plane of logs, 95% of Student's t.

    `log_x` is (n,) or (n, inputs); degrees of freedom are points minus parameters.
    """
    columns = log_x[:, None] if log_x.ndim == 1 else log_x
    w = np.ones_like(log_y) if weight_n is None else weight_n
    centre = np.average(columns, axis=0, weights=w)
    design = np.column_stack([np.ones_like(log_y), columns - centre])
    covariance = np.linalg.inv((design * w[:, None]).T @ design)
    level, *slopes = covariance @ (design * w[:, None]).T @ log_y
    residual = log_y - design @ np.array([level, *slopes])
    freedom = len(log_y) - design.shape[1]
    variance = (w * residual**2).sum() / freedom
    t = t_quantile(freedom)
    back = np.array([1.0, *-centre])
    log_a, log_a_se = level - centre @ np.array(slopes), np.sqrt(variance * (back @ covariance @ back))
    amplitude = np.exp(log_a)
    out = [(amplitude * log_a_se, np.exp(log_a - t * log_a_se), np.exp(log_a + t * log_a_se))]
    for i, slope in enumerate(slopes, start=1):
        se = np.sqrt(variance * covariance[i, i])
        out.append((se, slope - t * se, slope + t * se))
    return [(float(se), float(low), float(high)) for se, low, high in out]


def _weights_of(unit: Any, seed: int, bootstrap: int) -> Array:
    """Weights of one unit in each resample, the same in every fit that knows the unit: fits of one study are paired."""
    return np.random.default_rng([seed, zlib.crc32(str(unit).encode())]).exponential(size=bootstrap)


def _num_units(law: Law, resample_by: Sequence[Any]) -> int:
    """Clusters, each as often as groups have points in it: what is independent, for a count of degrees of freedom."""
    groups = law.group_n if law.group_n is not None else [None] * len(resample_by)
    return len(set(zip(resample_by, groups, strict=True)))


def _covariance(
    model: LogSumExpModel,
    theta: Array,
    log_y: Array,
    weight_n: Array,
    delta: float,
    member: np.ndarray,
) -> Array:
    """Huber's sandwich, H^-1 (sum s s') H^-1: s is the sum of psi g over a cluster of points, `member` its number."""
    _, hessian, _ = derivatives(model, theta[None], log_y, weight_n[None], delta)
    g_np = model.jacobian(theta)
    psi = weight_n * np.clip(model.log_value(theta[None])[0] - log_y, -delta, delta)
    inverse = np.linalg.pinv(hessian[0])
    scores = np.zeros((int(member.max()) + 1, g_np.shape[1]))
    np.add.at(scores, member, psi[:, None] * g_np)
    covariance: Array = inverse @ (scores.T @ scores) @ inverse
    return covariance
