"""The solver under every fit: Huber's loss on the logarithm of a sum of power laws.

Each law here is a sum of exponentials of functions linear in the parameters, so its logarithm is a log-sum-exp with an
exact gradient and an exact Hessian. Damped Newton steps use both; many starts, or many bootstrap resamples, are solved
at once. Small deltas make Huber's loss almost an absolute value, on which a solver stalls far from the optimum: delta
is therefore lowered in stages.

Axes: R resamples or starts, T terms, n points, p parameters. `log_y` is (n,), or (R, n) where problems differ in it.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import numpy as np
from numpy.typing import NDArray
from scipy.linalg import lapack

Array = NDArray[np.float64]

_CHUNK_VALUES = 2_000_000
"""Doubles in the largest temporary array: what stays in a cache of the last level, more or less."""
_MAX_ITERATIONS = 200
_POLISH_ITERATIONS = 5000
_STAGE_ITERATIONS = 12
_STAGE_FACTOR = 5.0
_MANY_PARAMETERS = 12
"""From here on eigenvalues of a Hessian take longer than to find out that it is positive definite, and to solve."""
_LEAST_EIGENVALUE = 1e-8
_LEAST_CURVATURE = 1e-14


@dataclass(frozen=True)
class Solution:
    """Optima of R weighted problems."""

    theta_Rp: Array
    objective_R: Array
    """Sum of weighted Huber losses."""
    decrement_R: Array
    """How far a Newton step would still lower the objective, over the objective: zero at an optimum."""
    converged_R: NDArray[np.bool_]


@dataclass(frozen=True)
class LogSumExpModel:
    """log y = log sum_t exp(design_tnp @ theta_p)."""

    design_Tnp: Array

    @property
    def num_parameters(self) -> int:
        return int(self.design_Tnp.shape[2])

    @property
    def num_points(self) -> int:
        return int(self.design_Tnp.shape[1])

    @cached_property
    def squares(self) -> tuple[Array, NDArray[np.int_]]:
        """Products of any two of a term's coefficients, (T n, k), and where they stand in a flat (p, p) matrix, (k,).

        Products that are zero at every point, as between parameters of different groups, are left out.
        """
        products = (self.design_Tnp[..., :, None] * self.design_Tnp[..., None, :]).reshape(-1, self.num_parameters**2)
        places = np.flatnonzero(products.any(axis=0))
        return products[:, places], places

    def terms(self, theta_Rp: Array) -> Array:
        """Exponents of each term, (R, T, n)."""
        num_terms, num_points, num_parameters = self.design_Tnp.shape
        flat = theta_Rp @ self.design_Tnp.reshape(-1, num_parameters).T
        return flat.reshape(len(theta_Rp), num_terms, num_points)

    def log_value(self, theta_Rp: Array) -> Array:
        """log y, (R, n)."""
        u_RTn = self.terms(theta_Rp)
        top_Rn = u_RTn.max(axis=1)
        value: Array = top_Rn + np.log(np.exp(u_RTn - top_Rn[:, None]).sum(axis=1))
        return value

    def shares(self, theta_Rp: Array) -> tuple[Array, Array]:
        """log y (R, n) and the share of each term in y (R, T, n)."""
        u_RTn = self.terms(theta_Rp)
        top_Rn = u_RTn.max(axis=1)
        e_RTn = np.exp(u_RTn - top_Rn[:, None])
        total_Rn = e_RTn.sum(axis=1)
        return top_Rn + np.log(total_Rn), e_RTn / total_Rn[:, None]

    def jacobian(self, theta_p: Array) -> Array:
        """d log y / d theta, (n, p)."""
        _, share_RTn = self.shares(theta_p[None])
        jacobian: Array = np.einsum("tn,tnp->np", share_RTn[0], self.design_Tnp)
        return jacobian


def huber(residual: Array, delta: float) -> Array:
    """r^2/2 up to `delta`, then delta*(|r| - delta/2); least squares where `delta` is infinite."""
    size = np.abs(residual)
    if np.isinf(delta):
        return 0.5 * size**2
    return np.where(size <= delta, 0.5 * size**2, delta * (size - 0.5 * delta))


def objective(model: LogSumExpModel, theta_Rp: Array, log_y: Array, weight_Rn: Array, delta: float) -> Array:
    """Sum of weighted Huber losses of log residuals, (R,)."""
    total: Array = (weight_Rn * huber(model.log_value(theta_Rp) - log_y, delta)).sum(axis=1)
    return total


def derivatives(
    model: LogSumExpModel, theta_Rp: Array, log_y: Array, weight_Rn: Array, delta: float
) -> tuple[Array, Array, Array]:
    """Gradient (R, p), Hessian (R, p, p) and the diagonal of the Gauss-Newton matrix (R, p) of `objective`."""
    log_f_Rn, share_RTn = model.shares(theta_Rp)
    residual_Rn = log_f_Rn - log_y
    psi_Rn = weight_Rn * np.clip(residual_Rn, -delta, delta)
    inside_Rn = weight_Rn * (np.abs(residual_Rn) <= delta)
    # Products of many small matrices: matmul in C, where einsum would plan each call anew.
    g_Rnp = np.matmul(share_RTn.transpose(2, 0, 1), model.design_Tnp.transpose(1, 0, 2)).transpose(1, 0, 2)
    gradient_Rp = np.matmul(psi_Rn[:, None, :], g_Rnp)[:, 0]
    hessian_Rpp = np.matmul((g_Rnp * (inside_Rn - psi_Rn)[..., None]).transpose(0, 2, 1), g_Rnp)
    squares, places = model.squares
    curved = (psi_Rn[:, None] * share_RTn).reshape(len(theta_Rp), -1) @ squares
    hessian_Rpp.reshape(len(theta_Rp), -1)[:, places] += curved
    scale_Rp = np.matmul(weight_Rn[:, None, :], g_Rnp**2)[:, 0]
    return gradient_Rp, hessian_Rpp, scale_Rp


def solve(model: LogSumExpModel, log_y: Array, weight_Rn: Array, start_Rp: Array, delta: float) -> Solution:
    """Minimises the objective from each start, to machine precision where the problem allows it.

    `weight_Rn` and `start_Rp` have one row a problem, `log_y` too or one for all. Points of weight zero take no part.
    """
    num_problems = len(start_Rp)
    log_y_Rn = np.broadcast_to(log_y, weight_Rn.shape)
    per_problem = model.num_points * model.num_parameters * 4
    rows = max(1, _CHUNK_VALUES // max(1, per_problem))
    parts = [
        _solve_chunk(model, log_y_Rn[i : i + rows], weight_Rn[i : i + rows], start_Rp[i : i + rows], delta)
        for i in range(0, num_problems, rows)
    ]
    return Solution(
        np.concatenate([part.theta_Rp for part in parts]),
        np.concatenate([part.objective_R for part in parts]),
        np.concatenate([part.decrement_R for part in parts]),
        np.concatenate([part.converged_R for part in parts]),
    )


def polish(model: LogSumExpModel, log_y: Array, weight_Rn: Array, start_Rp: Array, delta: float) -> Solution:
    """As long as it takes, from where `solve` gave up: flat valleys with many kinks."""
    log_y_Rn = np.broadcast_to(log_y, weight_Rn.shape)
    return _newton(model, log_y_Rn, weight_Rn, start_Rp, delta, _POLISH_ITERATIONS, 1e-14)


def _solve_chunk(model: LogSumExpModel, log_y_Rn: Array, weight_Rn: Array, start_Rp: Array, delta: float) -> Solution:
    theta_Rp = start_Rp.copy()
    typical = float(np.median(np.abs(model.log_value(theta_Rp) - log_y_Rn)))
    stage = delta if np.isinf(delta) else max(delta, 2 * typical)
    while stage > delta:
        theta_Rp = _newton(model, log_y_Rn, weight_Rn, theta_Rp, stage, _STAGE_ITERATIONS, 1e-4).theta_Rp
        stage = max(delta, stage / _STAGE_FACTOR)
    return _newton(model, log_y_Rn, weight_Rn, theta_Rp, delta, _MAX_ITERATIONS, 1e-14)


def _newton(
    model: LogSumExpModel,
    log_y_Rn: Array,
    weight_Rn: Array,
    start_Rp: Array,
    delta: float,
    max_iterations: int,
    tolerance: float,
) -> Solution:
    """Newton steps, damped in proportion to the Gauss-Newton diagonal, each problem with its own damping."""
    theta_Rp = start_Rp.copy()
    value_R = objective(model, theta_Rp, log_y_Rn, weight_Rn, delta)
    damping_R = np.full(len(theta_Rp), 1e-3)
    decrement_R = np.full(len(theta_Rp), np.inf)
    converged_R = np.zeros(len(theta_Rp), dtype=bool)
    live = np.arange(len(theta_Rp))
    for _ in range(max_iterations):
        weights, targets = weight_Rn[live], log_y_Rn[live]
        gradient, hessian, scale = derivatives(model, theta_Rp[live], targets, weights, delta)
        # A parameter without influence (the log of a term that is zero) keeps its value: its unit has a floor.
        unit = np.sqrt(np.maximum(scale, 1e-24 * weights.sum(axis=1, keepdims=True)))
        gradient = gradient / unit
        scaled = hessian / (unit[:, :, None] * unit[:, None, :])
        step, promised, undamped = _damped_steps(scaled, gradient, damping_R[live])
        trial = theta_Rp[live] + step / unit
        trial_value = objective(model, trial, targets, weights, delta)
        value = value_R[live]
        better = trial_value < value
        gained = np.where(better, value - trial_value, 0.0)
        decrement_R[live] = undamped / np.maximum(value, 1e-300)
        moved = live[better]
        theta_Rp[moved] = trial[better]
        value_R[moved] = trial_value[better]
        good = gained > 0.5 * promised
        damping_R[live] = np.clip(
            np.where(better, np.where(good, damping_R[live] * 0.1, damping_R[live]), damping_R[live] * 8.0), 1e-15, 1e12
        )
        floor = 1e-30 * np.maximum(weights.sum(axis=1), 1e-300)
        small = (undamped <= tolerance * value) | (value <= floor)
        stuck = ~better & ((damping_R[live] >= 1e10) | (promised <= 1e-15 * value))
        converged_R[live] = small | (stuck & (decrement_R[live] < 1e-6))
        live = live[~(small | stuck)]
        if not len(live):
            break
    return Solution(theta_Rp, value_R, decrement_R, converged_R)


def _damped_steps(hessian_Rpp: Array, gradient_Rp: Array, damping_R: Array) -> tuple[Array, Array, Array]:
    """Return -(|H| + damping)^-1 g (R, p), the fall of the quadratic model that it promises (R,), and that undamped.

    |H| has the absolute eigenvalues of H, and is H where that is positive definite.
    """
    if gradient_Rp.shape[1] < _MANY_PARAMETERS:
        return _steps_by_eigenvalues(hessian_Rpp, gradient_Rp, damping_R)
    identity = np.eye(gradient_Rp.shape[1])
    definite = np.array([lapack.dpotrf(matrix)[1] == 0 for matrix in hessian_Rpp - _LEAST_EIGENVALUE * identity])
    step_Rp, promised_R, undamped_R = np.empty_like(gradient_Rp), np.empty_like(damping_R), np.empty_like(damping_R)
    others = ~definite
    step_Rp[others], promised_R[others], undamped_R[others] = _steps_by_eigenvalues(
        hessian_Rpp[others], gradient_Rp[others], damping_R[others]
    )
    hessian, gradient = hessian_Rpp[definite] + _LEAST_CURVATURE * identity, gradient_Rp[definite]
    damped = hessian + damping_R[definite][:, None, None] * identity
    step_Rp[definite] = step = -np.linalg.solve(damped, gradient[..., None])[..., 0]
    promised_R[definite] = -0.5 * (gradient * step).sum(axis=1)
    undamped_R[definite] = 0.5 * (gradient * np.linalg.solve(hessian, gradient[..., None])[..., 0]).sum(axis=1)
    return step_Rp, promised_R, undamped_R


def _steps_by_eigenvalues(hessian_Rpp: Array, gradient_Rp: Array, damping_R: Array) -> tuple[Array, Array, Array]:
    eigenvalue, eigenvector = np.linalg.eigh(hessian_Rpp)
    along = np.einsum("rpq,rp->rq", eigenvector, gradient_Rp)
    curvature = np.abs(eigenvalue) + damping_R[:, None] + _LEAST_CURVATURE
    step_Rp = -np.einsum("rpq,rq->rp", eigenvector, along / curvature)
    promised_R = 0.5 * (along**2 / curvature).sum(axis=1)
    return step_Rp, promised_R, 0.5 * (along**2 / (np.abs(eigenvalue) + _LEAST_CURVATURE)).sum(axis=1)
