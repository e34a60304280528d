"""How sure an interval of this package is."""

from __future__ import annotations

from scipy import special

CONFIDENCE = 0.95


def t_quantile(freedom: int) -> float:
    """Return the reach of a 95% interval of Student's t in standard errors; `scipy.stats` takes long to import."""
    return float(special.stdtrit(freedom, 0.5 + CONFIDENCE / 2))
