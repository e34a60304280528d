"""Loss against size at equal compute, and L(N, D) of each series where its data can tell N from D.

A parabola in log N through the sizes trained with one compute budget marks the best size for it. Parabolas are a figure
only: they are biased where the two exponents differ. The optimal allocation N ~ C^a comes from the law of loss against
size and tokens, a = beta / (alpha + beta).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd

from analysis.laws.fit import Fit, NotIdentified
from analysis.laws.power_law import fit_chinchilla
from analysis.runs import SETTING

SAME_BUDGET = 0.05
"""Compute within 5% counts as equal."""
MIN_SIZES = 3
_PARAMETERS = 5
"""Of the law of size and data."""


@dataclass(frozen=True)
class Budget:
    """One series' sizes at one compute budget, and the parabola through them."""

    series: str
    flops: float
    points: tuple[tuple[int, float], ...]
    """(num_params, loss), by size."""
    parabola: tuple[float, float, float] | None
    """log L = c0 + c1 x + c2 x^2, x = ln N - `centre`; None with fewer than three sizes or a valley upside down."""
    centre: float
    best_num_params: float | None
    """The parabola's minimum; None where it lies at or beyond the edge of the sizes tried."""


@dataclass(frozen=True)
class SizeAndData:
    """L(N, D) of one series, or the reason why there is none."""

    series: str
    fit: Fit | None
    reason: str | None

    @property
    def allocation(self) -> float | None:
        """a of N_opt ~ C^a."""
        if self.fit is None:
            return None
        alpha, beta = self.fit.value("alpha"), self.fit.value("beta")
        return beta / (alpha + beta)


def find_budgets(best: pd.DataFrame, series: list[str]) -> list[Budget]:
    """Every series and compute budget at which three sizes or more were trained; `best` is one row a scale."""
    out = []
    for name in series:
        rows = best[best["series"] == name].sort_values("flops")
        step = np.diff(np.log(rows["flops"].to_numpy()), prepend=-np.inf)
        for _, group in rows.groupby(np.cumsum(step > SAME_BUDGET)):
            chosen = group.loc[group.groupby("num_params")["loss"].idxmin()].sort_values("num_params")
            if len(chosen) >= MIN_SIZES:
                out.append(_budget(name, chosen))
    return out


def _budget(series: str, rows: pd.DataFrame) -> Budget:
    log_n, log_l = np.log(rows["num_params"].to_numpy(dtype=float)), np.log(rows["loss"].to_numpy())
    centre = float(log_n.mean())
    c2, c1, c0 = (float(c) for c in np.polyfit(log_n - centre, log_l, 2))
    lowest = centre - c1 / (2 * c2) if c2 > 0 else None
    interior = lowest is not None and log_n.min() < lowest < log_n.max()
    points = tuple((int(n), float(loss)) for n, loss in zip(rows["num_params"], rows["loss"], strict=True))
    return Budget(
        series,
        float(rows["flops"].median()),
        points,
        (c0, c1, c2) if c2 > 0 else None,
        centre,
        float(np.exp(lowest)) if interior and lowest is not None else None,
    )


def fit_size_and_data(
    best: pd.DataFrame,
    series: list[str],
    delta: float,
    bootstrap: int,
    seed: int,
    trunks: pd.Series[Any] | None = None,
) -> list[SizeAndData]:
    """The law of each series from its best loss at every size and token budget.

    trunks: as `trunks_of` gives them; points of one trunk are resampled together. Where they are no more than the law's
    parameters there are no intervals, and `reason` says so.
    """
    out = []
    for name in series:
        rows = best[best["series"] == name]
        units = trunks[rows.index].tolist() if trunks is not None else None
        few = units is not None and len(set(units)) <= _PARAMETERS
        try:
            fit = fit_chinchilla(
                rows["num_params"],
                rows["num_tokens"],
                rows["loss"],
                delta=delta,
                bootstrap=0 if few else bootstrap,
                seed=seed,
                resample_by=units,
            )
        except NotIdentified as error:
            out.append(SizeAndData(name, None, str(error)))
        else:
            why = (
                f"no intervals: {len(rows)} points branch from {len(set(units or ()))} runs, for {_PARAMETERS} numbers"
            )
            out.append(SizeAndData(name, fit, why if few else None))
    return out


def trunks_of(best: pd.DataFrame, runs: pd.DataFrame) -> pd.Series[Any] | None:
    """For each row of `best` a number, the same for rows with runs that go on from one run's checkpoints, or from each
    other's: they share what that run has seen. None where no run goes on from another's."""
    if "parent" not in runs or runs["parent"].isna().all():
        return None
    begun = runs[runs["parent"].notna()]
    parents = dict(zip(begun["run_id"], begun["parent"], strict=True))
    first = runs["run_id"].map(lambda run: _first_of(run, parents))
    of_setting = first.groupby([runs[name] for name in SETTING], observed=True, dropna=False).agg(list)
    clusters: dict[str, int] = {}
    out = []
    for number, key in enumerate(best[SETTING].itertuples(index=False, name=None)):
        found = {clusters.setdefault(run, number) for run in of_setting[key]}
        joined = min(found)
        clusters = {run: joined if cluster in found else cluster for run, cluster in clusters.items()}
        out.append(of_setting[key][0])
    return pd.Series([clusters[run] for run in out], index=best.index)


def _first_of(run: str, parents: Mapping[str, str]) -> str:
    """The run that began by itself, from which it goes on."""
    for _ in range(len(parents)):
        if run not in parents:
            break
        run = parents[run]
    return run
