"""One law fitted: the optimum of many starts, intervals from resampled weights, and diagnostics.

A law hands over its log-sum-exp model, starts and how parameters are read from the solver's own; what is common to all
laws happens here.
"""

from __future__ import annotations

import zlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from scipy import stats

from analysis.laws.fit import CONFIDENCE, CannotSay, Diagnostics, Estimate, Fit
from analysis.laws.solver import Array, LogSumExpModel, Solution, derivatives, huber, polish, solve

_LARGE = 5_000
"""Points from which the asymptotic covariance replaces the bootstrap."""
_SMALL = 128
"""Points up to which more starts cost nothing, and Huber's kinks make many local optima."""
_FEW_PARAMETERS = 9
"""Parameters up to which starts are scattered around the given ones."""
_E_AT_ZERO = 1e-7
"""An irreducible loss below this share of the smallest loss is zero, the edge of what is allowed."""
LOG_ZERO = -80.0
"""Log of an irreducible loss that is zero, relative to the smallest loss: beyond a double's last digit."""
_MAX_CONDITION = 1e9


@dataclass(frozen=True)
class Law:
    """What tells one law from another."""

    form: str
    formula: str
    model: LogSumExpModel
    log_y: Array
    starts_Rp: Array
    natural: Callable[[Array], dict[str, Array]]
    """The solver's parameters (R, p) -> named parameters, (R,) each."""
    inputs: Mapping[str, Array]
    """Logs of the inputs."""
    floors: Mapping[int, str] = field(default_factory=dict)
    """Irreducible losses: place of the logarithm among the solver's parameters -> name of the parameter."""


def fit_law(
    law: Law,
    weight_n: Array,
    delta: float,
    bootstrap: int,
    seed: int,
    resample_by: Sequence[Any] | None = None,
) -> Fit:
    """The law's fit. What the data cannot say raises `CannotSay`."""
    if not delta > 0:
        raise ValueError(f"delta={delta}: must be positive; inf is least squares")
    if bootstrap < 0:
        raise ValueError(f"bootstrap={bootstrap}: must be zero or positive")
    model, log_y = law.model, law.log_y
    theta, agree, converged = _find_optimum(law, weight_n, delta, seed)
    residual = model.log_value(theta[None])[0] - log_y
    zero = _at_zero(law, theta)
    condition = _condition(model.jacobian(theta), weight_n, zero)
    if condition > _MAX_CONDITION:
        raise CannotSay(
            f"the parameters of {law.formula} trade off against each other exactly on these points (condition "
            f"{condition:.1e}): points at other {' and '.join(law.inputs)} are needed"
        )
    with np.errstate(over="ignore", invalid="ignore"):
        draws_Rp, interval = _draws(law, theta, zero, weight_n, delta, bootstrap, seed, resample_by)
        parameters, at_bounds, drawn = _estimates(law, theta, zero, draws_Rp, resample_by)
    diagnostics = Diagnostics(
        starts=len(law.starts_Rp),
        starts_agree=agree,
        converged=converged,
        gradient=_relative_gradient(model, theta, log_y, weight_n, delta),
        condition=condition,
        residual_sd=float(np.std(residual)),
        at_bounds=at_bounds,
    )
    return Fit(
        form=law.form,
        formula=law.formula,
        parameters=parameters,
        objective=float((weight_n * huber(residual, delta)).sum()),
        delta=delta,
        num_points=model.num_points,
        num_parameters=model.num_parameters,
        interval=interval,
        bootstrap=bootstrap,
        diagnostics=diagnostics,
        inputs={name: (float(np.exp(v.min())), float(np.exp(v.max()))) for name, v in law.inputs.items()},
        warnings=tuple(_warnings(diagnostics, parameters)),
        residuals=residual,
        draws=drawn,
    )


def expanded_percentiles(draws: Array, num_points: int, num_parameters: int) -> tuple[float, float]:
    """95% percentile interval of `draws`, widened for few points as a t interval is (Hesterberg 2015, section 3.5)."""
    freedom = max(1, num_points - num_parameters)
    tail = stats.norm.cdf(-np.sqrt(num_points / freedom) * stats.t.ppf(0.5 + CONFIDENCE / 2, freedom))
    finite = draws[np.isfinite(draws)]
    if not len(finite):
        return (float("nan"), float("nan"))
    low, high = np.quantile(finite, [tail, 1 - tail])
    return float(low), float(high)


# The optimum


