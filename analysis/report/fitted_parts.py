"""The parts of report.json that fit laws: critical batch, equal loss, size and data, wall clock, sensitivity."""

from __future__ import annotations

import dataclasses
import math
from typing import Any

import numpy as np
import pandas as pd

from analysis.laws.fit import NotIdentified
from analysis.laws.power_law import fit_power_product
from analysis.optima import Optima
from analysis.questions import critical_batch_size, iso_loss, wall_clock
from analysis.questions.critical_batch_joint import fit_joint, from_the_best_batch
from analysis.questions.critical_batch_size import CriticalBatch, CriticalBatchLaw, value_of
from analysis.questions.isoflop import Budget, find_budgets, fit_size_and_data
from analysis.questions.options import Options
from analysis.questions.sensitivity import loss_variants
from analysis.questions.time_ratio import compute_time_ratios, shared_definition
from analysis.seeds import compare_seeds
from analysis.style import partner_of

LOSS = ("loss", "loss_se", "seeds")
"""A mean loss, its standard error and the number of seeds behind both."""


def comparison(losses: dict[int, float], reference: dict[int, float] | None) -> dict[str, Any] | None:
    """A series' losses by seed against another's; None without another."""
    return None if reference is None else dataclasses.asdict(compare_seeds(losses, reference))


def critical_batch_joint(points: list[CriticalBatch], optima: Optima, delta: float) -> list[dict[str, Any]]:
    """The joint model of each series that has `points`, or why not."""
    joint: list[dict[str, Any]] = []
    against = optima.reason_against("global_batch_tokens", "num_tokens", "num_params", "loss")
    for series in dict.fromkeys(point.series for point in points):
        if against:
            joint.append({"series": series, "law": None, "reason": against, "stands_on": None})
            continue
        try:
            law = dataclasses.asdict(fit_joint(optima.points, series, delta))
        except NotIdentified as error:
            joint.append({"series": series, "law": None, "reason": str(error), "stands_on": None})
        else:
            behind = optima.runs_behind(from_the_best_batch(optima.points[optima.points["series"] == series]))
            joint.append({"series": series, "law": law, "reason": None, "stands_on": behind})
    return joint


def critical_batch(
    points: list[CriticalBatch], laws: list[CriticalBatchLaw], joint: list[dict[str, Any]], optima: Optima
) -> dict[str, Any]:
    """Points and laws under every definition, and the joint models; no points from unusable columns."""
    no_points = optima.reason_against("global_batch_tokens", "num_tokens", "loss")
    return {
        "definitions": critical_batch_size.DEFINITIONS,
        "points": [] if no_points else [dataclasses.asdict(point) for point in points],
        "reason": no_points or (None if points else "no size was trained with two batches"),
        "laws": [
            {
                "series": law.series,
                "definition": law.definition,
                "fit": law.fit.to_dict() if law.fit else None,
                "reason": law.reason,
                "stands_on": optima.runs_behind(_fitted_curves(law, points, optima)) if law.fit else None,
            }
            for law in laws
        ],
        "joint": joint,
    }


def _fitted_curves(law: CriticalBatchLaw, points: list[CriticalBatch], optima: Optima) -> pd.DataFrame:
    """The losses against batch that a law's critical batches were read from."""
    mine = [p for p in points if p.series == law.series and value_of(p, law.definition) is not None]
    return optima.points[
        (optima.points["series"] == law.series)
        & optima.points["num_params"].isin([p.num_params for p in mine])
        & optima.points["tokens_per_parameter"].isin([p.tokens_per_parameter for p in mine])
    ]


def loss_laws(
    best: pd.DataFrame, series: list[str], baseline: str, optima: Optima, options: Options
) -> iso_loss.IsoLoss | str:
    """Laws of loss against compute, or why there are none."""
    if against := optima.reason_against("flops", "loss", "num_params", "num_tokens"):
        return against
    try:
        return iso_loss.compute_iso_loss(best, series, baseline, options.delta, options.bootstrap, options.seed)
    except NotIdentified as error:
        return str(error)


