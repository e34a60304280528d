"""One law fitted: optimum, intervals and diagnostics, put together the same way for every law."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from analysis.laws.fit import Diagnostics, Estimate, Fit, NotIdentified
from analysis.laws.intervals import draw_parameters, estimates, is_exponent, without_absurd_intervals
from analysis.laws.optimum import Law, find_optimum, floors_at_zero
from analysis.laws.solver import Array, LogSumExpModel, derivatives, huber

_MAX_CONDITION = 1e9
MAX_EXPONENT = 2.0


def fit_law(
    law: Law,
    weight_n: Array,
    delta: float,
    bootstrap: int,
    seed: int,
    resample_by: Sequence[Any] | None = None,
) -> Fit:
    """Fit `law`; raises `NotIdentified` where the data do not determine it."""
    if not delta > 0:
        raise ValueError(f"delta={delta}: must be positive; inf is least squares")
    if bootstrap < 0:
        raise ValueError(f"bootstrap={bootstrap}: must be zero or positive")
    model, log_y = law.model, law.log_y
    theta, agree, converged = find_optimum(law, weight_n, delta, seed)
    residual = model.log_value(theta[None])[0] - log_y
    zero = floors_at_zero(law, theta)
    condition = _condition(model.jacobian(theta), weight_n, zero)
    if condition > _MAX_CONDITION:
        raise NotIdentified(
            f"the parameters of {law.formula} trade off against each other exactly on these points (condition "
            f"{condition:.1e}): points at other {' and '.join(law.inputs)} are needed"
        )
    with np.errstate(over="ignore", invalid="ignore"):
        draws_Rp, interval = draw_parameters(law, theta, zero, weight_n, delta, bootstrap, seed, resample_by)
        parameters, at_bounds, drawn = estimates(law, theta, zero, draws_Rp, resample_by)
    _require_sense(law, {name: estimate.value for name, estimate in parameters.items()})
    diagnostics = Diagnostics(
        starts=len(law.starts_Rp),
        starts_agree=agree,
        converged=converged,
        gradient=_relative_gradient(model, theta, log_y, weight_n, delta),
        condition=condition,
        residual_sd=float(np.std(residual)),
        at_bounds=at_bounds,
    )
    fit = Fit(
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
    return without_absurd_intervals(fit)


def _require_sense(law: Law, values: Mapping[str, float]) -> None:
    """Refuse what no law of loss or batch is: levels beyond floating point, exponents beyond `MAX_EXPONENT`."""
    infinite = [name for name, value in values.items() if not np.isfinite(value)]
    if infinite:
        raise NotIdentified(f"{', '.join(infinite)} of {law.formula} runs away: these points do not bound it")
    steep = [
        f"{name} = {value:.3g}" for name, value in values.items() if is_exponent(name) and abs(value) > MAX_EXPONENT
    ]
    if steep and law.form != "power":
        raise NotIdentified(
            f"{', '.join(steep)} in {law.formula}, beyond {MAX_EXPONENT:g}: no {' or '.join(law.inputs)} acts so "
            "strongly; the points lie too close together or something else differs between them"
        )


def _relative_gradient(model: LogSumExpModel, theta: Array, log_y: Array, weight_n: Array, delta: float) -> float:
    gradient, _, _ = derivatives(model, theta[None], log_y, weight_n[None], delta)
    psi = weight_n * np.clip(model.log_value(theta[None])[0] - log_y, -delta, delta)
    size = np.abs(psi) @ np.abs(model.jacobian(theta))
    if np.abs(psi).max() < 1e-12:
        return 0.0
    return float(np.max(np.abs(gradient[0]) / np.maximum(size, 1e-300)))


def _condition(jacobian: Array, weight_n: Array, at_zero: tuple[int, ...]) -> float:
    weighted = np.delete(jacobian * np.sqrt(weight_n)[:, None], at_zero, axis=1)
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