def _find_optimum(law: Law, weight_n: Array, delta: float, seed: int) -> tuple[Array, float, bool]:
    """The best optimum found, the share of starts that agree with it, and whether it is one to machine precision."""
    model, log_y = law.model, law.log_y
    starts = law.starts_Rp
    # One term is a straight line in logs, and its objective convex: any start will do.
    search = len(model.design_Tnp) > 1 and model.num_points <= _SMALL
    if model.num_points > _LARGE:
        starts = _thin(model, log_y, weight_n, _with_zeros(law, starts), delta)
    elif search and model.num_parameters <= _FEW_PARAMETERS:
        starts = np.concatenate([starts, _scattered(starts, seed)])
    first = _solve_all(law, starts, weight_n, delta)
    best = int(first.objective_R.argmin())
    theta, lowest, converged = first.theta_Rp[best], float(first.objective_R[best]), bool(first.converged_R[best])
    if search:
        theta, lowest, converged = _search_nearby(law, theta, lowest, converged, weight_n, delta, seed)
    if law.floors:
        at_zero = _solve_all(law, _with_zeros(law, theta[None])[1:], weight_n, delta)
        edge = int(at_zero.objective_R.argmin())
        if at_zero.objective_R[edge] <= lowest * (1 + 1e-9) + _rounding(model):
            theta, lowest = at_zero.theta_Rp[edge], float(at_zero.objective_R[edge])
            converged = bool(at_zero.converged_R[edge])
    if not converged:
        last = polish(model, log_y, weight_n[None], theta[None], delta)
        theta, lowest, converged = last.theta_Rp[0], float(last.objective_R[0]), bool(last.converged_R[0])
    agree = float(np.mean(first.objective_R[: len(law.starts_Rp)] <= lowest * (1 + 1e-6) + _rounding(model)))
    return theta, agree, converged


def _solve_all(law: Law, starts_Rp: Array, weight_n: Array, delta: float) -> Solution:
    return solve(law.model, law.log_y, np.tile(weight_n, (len(starts_Rp), 1)), starts_Rp, delta)


def _rounding(model: LogSumExpModel) -> float:
    """Objectives that differ by less are equal: the rounding of residuals of a perfect fit."""
    return 1e-24 * model.num_points


def _with_zeros(law: Law, starts_Rp: Array) -> Array:
    """The starts, and for each irreducible loss the same starts with that one at zero."""
    out = [starts_Rp]
    for place in law.floors:
        zero = starts_Rp.copy()
        zero[:, place] = law.log_y.min() + LOG_ZERO
        out.append(zero)
    return np.concatenate(out)


def _scattered(starts_Rp: Array, seed: int) -> Array:
    """Three times as many starts again, around the given ones and as wide as they lie."""
    generator = np.random.default_rng([seed, 1])
    spread = np.maximum(starts_Rp.std(axis=0), 0.1)
    around = np.repeat(starts_Rp, 3, axis=0)
    return np.asarray(around + generator.normal(size=around.shape) * spread)


def _search_nearby(
    law: Law, theta: Array, lowest: float, converged: bool, weight_n: Array, delta: float, seed: int
) -> tuple[Array, float, bool]:
    """Optima of resampled problems as starts: with few points, each leans on others of them."""
    generator = np.random.default_rng([seed, 2])
    num = len(law.starts_Rp)
    for _ in range(4):
        shaken = generator.exponential(size=(num, law.model.num_points)) * weight_n
        moved = solve(law.model, law.log_y, shaken, np.repeat(theta[None], num, axis=0), delta)
        again = _solve_all(law, moved.theta_Rp, weight_n, delta)
        best = int(again.objective_R.argmin())
        if again.objective_R[best] >= lowest * (1 - 1e-10):
            break
        theta, lowest = again.theta_Rp[best], float(again.objective_R[best])
        converged = bool(again.converged_R[best])
    return theta, lowest, converged


def _thin(model: LogSumExpModel, log_y: Array, weight_n: Array, starts_Rp: Array, delta: float) -> Array:
    """With very many points, starts are sorted out on a thousand of them: the best ends serve as starts."""
    rows = np.linspace(0, model.num_points - 1, 1000).astype(int)
    small = LogSumExpModel(model.design_Tnp[:, rows])
    solution = solve(small, log_y[rows], np.tile(weight_n[rows], (len(starts_Rp), 1)), starts_Rp, delta)
    return solution.theta_Rp[np.argsort(solution.objective_R)[:2]]


