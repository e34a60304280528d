"""The optimum of one law: the best end of many starts, with irreducible losses of zero tried as well."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from analysis.laws.solver import Array, LogSumExpModel, Solution, polish, solve

MANY_POINTS = 5_000
"""From here on starts are sorted out on a subset, and the asymptotic covariance replaces the bootstrap."""
_SMALL = 128
"""Points up to which more starts cost nothing, and Huber's kinks make many local optima."""
_FEW_PARAMETERS = 9
"""Parameters up to which starts are scattered around the given ones."""
_E_AT_ZERO = 1e-7
"""An irreducible loss below this share of the smallest loss is zero, the edge of what is allowed."""
LOG_ZERO = -80.0
"""Log of an irreducible loss that is zero, relative to the smallest loss: beyond a double's last digit."""


@dataclass(frozen=True)
class Law:
    """A law as the solver sees it, and how to read its parameters back."""

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
    """Irreducible losses: index of the logarithm among the solver's parameters -> name of the parameter."""
    group_n: Sequence[Any] | None = None
    """Group of each point, where groups have laws of their own."""


def find_optimum(law: Law, weight_n: Array, delta: float, seed: int) -> tuple[Array, float, bool]:
    """The best optimum found, the share of starts that agree with it, and whether it is one to machine precision."""
    model, log_y = law.model, law.log_y
    starts = law.starts_Rp
    # One term is a straight line in logs, and its objective convex: any start will do.
    search = len(model.design_Tnp) > 1 and model.num_points <= _SMALL
    if model.num_points > MANY_POINTS:
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
    """Return the starts, and for each irreducible loss the same starts with that one at zero."""
    out = [starts_Rp]
    for index in law.floors:
        zero = starts_Rp.copy()
        zero[:, index] = law.log_y.min() + LOG_ZERO
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
    """Sort the starts out on a thousand of very many points: the two best ends serve as starts."""
    rows = np.linspace(0, model.num_points - 1, 1000).astype(int)
    small = LogSumExpModel(model.design_Tnp[:, rows])
    solution = solve(small, log_y[rows], np.tile(weight_n[rows], (len(starts_Rp), 1)), starts_Rp, delta)
    return solution.theta_Rp[np.argsort(solution.objective_R)[:2]]


def floors_at_zero(law: Law, theta: Array) -> tuple[int, ...]:
    """Indices of the irreducible losses that are zero for every purpose."""
    edge = law.log_y.min() + np.log(_E_AT_ZERO)
    return tuple(index for index in law.floors if theta[index] < edge)
