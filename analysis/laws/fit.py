"""What a fit is: estimates with intervals, diagnostics, and where the data end. The same object for every law."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Any

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

    def to_dict(self) -> dict[str, Any]:
        """What `muloco-report fit --json` prints. A number that JSON cannot hold is null."""
        return {
            "form": self.form,
            "formula": self.formula,
            "parameters": {
                name: {
                    "value": _finite(e.value),
                    "se": _finite(e.se),
                    "ci": [_finite(bound) for bound in e.ci] if e.ci else None,
                }
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
                "condition": _finite(self.diagnostics.condition),
                "residual_sd": self.diagnostics.residual_sd,
                "at_bounds": list(self.diagnostics.at_bounds),
            },
            "warnings": list(self.warnings),
        }


def _finite(value: float | None) -> float | None:
    return value if value is not None and math.isfinite(value) else None
