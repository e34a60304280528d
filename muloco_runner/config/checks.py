"""What is allowed: the error of a user's mistake, and the checks that raise it."""

from __future__ import annotations

import math


class ConfigError(ValueError):
    """A user's mistake in a configuration: says what was given, what is allowed and what to change."""


def require(condition: bool, message: str) -> None:
    if not condition:
        raise ConfigError(message)


def require_positive(owner: str, **values: float) -> None:
    """`owner` is the config's path on the command line; empty for the run itself."""
    for name, value in values.items():
        key = f"{owner}.{name}" if owner else name
        require(math.isfinite(value) and value > 0, f"{key}={value}: must be a positive number")


def require_choice(name: str, value: str | int | None, allowed: tuple[str | int, ...]) -> None:
    require(value in allowed, f"{name}={value!r}: must be one of {', '.join(map(str, allowed))}")