def equal_loss(
    result: iso_loss.IsoLoss | str,
    best: pd.DataFrame,
    points: list[CriticalBatch],
    laws: list[CriticalBatchLaw],
    optima: Optima,
) -> tuple[dict[str, Any], dict[str, Any]]:
    """Compute ratios with the laws behind them, and time ratios; neither where there are no laws."""
    if isinstance(result, str):
        return {"reason": result}, {"reason": result}
    baseline = result.baseline
    rows = best[best["series"].isin(result.series)]
    floor = result.fit.value("E")
    compute = {
        "reason": None,
        "baseline": baseline,
        "stands_on": optima.runs_behind(rows),
        "fit": result.fit.to_dict(),
        "scales": int(rows["num_params"].nunique()),
        "trusted_scales": iso_loss.TRUSTED_SCALES,
        "points": [
            {
                "series": row["series"],
                "num_params": row["num_params"],
                "flops": row["flops"],
                "loss": row["loss"],
                "loss_se": row["loss_se"],
                "reducible": row["loss"] - floor,
                "residual": residual,
            }
            for row, residual in zip(rows.to_dict("records"), result.fit.residuals, strict=True)
        ],
        "ratios": [dataclasses.asdict(r) for r in result.ratios],
        "curves": {name: [dataclasses.asdict(r) for r in curve] for name, curve in result.curves.items()},
        "holdouts": [{**dataclasses.asdict(item), "relative_error": item.relative_error} for item in result.holdouts],
        "holdout_reason": result.holdout_reason,
        "refused": result.refused,
    }
    return compute, _time_ratios(result, rows, points, laws, baseline, optima)


def _time_ratios(
    result: iso_loss.IsoLoss,
    rows: pd.DataFrame,
    points: list[CriticalBatch],
    laws: list[CriticalBatchLaw],
    baseline: str,
    optima: Optima,
) -> dict[str, Any]:
    definition, fits = shared_definition(laws, baseline)
    if definition is None:
        return {"reason": f"the critical batch of {baseline} has a law under no definition that another series shares"}
    computes = {
        name: sorted(rows.loc[rows["series"] == name, "flops"].tolist()) for name in result.series if name != baseline
    }
    (budget,) = rows["tokens_per_parameter"].unique()
    ratios = compute_time_ratios(
        result.fit, fits, definition, baseline, computes, iso_loss.ratio_grid(result.fit), float(budget), result.scales
    )
    curves = [
        _fitted_curves(law, points, optima)
        for law in laws
        if law.definition == definition and law.fit and law.series in result.series
    ]
    return {
        "reason": None,
        "definition": ratios.definition,
        "stands_on": optima.runs_behind(pd.concat([rows[rows["series"].isin(fits)], *curves])),
        "ratios": [dataclasses.asdict(r) for r in ratios.ratios],
        "curves": {name: [dataclasses.asdict(r) for r in curve] for name, curve in ratios.curves.items()},
        "refused": ratios.refused,
    }


def size_and_data(optima: Optima, series: list[str], options: Options, against: str | None = None) -> dict[str, Any]:
    """L(N, D) of each series, or why not, and parabolas at equal compute."""
    best = optima.best
    if against:
        laws = [
            {"series": name, "fit": None, "reason": against, "allocation": None, "stands_on": None} for name in series
        ]
        return {"laws": laws, "budgets": []}
    return {
        "laws": [
            {
                "series": law.series,
                "fit": law.fit.to_dict() if law.fit else None,
                "reason": law.reason,
                "allocation": law.allocation,
                "stands_on": optima.runs_behind(best[best["series"] == law.series]) if law.fit else None,
            }
            for law in fit_size_and_data(best, series, options.delta, options.bootstrap, options.seed)
        ],
        "budgets": [_budget(budget, optima) for budget in find_budgets(best, series)],
    }


def _budget(budget: Budget, optima: Optima) -> dict[str, Any]:
    """A budget with the standard errors of its losses, and the runs behind them."""
    rows = optima.best[optima.best["series"] == budget.series].set_index(["num_params", "loss"], drop=False)
    rows = rows.loc[[*budget.points]]
    return {
        **dataclasses.asdict(budget),
        "loss_se": rows["loss_se"].tolist(),
        "stands_on": optima.runs_behind(rows.reset_index(drop=True)),
    }


