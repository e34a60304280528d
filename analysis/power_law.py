"""Fits of scaling laws: power law, loss against compute, Chinchilla's L(N, D), critical batch size.

    power           y = A x^alpha
    loss-compute    L = E + A C^-alpha            (several groups may share E)
    chinchilla      L = E + A N^-alpha + B D^-beta
    critical-batch  B = A D^alpha

Residuals are logarithms, their loss is Huber's, and the sum over points is minimised (Hoffmann et al. 2022, section
3.3). Inputs are centred in log, many starts are solved at once, and intervals come from a weighted bootstrap. What the
data cannot say raises `CannotSay` with the reason, and never a number.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy import stats
from scipy.optimize import nnls

from analysis.huber import Array, LogSumExpModel, derivatives, huber, solve

DEFAULT_DELTA = 1e-3
CONFIDENCE = 0.95
MAX_CORRELATION = 0.99
"""Above this |correlation| of log N and log D the two exponents of L(N, D) cannot be told apart."""
_LARGE = 20_000
"""Points from which the asymptotic covariance replaces the bootstrap."""
_E_AT_ZERO = 1e-7
"""An irreducible loss below this share of the smallest loss is zero, the edge of what is allowed."""


class CannotSay(ValueError):
    """The data do not determine what was asked; the message says why and what would."""


@dataclass(frozen=True)
class Estimate:
    """A parameter with its standard error and 95% interval; None where no interval was asked for."""

    value: float
    se: float | None = None
    ci: tuple[float, float] | None = None


@dataclass(frozen=True)
class Diagnostics:
    """What to look at before a fit is believed."""

    starts: int
    starts_agree: float
    """Share of the starts that ended within one millionth of the best objective."""
    converged: bool
    gradient: float
    """Largest component of the gradient over the sum of its terms' sizes; zero at an optimum."""
    condition: float
    """Condition number of the Jacobian with columns of unit length."""
    residual_sd: float
    """Standard deviation of log residuals."""
    at_bounds: tuple[str, ...] = ()


@dataclass(frozen=True)
class Fit:
    """A fitted law."""

    form: str
    formula: str
    parameters: dict[str, Estimate]
    objective: float
    """Sum of Huber losses over points, of residuals in log."""
    delta: float
    num_points: int
    num_parameters: int
    interval: str
    """How se and ci were found."""
    bootstrap: int
    """Resamples behind them."""
    diagnostics: Diagnostics
    inputs: dict[str, tuple[float, float]]
    """Smallest and largest value of each input: beyond them the law extrapolates."""
    warnings: tuple[str, ...] = ()
    residuals: Array = field(default_factory=lambda: np.zeros(0), repr=False)
    """log fitted minus log observed, in the order of the points."""
    draws: dict[str, Array] = field(default_factory=dict, repr=False)
    """Parameters in each resample."""

    def value(self, name: str) -> float:
        return self.parameters[name].value

    def extrapolation_decades(self, name: str, at: float) -> float:
        """Decades by which `at` lies outside the data of input `name`; zero inside."""
        low, high = self.inputs[name]
        return float(max(0.0, np.log10(low / at), np.log10(at / high)))

    def to_dict(self) -> dict[str, Any]:
        """What `muloco-report fit --json` prints."""
        return {
            "form": self.form,
            "formula": self.formula,
            "parameters": {
                name: {"value": e.value, "se": e.se, "ci": list(e.ci) if e.ci else None}
                for name, e in self.parameters.items()
            },
            "objective": self.objective,
            "delta": self.delta if np.isfinite(self.delta) else "inf",
            "num_points": self.num_points,
            "num_parameters": self.num_parameters,
            "confidence": CONFIDENCE,
            "interval": self.interval,
            "bootstrap": self.bootstrap,
            "inputs": {name: list(bounds) for name, bounds in self.inputs.items()},
            "diagnostics": {
                "starts": self.diagnostics.starts,
                "starts_agree": self.diagnostics.starts_agree,
                "converged": self.diagnostics.converged,
                "gradient": self.diagnostics.gradient,
                "condition": self.diagnostics.condition,
                "residual_sd": self.diagnostics.residual_sd,
                "at_bounds": list(self.diagnostics.at_bounds),
            },
            "warnings": list(self.warnings),
        }


