"""Checks of Muon's settings, which raise `ValueError`: what was given, what is allowed."""

from __future__ import annotations

import math
from collections.abc import Sequence
from numbers import Integral, Real
from typing import Any, get_args

from muloco_runner.config.inner_optimizer import Coefficients, MomentumForm


def check_number(name: str, value: Any, end: float = math.inf) -> None:
    """Check that a hyper-parameter is a number, not negative, and below `end`."""
    if not isinstance(value, Real) or not 0 <= float(value) < end:
        raise ValueError(
            f"{name}={value!r}: must be at least 0 and {'finite' if end == math.inf else f'below {end:g}'}"
        )


def check_count(name: str, value: Any) -> None:
    """Check that a number of something is whole and positive."""
    if not isinstance(value, Integral) or value < 1:
        raise ValueError(f"{name}={value!r}: must be a whole number, at least 1")


def check_choice(name: str, value: Any, allowed: Sequence[str]) -> None:
    """Check that a setting is one of these words."""
    if value not in allowed:
        raise ValueError(f"{name}={value!r}: must be one of {', '.join(allowed)}")


def check_coefficients(value: Any) -> None:
    """Check that a Newton-Schulz polynomial has a name, or is a triple for every step."""
    is_triple = isinstance(value, tuple | list) and len(value) == 3 and all(isinstance(one, Real) for one in value)
    if not is_triple and (not isinstance(value, str) or value not in get_args(Coefficients)):
        names = ", ".join(get_args(Coefficients))
        raise ValueError(f"coefficients={value!r}: must be one of {names}, or three numbers for every step")


def check_nesterov(value: Any, form: MomentumForm) -> None:
    """Check that Nesterov's look ahead is on, off, or corrected for a start at zero, which a mean alone has."""
    if value in (True, False):
        return
    if value != "corrected":
        raise ValueError(f"nesterov={value!r}: must be True, False or 'corrected'")
    if form != "ema":
        raise ValueError("nesterov='corrected': corrects a mean of gradients: give momentum_form='ema'")