def num_workers(best: pd.DataFrame, optima: Optima, options: Options, no_law: str | None = None) -> dict[str, Any]:
    """Loss against K over that of each series' partner (`partner_of`), and the law L = A N^a K^b."""
    rows = []
    for row in best.to_dict("records"):
        same = best[best["algorithm"] == row["algorithm"]]
        workers = dict(zip(same["series"], same["num_workers"], strict=True))
        partner = partner_of(options.style, row["series"], row["algorithm"], workers)
        reference = best[(best["series"] == partner) & (best["num_params"] == row["num_params"])]
        if partner in (None, row["series"]) or reference.empty:
            continue
        (other,) = reference.to_dict("records")
        rows.append(
            {
                **{name: row[name] for name in ("series", "algorithm", "num_params", "num_workers", *LOSS)},
                "baseline": partner,
                "baseline_loss": other["loss"],
                "against_baseline": comparison(row["seed_losses"], other["seed_losses"]),
                "pseudogradient_cosine": row["pseudogradient_cosine"],
            }
        )
    laws = []
    for algorithm in sorted({row["algorithm"] for row in rows}):
        mine = [row for row in rows if row["algorithm"] == algorithm]
        inputs = {name: [float(row[name]) for row in mine] for name in ("num_params", "num_workers")}
        if no_law:
            laws.append({"algorithm": algorithm, "fit": None, "reason": no_law, "stands_on": None})
            continue
        try:
            fit = fit_power_product(
                inputs,
                [row["loss"] for row in mine],
                name="loss",
                delta=options.delta,
                bootstrap=options.bootstrap,
                seed=options.seed,
            )
        except NotIdentified as error:
            laws.append({"algorithm": algorithm, "fit": None, "reason": str(error), "stands_on": None})
        else:
            keys = {(row["series"], row["num_params"]) for row in mine}
            fitted = [key in keys for key in zip(best["series"], best["num_params"], strict=True)]
            behind = optima.runs_behind(best[fitted])
            laws.append({"algorithm": algorithm, "fit": fit.to_dict(), "reason": None, "stands_on": behind})
    return {"points": rows, "laws": laws}


def wall_clock_hours(
    best: pd.DataFrame, points: list[CriticalBatch], series: list[str], optima: Optima, options: Options
) -> dict[str, Any]:
    """Hours at the largest size, each series at its critical batch (1% rule, the largest tested batch within it)."""
    assume = options.machine
    largest = int(best["num_params"].max())
    critical = {(p.series, p.num_params): p.largest_good_batch for p in points}
    rows, curves = [], {}
    at_largest = {row["series"]: row for row in best[best["num_params"] == largest].to_dict("records")}
    for name in [name for name in series if name in at_largest]:
        row = at_largest[name]
        run = _training(row, critical.get((name, largest), int(row["global_batch_tokens"])), assume)
        measured = _measured(row, assume)
        for gigabits in options.bandwidths:
            bandwidth = gigabits * wall_clock.GIGABIT
            rows.append(
                {
                    "series": name,
                    "bandwidth_gbits": gigabits,
                    "global_batch_tokens": run.global_batch_tokens,
                    "num_steps": run.num_steps,
                    "num_exchanges": run.num_exchanges,
                    "compression": run.bits_divisor,
                    "idealised_hours": wall_clock.idealised_seconds(run, bandwidth, assume) / 3600,
                    "charles_hours": wall_clock.charles_seconds(run, bandwidth, assume) / 3600,
                    "measured_hours": _measured_hours(row, assume, bandwidth, measured),
                }
            )
        grid = np.geomspace(min(options.bandwidths), max(options.bandwidths), 61)
        curves[name] = [
            {
                "bandwidth_gbits": float(g),
                "idealised_hours": wall_clock.idealised_seconds(run, g * wall_clock.GIGABIT, assume) / 3600,
            }
            for g in grid
        ]
    if optima.reason_against("num_params", "num_tokens", "global_batch_tokens"):
        rows, curves = [], {}
    return {
        "num_params": largest,
        "assumptions": dataclasses.asdict(assume),
        "rows": rows,
        "curves": curves,
        "measured": any(row["measured_hours"] is not None for row in rows),
    }