def fit_power_law(
    x: ArrayLike,
    y: ArrayLike,
    *,
    weights: ArrayLike | None = None,
    delta: float = DEFAULT_DELTA,
    bootstrap: int = 1000,
    seed: int = 0,
    form: str = "power",
    names: tuple[str, str] = ("x", "y"),
) -> Fit:
    """y = A x^alpha. Intervals are the wider of Student's t on the log-log line and the bootstrap."""
    log_x, log_y = _log_columns({names[0]: x, names[1]: y})
    _require_points(len(log_x), 2)
    _require_spread(names[0], log_x)
    centre = log_x.mean()
    design = np.stack([np.ones_like(log_x), log_x - centre], axis=1)[None]
    slope, level = np.polyfit(log_x - centre, log_y, 1)
    spread = [-1.0, -0.3, 0.0, 0.3, 1.0]
    starts = np.array([[level, slope + shift] for shift in spread])

    def natural(theta_Rp: Array) -> dict[str, Array]:
        return {"A": np.exp(theta_Rp[:, 0] - theta_Rp[:, 1] * centre), "alpha": theta_Rp[:, 1]}

    fit = _fit(
        form,
        f"{names[1]} = A * {names[0]}^alpha",
        LogSumExpModel(design),
        log_y,
        starts,
        natural,
        _weights(weights, len(log_x)),
        delta,
        bootstrap,
        seed,
        {names[0]: log_x},
    )
    return _widened_by_students_t(fit, log_x, log_y, _weights(weights, len(log_x))) if bootstrap else fit


def fit_critical_batch(
    num_tokens: ArrayLike,
    critical_batch_size: ArrayLike,
    *,
    weights: ArrayLike | None = None,
    delta: float = DEFAULT_DELTA,
    bootstrap: int = 1000,
    seed: int = 0,
) -> Fit:
    """B = A D^alpha, over scales."""
    return fit_power_law(
        num_tokens,
        critical_batch_size,
        weights=weights,
        delta=delta,
        bootstrap=bootstrap,
        seed=seed,
        form="critical-batch",
        names=("num_tokens", "critical_batch_size"),
    )


def fit_loss_compute(
    flops: ArrayLike,
    loss: ArrayLike,
    *,
    groups: Sequence[str] | None = None,
    weights: ArrayLike | None = None,
    delta: float = DEFAULT_DELTA,
    bootstrap: int = 1000,
    seed: int = 0,
    resample_by: Sequence[Any] | None = None,
) -> Fit:
    """L = E + A C^-alpha; with `groups`, one E for all and `A[group]`, `alpha[group]` for each.

    `resample_by` names the unit of the bootstrap: points of the same unit (one scale, seen by every method) share
    their weight, so that what they have in common cancels in ratios.
    """
    log_c, log_l = _log_columns({"flops": flops, "loss": loss})
    labels = [""] * len(log_c) if groups is None else [str(g) for g in groups]
    order = list(dict.fromkeys(labels))
    _require_points(len(log_c), 1 + 2 * len(order))
    member = np.array([order.index(label) for label in labels])
    centre = log_c.mean()
    design = np.zeros((2, len(log_c), 1 + 2 * len(order)))
    design[0, :, 0] = 1
    for g, label in enumerate(order):
        rows = member == g
        _require_spread(f"flops{f' of {label}' if label else ''}", log_c[rows])
        design[1, rows, 1 + 2 * g] = 1
        design[1, rows, 2 + 2 * g] = -(log_c[rows] - centre)
    starts = _loss_compute_starts(log_c - centre, log_l, member, len(order))

    def natural(theta_Rp: Array) -> dict[str, Array]:
        values = {"E": np.exp(theta_Rp[:, 0])}
        for g, label in enumerate(order):
            suffix = f"[{label}]" if label else ""
            exponent = theta_Rp[:, 2 + 2 * g]
            values[f"A{suffix}"] = np.exp(theta_Rp[:, 1 + 2 * g] + exponent * centre)
            values[f"alpha{suffix}"] = exponent
        return values

    return _fit(
        "loss-compute",
        "loss = E + A * flops^-alpha",
        LogSumExpModel(design),
        log_l,
        starts,
        natural,
        _weights(weights, len(log_c)),
        delta,
        bootstrap,
        seed,
        {"flops": log_c},
        floor=True,
        resample_by=resample_by,
    )


