"""`halve`: stops runs early that could not become the best any more, by the loss curves so far.

Asynchronous successive halving (Li et al., A System for Massively Parallel Hyperparameter Tuning, arXiv 1810.05934):
a run is judged at rungs, shares of its budget that grow by `eta`, against whatever has got so far. Since orders flip
while rates decay, a low rank alone stops nothing. Compared are runs of one series, size and batch, by their training
loss. A run is stopped at a rung where both hold:

1. it is not among the best 1/eta of those that have come to the rung;
2. at least `eta` of the others have finished, and to end as low as the lowest of them it would have to gain, from the
   rung on, more than `gain_factor` times what any of them has gained from there.

So a run that ends lowest is never stopped, unless it would have gained from the rung on more than `gain_factor` times
what any finished run has.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

END = "1"
"""The share of a whole run, as a key of its losses."""


@dataclass(frozen=True)
class HalveRule:
    """`halve:` of a sweep file."""

    eta: int = 2
    """A rung is so many times the one before; the best of so many go on in any case."""
    first_share: float = 0.25
    """Of a run's budget: nothing is judged before."""
    gain_factor: float = 2.0
    """So many times what finished runs have gained from a rung on is thought possible."""

    @property
    def rungs(self) -> tuple[str, ...]:
        """Shares of the budget, growing, as keys of losses."""
        shares = []
        share = 1 / self.eta
        while share >= self.first_share * (1 - 1e-9):
            shares.append(share)
            share /= self.eta
        return tuple(f"{share:.6g}" for share in reversed(shares))


Curve = Mapping[str, float]
"""Training losses by share of the budget; with `END` where the run has finished."""


def why_hopeless(name: str, curves: Mapping[str, Curve], rule: HalveRule) -> str | None:
    """Return why that run is to be stopped; None where it goes on.

    `curves` are those of all runs of its series, size and batch, by name. A run that has finished is never hopeless.
    """
    own = curves[name]
    rungs = [share for share in rule.rungs if share in own]
    if not rungs or END in own:
        return None
    rung = rungs[-1]
    there = sorted(curve[rung] for curve in curves.values() if rung in curve)
    best_few = math.ceil(len(there) / rule.eta)
    finished = [curve for other, curve in curves.items() if other != name and END in curve and rung in curve]
    if len(finished) < rule.eta or own[rung] <= there[best_few - 1]:
        return None
    lowest = min(curve[END] for curve in finished)
    gain = max(0.0, *(curve[rung] - curve[END] for curve in finished))
    if own[rung] - lowest <= rule.gain_factor * gain:
        return None
    return (
        f"at {float(rung):.0%} of its tokens its training loss was {own[rung]:.4f}; to end at {lowest:.4f}, the lowest "
        f"of {len(finished)} that have finished, it would have to gain more than {rule.gain_factor:g} times the "
        f"{gain:.4f} that any of them gained from there on"
    )
