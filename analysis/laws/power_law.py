"""Fits of scaling laws: power law, loss against compute, Chinchilla's L(N, D), critical batch size.

    power           y = A x^alpha
    loss-compute    L = E + A C^-alpha            (several groups may share E)
    chinchilla      L = E + A N^-alpha + B D^-beta
    critical-batch  B = A D^alpha

Residuals are logarithms, their loss is Huber's, and the sum over points is minimised (Hoffmann et al. 2022, section
3.3). Inputs are centred in log, many starts are solved at once, and intervals come from a weighted bootstrap. What the
data do not determine raises `NotIdentified` with the reason, and never a number.
"""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from typing import Any, TypedDict, Unpack

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.optimize import nnls

from analysis.laws.fit import DEFAULT_DELTA, Fit, NotIdentified
from analysis.laws.fit_law import fit_law
from analysis.laws.intervals import students_t, widened_by_students_t, with_students_t, without_absurd_intervals
from analysis.laws.optimum import Law
from analysis.laws.solver import Array, LogSumExpModel, solve

MAX_CORRELATION = 0.99
"""Above this |correlation| of log N and log D the two exponents of L(N, D) cannot be told apart."""

MIN_SPAN = 1.3
"""Factor between the smallest and largest value of an input, below which noise makes any exponent."""

_FEW_POINTS = 30
"""Independent points below which Student's t alone makes the interval of a power law."""


class FitOptions(TypedDict, total=False):
    """Options of every fit: weights of points, Huber's delta, and the bootstrap's resamples, seed and units."""

    weights: ArrayLike | None
    delta: float
    bootstrap: int
    seed: int
    resample_by: Sequence[Any] | None


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
    resample_by: Sequence[Any] | None = None,
) -> Fit:
    """y = A x^alpha. Intervals are Student's t on the log-log line; of many points, or clusters, the wider of that and
    the bootstrap."""
    formula = f"{names[1]} = A * {names[0]}^alpha"
    inputs = {names[0]: x}
    return _fit_product(form, formula, inputs, ["alpha"], names[1], y, weights, delta, bootstrap, seed, resample_by)


def fit_power_product(
    inputs: Mapping[str, ArrayLike],
    y: ArrayLike,
    *,
    name: str = "y",
    weights: ArrayLike | None = None,
    delta: float = DEFAULT_DELTA,
    bootstrap: int = 1000,
    seed: int = 0,
) -> Fit:
    """y = A x1^alpha[x1] x2^alpha[x2] ..., with the intervals of `fit_power_law`."""
    exponents = [f"alpha[{one}]" for one in inputs]
    formula = f"{name} = A" + "".join(f" * {one}^alpha[{one}]" for one in inputs)
    return _fit_product("power", formula, inputs, exponents, name, y, weights, delta, bootstrap, seed)


def refit_power_laws(x: ArrayLike, y_Rn: Array, delta: float) -> dict[str, Array]:
    """A and alpha of y = A x^alpha for each row of `y_Rn`; NaN marks a point that a row lacks."""
    (log_x,) = _log_columns({"x": x})
    known = np.isfinite(y_Rn)
    log_y = np.log(np.where(known, y_Rn, 1.0))
    centre = log_x.mean()
    model = LogSumExpModel(np.stack([np.ones_like(log_x), log_x - centre], axis=1)[None])
    level = (log_y * known).sum(axis=1) / np.maximum(known.sum(axis=1), 1)
    starts = np.stack([level, np.zeros_like(level)], axis=1)
    theta = solve(model, log_y, known.astype(float), starts, delta).theta_Rp
    return {"A": np.exp(theta[:, 0] - theta[:, 1] * centre), "alpha": theta[:, 1]}


