"""How large a batch may grow before tokens are wasted: the critical batch size, always with its definition.

cbs_1pct        largest tested batch with loss <= 1.01 times the best: on a grid of powers of two an interval, no point
cbs_1pct_interpolated   where the curve, straight between tested batches in log B, crosses 1.01 times the best
cbs_overhead20  batch whose loss is what training on D/1.2 tokens would cost: needs runs at other token budgets
cbs_joint       B_c = a D^p in one model of all scales, D_eff = D / (1 + B/B_c)

Where batches have seeds that had no part in choosing settings (`replicate: {each_batch: 8}`), cbs_1pct has bounds that
hold with 95% confidence.

The definition changes the exponent, so they stand side by side. A curve that never crosses its threshold is
right-censored: it bounds the critical batch from below. One whose best batch is the smallest tested is left-censored:
its best loss, and so the threshold, are not known. Neither is drawn, or fitted, as a point.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from itertools import combinations
from typing import cast

import numpy as np
import pandas as pd

from analysis.confidence import t_quantile
from analysis.laws.fit import Estimate, Fit, NotIdentified
from analysis.laws.power_law import fit_critical_batch, refit_power_laws
from analysis.laws.solver import Array
from analysis.optima import Optima
from analysis.seeds import LEAST_SPREAD
from analysis.series import sort_series
from muloco_runner.record import PLATEAU, bracket_batches

OVERHEAD = 1.2
MIN_BATCHES_ABOVE = 3
MIN_STEPS = 200
MIN_SCALES = 3
_NOISE_RESAMPLES = 200


@dataclass(frozen=True)
class CriticalBatch:
    """One series at one scale. Batches in tokens."""

    series: str
    num_params: int
    tokens_per_parameter: float
    num_tokens: int
    """D at the best batch."""
    best_loss: float
    best_batch: int
    largest_good_batch: int
    """cbs_1pct: the largest tested batch within 1% of the best loss."""
    next_batch: int | None
    """The smallest tested batch above it, out of the 1%: the critical batch lies between the two."""
    interpolated: float | None
    """cbs_1pct_interpolated."""
    overhead20: float | None
    """cbs_overhead20."""
    overhead_factor: float | None
    """Loss at that batch over the best loss; None without other token budgets."""
    censored: str | None
    """right: no tested batch is bad enough; left: the best batch is the smallest tested."""
    concerns: tuple[str, ...]
    """Preconditions that do not hold."""
    at_least: int | None
    """The largest tested batch that is within 1% of every other one with 95% confidence; None where none is."""
    below: int | None
    """The smallest tested batch beyond the best one that is more than 1% above it with 95% confidence, or None."""
    paired_seeds: int
    """Seeds behind these two: the fewest that two batches have in common and that had no part in choosing settings."""


@dataclass(frozen=True)
class CriticalBatchLaw:
    """B = A D^alpha of one series under one definition, or the reason why there is none."""

    series: str
    definition: str
    fit: Fit | None
    reason: str | None


def find_critical_batches(optima: Optima, budget: float) -> list[CriticalBatch]:
    """Every series and size at `budget` tokens per parameter where at least two batches were tried."""
    at_budget = optima.points[optima.points["tokens_per_parameter"] == budget]
    out = []
    for key, curve in at_budget.groupby(["series", "num_params"], sort=True, observed=True):
        series, num_params = cast("tuple[str, int]", key)
        if curve["global_batch_tokens"].nunique() < 2:
            continue
        rows = curve.sort_values("global_batch_tokens")
        others = optima.best[
            (optima.best["series"] == series)
            & (optima.best["num_params"] == num_params)
            & (optima.best["tokens_per_parameter"] != budget)
        ]
        out.append(_of_curve(series, int(num_params), budget, rows, others))
    order = sort_series([point.series for point in out])
    return sorted(out, key=lambda point: (order.index(point.series), point.num_params))


def _of_curve(series: str, num_params: int, budget: float, rows: pd.DataFrame, others: pd.DataFrame) -> CriticalBatch:
    batch = rows["global_batch_tokens"].to_numpy()
    # On the seeds that all have: fresh ones of the best alone would compare means with lowest values.
    loss = rows["selection_loss"].to_numpy()
    found = bracket_batches(loss.tolist())
    best, good = found.best, found.largest_good
    at_least, below, paired_seeds = _sure_bounds(batch, rows, best)
    num_tokens = int(rows["num_tokens"].iloc[best])
    factor = _overhead_factor(float(loss[best]), num_tokens, others)
    return CriticalBatch(
        series=series,
        num_params=num_params,
        tokens_per_parameter=budget,
        num_tokens=num_tokens,
        best_loss=float(loss[best]),
        best_batch=int(batch[best]),
        largest_good_batch=int(batch[good]),
        next_batch=None if found.first_risen is None else int(batch[found.first_risen]),
        interpolated=crossing(batch, loss, PLATEAU * loss[best]),
        overhead20=crossing(batch, loss, factor * loss[best]) if factor else None,
        overhead_factor=factor,
        censored=found.censored,
        concerns=tuple(_concerns(rows, best, good)),
        at_least=at_least,
        below=below,
        paired_seeds=paired_seeds,
    )


def _sure_bounds(batch: Array, rows: pd.DataFrame, best: int) -> tuple[int | None, int | None, int]:
    """`at_least`, `below` and `paired_seeds` of `CriticalBatch`.

    Log losses of two batches are compared seed by seed, by Student's t, on seeds that had no part in choosing a
    setting. That a batch is good asks the upper end of its difference to each other batch, so that it holds whichever
    is the best one; that it is bad asks the lower end of its difference to the batch that was best by the seeds that
    chose.
    """
    fresh = [
        {seed: float(np.log(loss)) for seed, loss in losses.items()} if unbiased else {}
        for losses, unbiased in zip(rows["seed_losses"], rows["unbiased"], strict=True)
    ]
    shared = {(a, b): sorted(fresh[a].keys() & fresh[b].keys()) for a, b in combinations(range(len(fresh)), 2)}
    paired = min(map(len, shared.values()))
    if paired < 2:
        return None, None, paired

    def difference(one: int, other: int) -> tuple[float, float]:
        seeds = shared[min(one, other), max(one, other)]
        logs = np.array([fresh[one][seed] - fresh[other][seed] for seed in seeds])
        error = float(logs.std(ddof=1)) / math.sqrt(len(logs))
        reach = t_quantile(len(logs) - 1) * error if error > LEAST_SPREAD else math.inf
        return float(logs.mean()) - reach, float(logs.mean()) + reach

    limit = math.log(PLATEAU)
    bad = next((i for i in range(best + 1, len(fresh)) if difference(i, best)[0] > limit), None)
    good = [
        i
        for i in range(len(fresh) if bad is None else bad)
        if all(difference(i, other)[1] <= limit for other in range(len(fresh)) if other != i)
    ]
    return int(batch[good[-1]]) if good else None, None if bad is None else int(batch[bad]), paired


def crossing(batch: Array, loss: Array, threshold: float) -> float | None:
    """Largest batch at which the curve, straight in log B between points, rises through `threshold`."""
    good = np.flatnonzero(loss <= threshold)
    if not len(good) or good[-1] + 1 >= len(batch):
        return None
    i = int(good[-1])
    share = (threshold - loss[i]) / (loss[i + 1] - loss[i])
    return float(batch[i] * (batch[i + 1] / batch[i]) ** share)


def _overhead_factor(best: float, num_tokens: int, others: pd.DataFrame) -> float | None:
    """What training on D/1.2 tokens would multiply the best loss by; None without a run at other D that shows it."""
    if others.empty:
        return None
    ratio = np.log(others["num_tokens"].to_numpy() / num_tokens)
    nearest = int(np.abs(ratio - np.log(1 / OVERHEAD)).argmin())
    slope = (np.log(others["selection_loss"].to_numpy()[nearest]) - np.log(best)) / ratio[nearest]
    return float(OVERHEAD ** float(-slope)) if slope < 0 else None


def _concerns(rows: pd.DataFrame, best: int, good: int) -> list[str]:
    out = []
    edges = sorted({edge for edges in rows["edges"] for edge in edges})
    if edges:
        out.append(f"best hyper-parameters on the edge of their grid ({', '.join(edges)})")
    if best == 0:
        out.append("best batch is the smallest tested")
    if len(rows) - 1 - best < MIN_BATCHES_ABOVE:
        out.append(f"fewer than {MIN_BATCHES_ABOVE} batches above the best")
    if int(rows["num_steps"].iloc[min(good + 1, len(rows) - 1)]) < MIN_STEPS:
        out.append(f"fewer than {MIN_STEPS} steps at the largest batch that counts")
    if rows["seeds"].max() < 2:
        out.append("one seed")
    return out


DEFINITIONS = {
    "cbs_1pct": "largest tested batch within 1% of the best loss",
    "cbs_1pct_interpolated": "interpolated batch at 1% above the best loss",
    "cbs_overhead20": "batch that costs as much loss as a fifth more tokens would make up for",
}


def value_of(point: CriticalBatch, definition: str) -> float | None:
    """The critical batch under `definition`; None where censored or not to be had."""
    if point.censored:
        return None
    if definition == "cbs_1pct":
        return float(point.largest_good_batch)
    return point.interpolated if definition == "cbs_1pct_interpolated" else point.overhead20


def factor_of(point: CriticalBatch, definition: str) -> float | None:
    """Loss at the critical batch over the best loss."""
    return point.overhead_factor if definition == "cbs_overhead20" else PLATEAU


def fit_laws(
    points: list[CriticalBatch], optima: Optima, delta: float, bootstrap: int, seed: int
) -> list[CriticalBatchLaw]:
    """One law a series and definition.

    The interval is the widest of Student's t, a bootstrap over scales, and, with seeds, their noise.
    """
    laws = []
    against = optima.reason_against("global_batch_tokens", "num_tokens", "loss")
    for series in dict.fromkeys(point.series for point in points):
        if against:
            laws += [CriticalBatchLaw(series, definition, None, against) for definition in DEFINITIONS]
            continue
        mine = [point for point in points if point.series == series]
        for definition in DEFINITIONS:
            have = [(p, v) for p in mine if (v := value_of(p, definition)) is not None]
            if len(have) < MIN_SCALES:
                laws.append(CriticalBatchLaw(series, definition, None, _why_none(mine, len(have), definition)))
                continue
            try:
                fit = fit_critical_batch(
                    [float(p.num_tokens) for p, _ in have],
                    [v for _, v in have],
                    delta=delta,
                    bootstrap=bootstrap,
                    seed=seed,
                    resample_by=[p.num_params for p, _ in have],
                )
            except NotIdentified as error:
                laws.append(CriticalBatchLaw(series, definition, None, str(error)))
                continue
            if definition != "cbs_1pct" and optima.seed_sd and bootstrap:
                fit = _with_noise(fit, [p for p, _ in have], definition, optima, delta, seed)
            laws.append(CriticalBatchLaw(series, definition, fit, None))
    return laws


def _why_none(points: list[CriticalBatch], usable: int, definition: str) -> str:
    reason = f"{usable} of {len(points)} scales give a value, {MIN_SCALES} are needed"
    for side, batches in (("right", "larger"), ("left", "smaller")):
        censored = sum(side in (p.censored or "") for p in points)
        if censored:
            reason += f"; {censored} {'is' if censored == 1 else 'are'} {side}-censored: {batches} batches are needed"
    if definition == "cbs_overhead20" and not any(p.overhead_factor for p in points):
        reason += "; it needs runs at other tokens per parameter at each scale"
    return reason


def _with_noise(fit: Fit, points: list[CriticalBatch], definition: str, optima: Optima, delta: float, seed: int) -> Fit:
    """Redraws every curve with the noise between seeds, finds its crossing again and refits: the wider interval."""
    generator = np.random.default_rng(seed)
    tokens, crossings = [], []
    for p in points:
        rows = optima.points[
            (optima.points["series"] == p.series)
            & (optima.points["num_params"] == p.num_params)
            & (optima.points["tokens_per_parameter"] == p.tokens_per_parameter)
        ].sort_values("global_batch_tokens")
        batch, loss = rows["global_batch_tokens"].to_numpy(), rows["selection_loss"].to_numpy()
        sd = (optima.seed_sd or 0.0) / np.sqrt(rows["selection_seeds"].to_numpy())
        noisy = loss * np.exp(generator.normal(size=(_NOISE_RESAMPLES, len(loss))) * sd)
        factor = factor_of(p, definition) or PLATEAU
        at = [crossing(batch, curve, factor * float(curve.min())) for curve in noisy]
        tokens.append(float(p.num_tokens))
        crossings.append([np.nan if value is None else value for value in at])
    resampled = np.array(crossings).T
    resampled = resampled[np.isfinite(resampled).sum(axis=1) >= MIN_SCALES]
    if len(resampled) < _NOISE_RESAMPLES / 2:
        return fit
    drawn = refit_power_laws(tokens, resampled, delta)
    parameters = {}
    for name, estimate in fit.parameters.items():
        low, high = np.quantile(drawn[name], [0.025, 0.975])
        ci = estimate.ci or (low, high)
        parameters[name] = Estimate(estimate.value, estimate.se, (min(ci[0], float(low)), max(ci[1], float(high))))
    return replace(fit, parameters=parameters, interval=f"{fit.interval}, and the noise between seeds")