def _at_zero(law: Law, theta: Array) -> tuple[int, ...]:
    """Irreducible losses that are zero for every purpose."""
    edge = law.log_y.min() + np.log(_E_AT_ZERO)
    return tuple(place for place in law.floors if theta[place] < edge)


# Intervals


def _estimates(
    law: Law, theta: Array, zero: tuple[int, ...], draws_Rp: Array, resample_by: Sequence[Any] | None
) -> tuple[dict[str, Estimate], tuple[str, ...], dict[str, Array]]:
    """Named parameters, those at zero, and the draws of each; without draws there are no intervals."""
    drawn = {name: np.asarray(v) for name, v in law.natural(draws_Rp).items()} if len(draws_Rp) else {}
    model = law.model
    units = model.num_points if resample_by is None else len(set(resample_by)) * _points_per_unit(model)
    at_bounds = tuple(law.floors[place] for place in zero)
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


def _draws(
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
    if model.num_points > _LARGE:
        generator = np.random.default_rng(seed)
        return generator.multivariate_normal(theta, _covariance(model, theta, log_y, weight_n, delta), bootstrap), (
            "asymptotic covariance of an M-estimator"
        )
    units = list(range(model.num_points)) if resample_by is None else list(resample_by)
    order = {unit: i for i, unit in enumerate(dict.fromkeys(units))}
    member = np.array([order[unit] for unit in units])
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
    unit_name = "points" if resample_by is None else "scales, the same for every group"
    return draws_Rp, f"weighted bootstrap over {unit_name}, percentiles widened for few points"


def _weights_of(unit: Any, seed: int, bootstrap: int) -> Array:
    """Weights of one unit in each resample, the same in every fit that knows the unit: fits of one study are paired."""
    return np.random.default_rng([seed, zlib.crc32(str(unit).encode())]).exponential(size=bootstrap)


def _points_per_unit(model: LogSumExpModel) -> int:
    """Points that share one bootstrap unit, at most: how many groups see a scale."""
    return max(1, (model.num_parameters - 1) // 2)


def _covariance(model: LogSumExpModel, theta: Array, log_y: Array, weight_n: Array, delta: float) -> Array:
    """Huber's sandwich: H^-1 (sum psi^2 g g') H^-1."""
    _, hessian, _ = derivatives(model, theta[None], log_y, weight_n[None], delta)
    g_np = model.jacobian(theta)
    psi = weight_n * np.clip(model.log_value(theta[None])[0] - log_y, -delta, delta)
    inverse = np.linalg.pinv(hessian[0])
    covariance: Array = inverse @ ((g_np * psi[:, None] ** 2).T @ g_np) @ inverse
    return covariance


# Diagnostics


def _relative_gradient(model: LogSumExpModel, theta: Array, log_y: Array, weight_n: Array, delta: float) -> float:
    gradient, _, _ = derivatives(model, theta[None], log_y, weight_n[None], delta)
    psi = weight_n * np.clip(model.log_value(theta[None])[0] - log_y, -delta, delta)
    size = np.abs(psi) @ np.abs(model.jacobian(theta))
    if np.abs(psi).max() < 1e-12:
        return 0.0
    return float(np.max(np.abs(gradient[0]) / np.maximum(size, 1e-300)))


def _condition(jacobian: Array, weight_n: Array, left_out: tuple[int, ...]) -> float:
    weighted = np.delete(jacobian * np.sqrt(weight_n)[:, None], left_out, axis=1)
    length = np.linalg.norm(weighted, axis=0)
    if not np.all(length > 0):
        return float("inf")
    return float(np.linalg.cond(weighted / length))


def _warnings(diagnostics: Diagnostics, parameters: Mapping[str, Estimate]) -> list[str]:
    out = []
    if diagnostics.at_bounds:
        names = ", ".join(diagnostics.at_bounds)
        out.append(f"{names}: at zero, the edge of what is allowed: these data show no irreducible loss")
    if not diagnostics.converged:
        out.append("the optimum was not reached")
    if diagnostics.condition > 1e4:
        out.append(f"parameters trade off against each other (condition {diagnostics.condition:.0f})")
    falling = [name for name, e in parameters.items() if name.startswith(("alpha", "beta")) and e.value < 0]
    if falling and "E" in parameters:
        out.append(f"{', '.join(falling)}: negative, so the loss rises with size: no scaling law in these data")
    return out
