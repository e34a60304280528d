"""How far the headline figures move when a choice of the analysis is made otherwise.

Each variant changes one choice. The ratio of compute stands at the largest compute that the headline fit saw; an
exponent is that of the critical batch under each definition and loss function.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import pandas as pd

from analysis.laws.fit import DEFAULT_DELTA, Fit, NotIdentified
from analysis.laws.power_law import fit_loss_compute
from analysis.questions.iso_loss import ratio_at


@dataclass(frozen=True)
class Variant:
    """The laws of loss under one choice made otherwise."""

    name: str
    series: str
    irreducible_loss: float | None
    """Irreducible loss of the series; None where the variant has no fit."""
    exponent: float | None
    ratio: float | None
    """Compute of the baseline over the series' at `flops`; None where it does not exist."""
    flops: float
    reason: str | None
    sizes: tuple[int, ...] = ()
    """Sizes of the series (num_params) that the fit stands on."""


def loss_variants(best: pd.DataFrame, series: list[str], baseline: str, delta: float) -> list[Variant]:
    """`best` has one row a series and scale (series, num_params, flops, loss, edges), all at one token budget."""
    flops = float(best["flops"].max())
    out = []
    for name, rows, chosen_delta, shared in _choices(best, delta):
        try:
            fit = _fit(rows, chosen_delta, shared)
        except NotIdentified as error:
            out += [Variant(name, s, None, None, None, flops, str(error)) for s in series]
            continue
        out += [_variant(name, s, fit, rows, baseline, flops) for s in series if f"A[{s}]" in fit.parameters]
    return out


def _choices(best: pd.DataFrame, delta: float) -> Iterator[tuple[str, pd.DataFrame, float, bool]]:
    label = f"Huber {delta:g}" if np.isfinite(delta) else "least squares"
    yield f"as reported ({label}, one irreducible loss)", best, delta, True
    for other in (DEFAULT_DELTA, 1e-2, np.inf):
        if other != delta:
            yield ("least squares" if np.isinf(other) else f"Huber {other:g}"), best, other, True
    yield "an irreducible loss for each series", best, delta, False
    sizes = sorted(best["num_params"].unique())
    yield "without the smallest size", best[best["num_params"] > sizes[0]], delta, True
    yield "without the largest size", best[best["num_params"] < sizes[-1]], delta, True
    interior = best[[not edges for edges in best["edges"]]]
    if len(interior) < len(best):
        yield "without optima on a grid's edge", interior, delta, True


def _fit(rows: pd.DataFrame, delta: float, shared: bool) -> Fit:
    counts = rows.groupby("series")["num_params"].nunique()
    usable = rows[rows["series"].map(counts) >= 3]
    if usable.empty:
        raise NotIdentified("fewer than 3 sizes are left")
    groups = usable["series"].tolist()
    return fit_loss_compute(
        usable["flops"], usable["loss"], groups=groups, shared_irreducible_loss=shared, delta=delta, bootstrap=0
    )


def _variant(name: str, series: str, fit: Fit, rows: pd.DataFrame, baseline: str, flops: float) -> Variant:
    values = {key: np.array([e.value]) for key, e in fit.parameters.items()}
    floor = fit.value("E") if "E" in fit.parameters else fit.value(f"E[{series}]")
    ratio, reason = None, None
    if series != baseline and f"A[{baseline}]" in fit.parameters:
        found = float(ratio_at(values, baseline, series, flops)[0])
        ratio = found if np.isfinite(found) else None
        reason = None if ratio is not None else f"{baseline} never reaches this loss by its own law"
    sizes = tuple(int(n) for n in rows.loc[rows["series"] == series, "num_params"])
    return Variant(name, series, floor, fit.value(f"alpha[{series}]"), ratio, flops, reason, sizes)
