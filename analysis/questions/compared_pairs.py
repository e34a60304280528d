"""Which pairs of series are compared: those stated beforehand, and all others."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import combinations

import pandas as pd

from analysis.style import Style, partner_of

Pair = tuple[str, str]


def partners(best: pd.DataFrame, style: Style) -> dict[str, str]:
    """The series that each of `best` is compared with over K (`partner_of`); none where that is itself or not there."""
    known = set(best["series"])
    out: dict[str, str] = {}
    for algorithm, rows in best.groupby("algorithm", sort=False, observed=True):
        workers = dict(zip(rows["series"], rows["num_workers"], strict=True))
        for name in workers:
            partner = partner_of(style, name, str(algorithm), workers, known)
            if partner is not None and partner in known and partner != name:
                out[name] = partner
    return out


def stated_pairs(names: Sequence[str], baseline: str, partner: dict[str, str]) -> list[Pair]:
    """Each series and the baseline, then each and its partner; the second of a pair is what the first is held against.

    The choice looks at no loss, so that a correction for as many comparisons as these suffices.
    """
    wanted = [(name, baseline) for name in names if name != baseline and baseline in names]
    wanted += [(name, partner[name]) for name in names if partner.get(name) in names]
    return _without_repeats(wanted)


def other_pairs(names: Sequence[str], stated: Sequence[Pair]) -> list[Pair]:
    """All pairs but the stated ones."""
    return _without_repeats([*stated, *combinations(names, 2)])[len(stated) :]


def _without_repeats(pairs: Sequence[Pair]) -> list[Pair]:
    """The first of those that name the same two series."""
    out: dict[frozenset[str], Pair] = {}
    for pair in pairs:
        out.setdefault(frozenset(pair), pair)
    return [*out.values()]