def _fit_product(
    form: str,
    formula: str,
    inputs: Mapping[str, ArrayLike],
    exponents: list[str],
    name: str,
    y: ArrayLike,
    weights: ArrayLike | None,
    delta: float,
    bootstrap: int,
    seed: int,
    resample_by: Sequence[Any] | None = None,
) -> Fit:
    *log_inputs, log_y = _log_columns({**inputs, name: y})
    _require_points(len(log_y), 1 + len(log_inputs))
    for one, log_x in zip(inputs, log_inputs, strict=True):
        _require_spread(one, log_x)
    weight_n = _weights(weights, len(log_y))
    centres = [log_x.mean() for log_x in log_inputs]
    columns = [np.ones_like(log_y), *[log_x - c for log_x, c in zip(log_inputs, centres, strict=True)]]
    design = np.stack(columns, axis=1)
    if np.linalg.matrix_rank(design) < design.shape[1]:
        raise NotIdentified(f"{' and '.join(inputs)} rise together: their exponents cannot be told apart")
    line = np.linalg.lstsq(design, log_y, rcond=None)[0]
    starts = np.stack([line + shift * np.eye(len(line))[1] for shift in (0.0, -1.0, -0.3, 0.3, 1.0)])

    def natural(theta_Rp: Array) -> dict[str, Array]:
        level = theta_Rp[:, 0] - theta_Rp[:, 1:] @ np.array(centres)
        return {"A": np.exp(level), **{one: theta_Rp[:, 1 + i] for i, one in enumerate(exponents)}}

    logs = dict(zip(inputs, log_inputs, strict=True))
    law = Law(form, formula, LogSumExpModel(design[None]), log_y, starts, natural, logs)
    fit = fit_law(law, weight_n, delta, bootstrap, seed, resample_by)
    if not bootstrap:
        return fit
    t_intervals = dict(zip(["A", *exponents], students_t(np.stack(log_inputs, axis=1), log_y, weight_n), strict=True))
    independent = resample_by is None or len(set(resample_by)) == len(log_y)
    found = with_students_t if independent and len(log_y) < _FEW_POINTS else widened_by_students_t
    return without_absurd_intervals(found(fit, t_intervals))


def fit_critical_batch(num_tokens: ArrayLike, critical_batch_size: ArrayLike, **options: Unpack[FitOptions]) -> Fit:
    """B = A D^alpha, over scales."""
    names = ("num_tokens", "critical_batch_size")
    return fit_power_law(num_tokens, critical_batch_size, form="critical-batch", names=names, **options)


def fit_loss_compute(
    flops: ArrayLike,
    loss: ArrayLike,
    *,
    groups: Sequence[str] | None = None,
    shared_irreducible_loss: bool = True,
    weights: ArrayLike | None = None,
    delta: float = DEFAULT_DELTA,
    bootstrap: int = 1000,
    seed: int = 0,
    resample_by: Sequence[Any] | None = None,
) -> Fit:
    """L = E + A C^-alpha; with `groups`, one E for all (or `E[group]`) and `A[group]`, `alpha[group]` for each.

    `resample_by` names the unit of the bootstrap: points of the same unit (one scale, seen by every method) share
    their weight, so that what they have in common cancels in ratios.
    """
    log_c, log_l = _log_columns({"flops": flops, "loss": loss})
    labels = [""] * len(log_c) if groups is None else [str(g) for g in groups]
    if len(labels) != len(log_c):
        raise ValueError(f"groups must name one group a point: {len(labels)} names for {len(log_c)} points")
    order = list(dict.fromkeys(labels))
    num_floors = 1 if shared_irreducible_loss else len(order)
    _require_points(len(log_c), num_floors + 2 * len(order))
    member = np.array([order.index(label) for label in labels], dtype=int)
    centre = log_c.mean()
    design = np.zeros((2, len(log_c), num_floors + 2 * len(order)))
    for g, label in enumerate(order):
        rows, of = member == g, f" of {label}" if label else ""
        needed = 3 if num_floors == len(order) else 2
        _require_spread(f"flops{of}", log_c[rows], needed)
        design[0, rows, g if num_floors > 1 else 0] = 1
        design[1, rows, num_floors + 2 * g] = 1
        design[1, rows, num_floors + 2 * g + 1] = -(log_c[rows] - centre)
    if max(_num_distinct(log_c[member == g]) for g in range(len(order))) < 3:
        raise NotIdentified("no group has three different flops: an irreducible loss cannot be told from an exponent")
    suffixes = [f"[{label}]" if label else "" for label in order]
    floors = {0: "E"} if num_floors == 1 else {g: f"E{suffixes[g]}" for g in range(num_floors)}

    def natural(theta_Rp: Array) -> dict[str, Array]:
        values = {name: np.exp(theta_Rp[:, index]) for index, name in floors.items()}
        for g, suffix in enumerate(suffixes):
            exponent = theta_Rp[:, num_floors + 2 * g + 1]
            values[f"A{suffix}"] = np.exp(theta_Rp[:, num_floors + 2 * g] + exponent * centre)
            values[f"alpha{suffix}"] = exponent
        return values

    starts = _loss_compute_starts(log_c - centre, log_l, member, len(order), num_floors)
    formula = "loss = E + A * flops^-alpha"
    law = Law("loss-compute", formula, LogSumExpModel(design), log_l, starts, natural, {"flops": log_c}, floors, labels)
    return fit_law(law, _weights(weights, len(log_c)), delta, bootstrap, seed, resample_by)