def fit_chinchilla(
    num_params: ArrayLike,
    num_tokens: ArrayLike,
    loss: ArrayLike,
    *,
    weights: ArrayLike | None = None,
    delta: float = DEFAULT_DELTA,
    bootstrap: int = 1000,
    seed: int = 0,
) -> Fit:
    """L = E + A N^-alpha + B D^-beta. Refused where N and D rise together: then no data can part their exponents."""
    log_n, log_d, log_l = _log_columns({"num_params": num_params, "num_tokens": num_tokens, "loss": loss})
    _require_points(len(log_n), 5)
    _require_spread("num_params", log_n)
    _require_spread("num_tokens", log_d)
    correlation = float(np.corrcoef(log_n, log_d)[0, 1])
    if abs(correlation) > MAX_CORRELATION:
        raise CannotSay(
            f"num_params and num_tokens rise together (correlation of logs {correlation:.4f}, above "
            f"{MAX_CORRELATION}), so the law of two exponents is not identified: add runs at other tokens per "
            "parameter, or fit loss-compute"
        )
    n_centre, d_centre = log_n.mean(), log_d.mean()
    design = np.zeros((3, len(log_n), 5))
    design[0, :, 0] = design[1, :, 1] = design[2, :, 3] = 1
    design[1, :, 2] = -(log_n - n_centre)
    design[2, :, 4] = -(log_d - d_centre)
    grid = (0.1, 0.25, 0.45, 0.8)
    starts = np.array(
        [
            [level[0], level[1], alpha, level[2], beta]
            for alpha, beta in itertools.product(grid, grid)
            for level in [_linear_levels([-alpha * (log_n - n_centre), -beta * (log_d - d_centre)], log_l)]
        ]
    )

    def natural(theta_Rp: Array) -> dict[str, Array]:
        return {
            "E": np.exp(theta_Rp[:, 0]),
            "A": np.exp(theta_Rp[:, 1] + theta_Rp[:, 2] * n_centre),
            "B": np.exp(theta_Rp[:, 3] + theta_Rp[:, 4] * d_centre),
            "alpha": theta_Rp[:, 2],
            "beta": theta_Rp[:, 4],
        }

    return _fit(
        "chinchilla",
        "loss = E + A * num_params^-alpha + B * num_tokens^-beta",
        LogSumExpModel(design),
        log_l,
        starts,
        natural,
        _weights(weights, len(log_n)),
        delta,
        bootstrap,
        seed,
        {"num_params": log_n, "num_tokens": log_d},
        floor=True,
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


def _fit(
    form: str,
    formula: str,
    model: LogSumExpModel,
    log_y: Array,
    starts_Rp: Array,
    natural: Any,
    weight_n: Array,
    delta: float,
    bootstrap: int,
    seed: int,
    inputs: dict[str, Array],
    floor: bool = False,
    resample_by: Sequence[Any] | None = None,
) -> Fit:
    if not delta > 0:
        raise ValueError(f"delta={delta}: must be positive; inf is least squares")
    if bootstrap < 0:
        raise ValueError(f"bootstrap={bootstrap}: must be zero or positive")
    first = _thin(model, log_y, weight_n, starts_Rp, delta) if model.num_points > _LARGE else starts_Rp
    solution = solve(model, log_y, np.tile(weight_n, (len(first), 1)), first, delta)
    best = int(solution.objective_R.argmin())
    theta = solution.theta_Rp[best]
    lowest = float(solution.objective_R[best])
    agree = float(np.mean(solution.objective_R <= lowest * (1 + 1e-6) + 1e-24 * model.num_points))
    residual = model.log_value(theta[None])[0] - log_y
    draws_Rp, interval = _draws(model, log_y, weight_n, theta, delta, bootstrap, seed, resample_by)
    drawn = {name: np.asarray(v) for name, v in natural(draws_Rp).items()} if bootstrap else {}
    units = model.num_points if resample_by is None else len(set(resample_by)) * _points_per_parameter(model)
    parameters = {}
    at_bounds = []
    for name, value in natural(theta[None]).items():
        number = float(value[0])
        if floor and name == "E" and number < _E_AT_ZERO * float(np.exp(log_y.min())):
            number = 0.0
            at_bounds.append(name)
        if not bootstrap:
            parameters[name] = Estimate(number)
            continue
        low, high = expanded_percentiles(drawn[name], units, model.num_parameters)
        if name in at_bounds:
            low = 0.0
        parameters[name] = Estimate(number, float(np.std(drawn[name], ddof=1)), (min(low, number), max(high, number)))
    diagnostics = Diagnostics(
        starts=len(starts_Rp),
        starts_agree=agree,
        converged=bool(solution.converged_R[best]),
        gradient=_relative_gradient(model, theta, log_y, weight_n, delta),
        condition=_condition(model.jacobian(theta), weight_n),
        residual_sd=float(np.std(residual)),
        at_bounds=tuple(at_bounds),
    )
    return Fit(
        form=form,
        formula=formula,
        parameters=parameters,
        objective=float((weight_n * huber(residual, delta)).sum()),
        delta=delta,
        num_points=model.num_points,
        num_parameters=model.num_parameters,
        interval=interval,
        bootstrap=bootstrap,
        diagnostics=diagnostics,
        inputs={name: (float(np.exp(v.min())), float(np.exp(v.max()))) for name, v in inputs.items()},
        warnings=tuple(_warnings(diagnostics)),
        residuals=residual,
        draws=drawn,
    )


def _draws(
    model: LogSumExpModel,
    log_y: Array,
    weight_n: Array,
    theta: Array,
    delta: float,
    bootstrap: int,
    seed: int,
    resample_by: Sequence[Any] | None,
) -> tuple[Array, str]:
    """Parameters under resampled weights (Rubin's Bayesian bootstrap), each solved from the fit."""
    if not bootstrap:
        return theta[None], "none"
    generator = np.random.default_rng(seed)
    if model.num_points > _LARGE:
        return generator.multivariate_normal(theta, _covariance(model, theta, log_y, weight_n, delta), bootstrap), (
            "asymptotic covariance of an M-estimator"
        )
    units = list(range(model.num_points)) if resample_by is None else list(resample_by)
    order = {unit: i for i, unit in enumerate(dict.fromkeys(units))}
    member = np.array([order[unit] for unit in units])
    drawn_Ru = generator.exponential(size=(bootstrap, len(order)))
    weight_Rn = weight_n * (drawn_Ru / drawn_Ru.mean(axis=1, keepdims=True))[:, member]
    solution = solve(model, log_y, weight_Rn, np.repeat(theta[None], bootstrap, axis=0), delta)
    unit_name = "points" if resample_by is None else "scales, the same for every group"
    return solution.theta_Rp, f"weighted bootstrap over {unit_name}, percentiles widened for few points"


def _points_per_parameter(model: LogSumExpModel) -> int:
    """Points that share one bootstrap unit, at most: how many groups see a scale."""
    return max(1, (model.num_parameters - 1) // 2)


def _thin(model: LogSumExpModel, log_y: Array, weight_n: Array, starts_Rp: Array, delta: float) -> Array:
    """With very many points, starts are sorted out on a thousand of them: the best ends serve as starts."""
    rows = np.linspace(0, model.num_points - 1, 1000).astype(int)
    small = LogSumExpModel(model.design_Tnp[:, rows])
    solution = solve(small, log_y[rows], np.tile(weight_n[rows], (len(starts_Rp), 1)), starts_Rp, delta)
    return solution.theta_Rp[np.argsort(solution.objective_R)[:2]]


def _covariance(model: LogSumExpModel, theta: Array, log_y: Array, weight_n: Array, delta: float) -> Array:
    """Huber's sandwich: H^-1 (sum psi^2 g g') H^-1."""
    _, hessian, _ = derivatives(model, theta[None], log_y, weight_n[None], delta)
    g_np = model.jacobian(theta)
    psi = weight_n * np.clip(model.log_value(theta[None])[0] - log_y, -delta, delta)
    inverse = np.linalg.pinv(hessian[0])
    covariance: Array = inverse @ ((g_np * psi[:, None] ** 2).T @ g_np) @ inverse
    return covariance


def _relative_gradient(model: LogSumExpModel, theta: Array, log_y: Array, weight_n: Array, delta: float) -> float:
    gradient, _, _ = derivatives(model, theta[None], log_y, weight_n[None], delta)
    psi = weight_n * np.clip(model.log_value(theta[None])[0] - log_y, -delta, delta)
    size = np.abs(psi) @ np.abs(model.jacobian(theta))
    if np.abs(psi).max() < 1e-12:
        return 0.0
    return float(np.max(np.abs(gradient[0]) / np.maximum(size, 1e-300)))


def _condition(jacobian: Array, weight_n: Array) -> float:
    weighted = jacobian * np.sqrt(weight_n)[:, None]
    length = np.linalg.norm(weighted, axis=0)
    if not np.all(length > 0):
        return float("inf")
    return float(np.linalg.cond(weighted / length))


def _warnings(diagnostics: Diagnostics) -> list[str]:
    out = []
    if "E" in diagnostics.at_bounds:
        out.append("the irreducible loss is at zero, the edge of what is allowed: these data do not show one")
    if not diagnostics.converged:
        out.append("the optimum was not reached")
    if diagnostics.condition > 1e4:
        out.append(f"parameters trade off against each other (condition {diagnostics.condition:.0f})")
    return out


def _widened_by_students_t(fit: Fit, log_x: Array, log_y: Array, weight_n: Array) -> Fit:
    """The wider of the fit's intervals and Student's t on the (weighted) least-squares line of logs."""
    t_interval = students_t(log_x, log_y, weight_n)
    parameters = {}
    for name, estimate in fit.parameters.items():
        se, low, high = t_interval[name]
        ci = estimate.ci or (low, high)
        parameters[name] = Estimate(estimate.value, max(se, estimate.se or 0.0), (min(low, ci[0]), max(high, ci[1])))
    return Fit(
        **{
            **{name: getattr(fit, name) for name in fit.__dataclass_fields__},
            "parameters": parameters,
            "interval": f"wider of Student's t with {len(log_x) - 2} degrees of freedom and {fit.interval}",
        }
    )


def students_t(log_x: Array, log_y: Array, weight_n: Array | None = None) -> dict[str, tuple[float, float, float]]:
    """se and 95% interval of `A` and `alpha` of the least-squares line of logs, n - 2 degrees of freedom."""
    w = np.ones_like(log_x) if weight_n is None else weight_n
    x_mean = np.average(log_x, weights=w)
    spread = (w * (log_x - x_mean) ** 2).sum()
    alpha = (w * (log_x - x_mean) * log_y).sum() / spread
    level = np.average(log_y, weights=w) - alpha * x_mean
    residual = log_y - level - alpha * log_x
    freedom = len(log_x) - 2
    variance = (w * residual**2).sum() / freedom
    alpha_se = np.sqrt(variance / spread)
    level_se = np.sqrt(variance * (1 / w.sum() + x_mean**2 / spread))
    t = stats.t.ppf(0.5 + CONFIDENCE / 2, freedom)
    amplitude = np.exp(level)
    return {
        "alpha": (float(alpha_se), float(alpha - t * alpha_se), float(alpha + t * alpha_se)),
        "A": (
            float(amplitude * level_se),
            float(np.exp(level - t * level_se)),
            float(np.exp(level + t * level_se)),
        ),
    }


def _loss_compute_starts(log_c: Array, log_l: Array, member: NDArray[np.int_], num_groups: int) -> Array:
    starts = []
    for share in (0.3, 0.6, 0.8, 0.9, 0.97):
        floor = share * np.exp(log_l.min())
        theta = [np.log(floor)]
        for g in range(num_groups):
            rows = member == g
            slope, level = np.polyfit(log_c[rows], np.log(np.exp(log_l[rows]) - floor), 1)
            theta += [level, -slope]
        starts.append(theta)
    return np.array(starts)


def _linear_levels(exponents: list[Array], log_l: Array) -> list[float]:
    """log of E and of each term's level by non-negative least squares on relative residuals, given the exponents."""
    columns = np.stack([np.ones_like(log_l), *[np.exp(u) for u in exponents]], axis=1)
    levels, _ = nnls(columns * np.exp(-log_l)[:, None], np.ones_like(log_l))
    smallest = 1e-3 * float(np.exp(log_l.min()))
    return [float(np.log(max(level, smallest))) for level in levels]


def _log_columns(columns: dict[str, ArrayLike]) -> list[Array]:
    """Logs of the columns, checked: as long as each other, finite and positive."""
    arrays = {}
    for name, values in columns.items():
        try:
            arrays[name] = np.atleast_1d(np.asarray(values, dtype=float)).ravel()
        except (TypeError, ValueError) as error:
            raise ValueError(f"{name}: must be numbers ({error})") from None
    lengths = {name: len(array) for name, array in arrays.items()}
    if len(set(lengths.values())) > 1:
        raise ValueError(f"columns must be as long as each other, not {lengths}")
    for name, array in arrays.items():
        bad = np.flatnonzero(~(np.isfinite(array) & (array > 0)))
        if len(bad):
            raise ValueError(
                f"{name}={array[bad[0]]} in row {bad[0] + 1} ({len(bad)} such): must be a positive number, because "
                "laws are fitted in logarithms"
            )
    return [np.log(array) for array in arrays.values()]


def _weights(weights: ArrayLike | None, num_points: int) -> Array:
    if weights is None:
        return np.ones(num_points)
    array = np.asarray(weights, dtype=float)
    if array.shape != (num_points,) or not np.all(np.isfinite(array) & (array >= 0)) or not array.sum() > 0:
        raise ValueError("weights must be one finite number, zero or positive, for each point")
    return array


def _require_points(num_points: int, num_parameters: int) -> None:
    if num_points < num_parameters + 1:
        raise CannotSay(
            f"{num_points} point(s) for {num_parameters} parameters: at least {num_parameters + 1} are needed"
        )


def _require_spread(name: str, log_values: Array) -> None:
    if len(log_values) < 2 or np.ptp(log_values) < 1e-9:
        raise CannotSay(f"{name} has a single value: a law needs points at several")