def _training(row: Any, batch: int, assume: wall_clock.Assumptions) -> wall_clock.Training:
    bits, interval = float(row["bits_per_value"]), row["sync_interval"]
    return wall_clock.Training(
        num_params=int(row["num_params"]),
        num_tokens=float(row["num_tokens"]),
        global_batch_tokens=float(batch),
        num_workers=int(row["num_workers"]),
        sync_interval=1 if interval is None or math.isnan(interval) else int(interval),
        compression=1.0 if math.isnan(bits) else assume.bits_per_value / bits,
        num_fragments=int(row["num_fragments"]),
        delay_steps=int(row["delay_steps"]),
    )


def _measured(row: Any, assume: wall_clock.Assumptions) -> wall_clock.Measured | None:
    """Seconds and bytes a step of the best run itself; None where its record lacks one of them."""
    seconds, sent, steps = (float(row[name]) for name in ("train_seconds", "bytes_sent", "num_steps"))
    if not (seconds > 0 and sent > 0):
        return None
    waited = float(row["wait_seconds"])
    computed = seconds if math.isnan(waited) else max(0.0, seconds - waited)
    return wall_clock.Measured(computed / steps, _bytes_per_step(row, assume))


def _bytes_per_step(row: Any, assume: wall_clock.Assumptions) -> float:
    """Bytes across the slow link at each step: what several workers send, or what the replicas of one exchange.

    `bytes_sent` has a worker's pseudogradients. One worker has nobody to send them to, but replicas that average
    float32 gradients at every step. Where they share Muon's work, its matrices' go one way alone, which is half of it,
    and the results come back.
    """
    sent = float(row["bytes_sent"]) / float(row["num_steps"])
    if row["num_workers"] > 1:
        return sent
    interval = row["sync_interval"]
    gradients = sent if interval is None or math.isnan(interval) else 4.0 * float(row["num_params"])
    return gradients + (assume.bits_per_value / 8 - 4.0) * float(row["gathered_values"]) / 2


def _measured_hours(
    row: Any, assume: wall_clock.Assumptions, bandwidth: float, measured: wall_clock.Measured | None
) -> float | None:
    if measured is None:
        return None
    return (
        wall_clock.measured_seconds(_training(row, int(row["global_batch_tokens"]), assume), bandwidth, measured) / 3600
    )


def loss_sensitivity(
    best: pd.DataFrame, series: list[str], baseline: str, optima: Optima, options: Options
) -> list[dict[str, Any]]:
    """Laws of loss against compute under other choices; none where no law may rest on the columns."""
    if optima.reason_against("flops", "loss", "num_params", "num_tokens"):
        return []
    runs = best.set_index(["series", "num_params"])["runs"]
    of = optima.settings.groupby("series", observed=True)["runs"].sum()
    out = []
    for variant in loss_variants(best, series, baseline, options.delta):
        entry = dataclasses.asdict(variant)
        behind = [runs[variant.series, size] for size in entry.pop("sizes")]
        entry["stands_on"] = {"runs": sum(behind), "of": of[variant.series]} if behind else None
        out.append(entry)
    return out


def critical_batch_sensitivity(
    points: list[CriticalBatch], laws: list[CriticalBatchLaw], optima: Optima, options: Options
) -> dict[str, Any]:
    """Exponents of the critical batch by another loss function."""
    if optima.reason_against("flops", "loss", "num_params", "num_tokens"):
        return {"critical_batch": [], "other_delta": "inf"}
    other = math.inf if math.isfinite(options.delta) else 1e-3
    refitted = critical_batch_size.fit_laws(points, optima, other, 0, options.seed)
    return {
        "critical_batch": [
            {
                "series": law.series,
                "definition": law.definition,
                "exponent": law.fit.value("alpha"),
                "ci": law.fit.parameters["alpha"].ci,
                "other_exponent": again.fit.value("alpha"),
                "stands_on": optima.runs_behind(_fitted_curves(law, points, optima)),
            }
            for law, again in zip(laws, refitted, strict=True)
            if law.fit and again.fit
        ],
        "other_delta": other if math.isfinite(other) else "inf",
    }