def fit_chinchilla(
    num_params: ArrayLike,
    num_tokens: ArrayLike,
    loss: ArrayLike,
    *,
    weights: ArrayLike | None = None,
    delta: float = DEFAULT_DELTA,
    bootstrap: int = 1000,
    seed: int = 0,
    resample_by: Sequence[Any] | None = None,
) -> Fit:
    """L = E + A N^-alpha + B D^-beta. Refused where N and D rise together: then no data can part their exponents.

    `resample_by` names the run of each point, where runs have several: they are resampled together.
    """
    log_n, log_d, log_l = _log_columns({"num_params": num_params, "num_tokens": num_tokens, "loss": loss})
    _require_points(len(log_n), 5)
    _require_spread("num_params", log_n, 3)
    _require_spread("num_tokens", log_d, 3)
    correlation = float(np.corrcoef(log_n, log_d)[0, 1])
    if abs(correlation) > MAX_CORRELATION:
        raise NotIdentified(
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

    inputs = {"num_params": log_n, "num_tokens": log_d}
    formula = "loss = E + A * num_params^-alpha + B * num_tokens^-beta"
    law = Law("chinchilla", formula, LogSumExpModel(design), log_l, starts, natural, inputs, {0: "E"})
    return fit_law(law, _weights(weights, len(log_n)), delta, bootstrap, seed, resample_by)


def _loss_compute_starts(log_c: Array, log_l: Array, member: NDArray[np.int_], num_groups: int, floors: int) -> Array:
    """Irreducible losses at shares of the smallest loss, and log-linear levels and exponents above them."""
    starts = []
    lowest = [log_l[member == g].min() if floors > 1 else log_l.min() for g in range(num_groups)]
    for share in (0.1, 0.3, 0.5, 0.7, 0.8, 0.9, 0.95, 0.99):
        log_floors = [np.log(share) + low for low in lowest]
        theta = log_floors[:floors]
        for g in range(num_groups):
            rows = member == g
            slope, level = np.polyfit(log_c[rows], np.log(np.exp(log_l[rows]) - np.exp(log_floors[g])), 1)
            theta = [*theta, level, -slope]
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
        raise NotIdentified(
            f"{num_points} point(s) for {num_parameters} parameters: at least {num_parameters + 1} are needed"
        )


def _require_spread(name: str, log_values: Array, num_distinct: int = 2) -> None:
    found = _num_distinct(log_values)
    if found < num_distinct:
        what = "a single value" if found < 2 else f"{found} different values"
        raise NotIdentified(f"{name} has {what}: this law needs points at {num_distinct} or more")
    span = float(np.exp(np.ptp(log_values)))
    if span < MIN_SPAN:
        raise NotIdentified(
            f"{name} spans a factor of {span:.4g} alone ({np.exp(log_values.min()):.4g} to "
            f"{np.exp(log_values.max()):.4g}): an exponent needs a factor of {MIN_SPAN} at least"
        )


def _num_distinct(log_values: Array) -> int:
    """Values that differ by more than rounding."""
    return len(np.unique(np.round(log_values, 9)))
