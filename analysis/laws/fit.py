"""What a fit is: estimates with intervals, diagnostics, and where the data end. The same object for every law."""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass, field
from typing import Any, Literal

import numpy as np

from analysis.confidence import CONFIDENCE
from analysis.laws.solver import Array

DEFAULT_DELTA = 1e-3


class NotIdentified(ValueError):
    """Raised where the data do not determine what was asked; the message says why and what would."""


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
    """Condition number of the Jacobian with columns of unit length; without parameters at bounds."""
    residual_sd: float
    """Standard deviation of log residuals."""
    at_bounds: tuple[str, ...] = ()


@dataclass(frozen=True)
class EstimateRecord:
    """An estimate in JSON: null is what is not finite."""

    value: float | None
    """Point estimate."""
    se: float | None
    """Standard error."""
    ci: tuple[float | None, float | None] | None
    """95% interval, low and high; null where none was asked for or none exists."""


@dataclass(frozen=True)
class DiagnosticsRecord:
    """Diagnostics in JSON."""

    starts: int
    starts_agree: float
    """Share of the starts that ended within one millionth of the best objective."""
    converged: bool
    gradient: float
    """Relative; zero at an optimum."""
    condition: float | None
    """Of the Jacobian with columns of unit length."""
    residual_sd: float
    """Of log residuals."""
    at_bounds: list[str]


@dataclass(frozen=True)
class FitRecord:
    """A fitted law in JSON."""

    form: str
    """power, loss-compute, chinchilla, critical-batch or power-product."""
    formula: str
    parameters: dict[str, EstimateRecord]
    """By their usual names: E, A, B, alpha, beta; with a group in brackets where groups share a law."""
    objective: float
    """Sum over points of Huber losses of log residuals, r^2/2 within delta."""
    delta: float | Literal["inf"]
    """Huber's delta; "inf" is least squares."""
    num_points: int
    num_parameters: int
    confidence: float
    interval: str
    """How se and ci were found."""
    bootstrap: int
    """Resamples."""
    inputs: dict[str, list[float]]
    """Smallest and largest value of each input."""
    diagnostics: DiagnosticsRecord
    warnings: list[str]


@dataclass(frozen=True)
class Fit:
    """A fitted law."""

    form: str
    formula: str
    parameters: dict[str, Estimate]
    objective: float
    """Sum of (weighted) Huber losses over points, of residuals in log; r^2/2 within delta."""
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

    def record(self) -> FitRecord:
        """What report.json and `muloco-report fit --json` hold."""
        found = self.diagnostics
        return FitRecord(
            form=self.form,
            formula=self.formula,
            parameters={
                name: EstimateRecord(
                    _finite(e.value), _finite(e.se), (_finite(e.ci[0]), _finite(e.ci[1])) if e.ci else None
                )
                for name, e in self.parameters.items()
            },
            objective=self.objective,
            delta=self.delta if np.isfinite(self.delta) else "inf",
            num_points=self.num_points,
            num_parameters=self.num_parameters,
            confidence=CONFIDENCE,
            interval=self.interval,
            bootstrap=self.bootstrap,
            inputs={name: list(bounds) for name, bounds in self.inputs.items()},
            diagnostics=DiagnosticsRecord(
                starts=found.starts,
                starts_agree=found.starts_agree,
                converged=found.converged,
                gradient=found.gradient,
                condition=_finite(found.condition),
                residual_sd=found.residual_sd,
                at_bounds=list(found.at_bounds),
            ),
            warnings=list(self.warnings),
        )

    def to_dict(self) -> dict[str, Any]:
        """`record` as plain values."""
        return asdict(self.record())


def _finite(value: float | None) -> float | None:
    return value if value is not None and math.isfinite(value) else None
