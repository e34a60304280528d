"""The two numbers of Generalized Primal Averaging (arXiv 2512.17131): of `method=gpa` and of the optimizer `GPA`."""

from __future__ import annotations

from numbers import Real

from muloco_runner.config.checks import require

MU_Y = 0.7
"""The paper's default."""
INTERVAL = 32
"""H where none is given: one of the paper's."""


def mu_x_of_interval(sync_interval: int) -> float:
    """Return 0.9^(1/H): the paper's mu_x for H of 1, 4, 8, 16, 32, 64 (.9, .974, .9869, .9934, .9967, .9984).

    H steps of averaging at this mu_x forget as much as one at 0.9, so that it stands in for DiLoCo's H.
    """
    return float(0.9 ** (1 / sync_interval))


def check_averaging(where: str, mu_x: float, mu_y: float) -> None:
    """Numbers that average nothing raise `ConfigError`; `where` is what comes before their names."""
    require(
        isinstance(mu_x, Real) and 0 <= mu_x < 1,
        f"{where}mu_x={mu_x!r}: must be at least 0 (x is z) and below 1 (x would never move)",
    )
    require(
        isinstance(mu_y, Real) and 0 < mu_y <= 1,
        f"{where}mu_y={mu_y!r}: must be above 0 (x does not follow from y = z alone) and at most 1 (y is x)",
    )
