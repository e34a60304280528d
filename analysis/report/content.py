"""The content of report.json: every question's result in plain values, and in words what they allow to be said."""

from __future__ import annotations

import dataclasses
import hashlib
import math
import platform
import subprocess
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from analysis.beside import beside
from analysis.confidence import CONFIDENCE
from analysis.optima import Optima, find_optima, main_budget
from analysis.page.escape import printable
from analysis.peak_memory import with_peak_memory
from analysis.published.page import overlay
from analysis.questions import critical_batch_size, iso_loss
from analysis.questions.options import Options
from analysis.questions.question import Inputs
from analysis.questions.registry import QUESTIONS
from analysis.report import fitted_parts, verdict
from analysis.report.charged_hours import charged_hours
from analysis.report.fitted_parts import LOSS, comparison
from analysis.report.training_curves import training_curves
from analysis.runs import TUNED, Study
from analysis.seeds import SETTING
from analysis.style import styled
from muloco_runner.bracket import PLATEAU

SCHEMA_VERSION = 4


def build_report(study: Study, options: Options) -> dict[str, Any]:
    """Everything on the page, as values that JSON can hold."""
    study, style = styled(study, options.style)
    options = dataclasses.replace(options, style=style)
    optima = find_optima(study)
    budget = main_budget(optima.best, options.budget)
    against = optima.reason_against("flops", "loss", "num_params", "num_tokens")
    at_budget = optima.best[optima.best["tokens_per_parameter"] == budget]
    at_budget = at_budget.sort_values("series", key=lambda s: s.map(study.series.index), kind="stable")
    at_budget = with_peak_memory(at_budget, study)
    baseline = iso_loss.choose_baseline(study.series, options.baseline or style.baseline)
    points = critical_batch_size.find_critical_batches(optima, budget)
    other_laws = beside(
        lambda: (
            fitted_parts.critical_batch_joint(points, optima, options.delta),
            fitted_parts.size_and_data(optima, study.series, options, against),
            fitted_parts.loss_sensitivity(at_budget, study.series, baseline, optima, options),
        )
    )
    fits = critical_batch_size.fit_laws(points, optima, options.delta, options.bootstrap, options.seed)
    laws = fitted_parts.loss_laws(at_budget, study.series, baseline, optima, options)
    compute_ratios, time_ratios = fitted_parts.equal_loss(laws, at_budget, points, fits, optima)
    inputs = Inputs(study, optima, at_budget, budget, baseline, options, laws, fits)
    questions = {question.name: dataclasses.asdict(question.compute(inputs)) for question in QUESTIONS}
    num_workers = fitted_parts.num_workers(at_budget, optima, options, against)
    sensitivity = fitted_parts.critical_batch_sensitivity(points, fits, optima, options)
    provenance = _provenance(study, options)
    joint, size_and_data, loss_sensitivity = other_laws()
    report: dict[str, Any] = {
        "schema_version": SCHEMA_VERSION,
        "title": options.title,
        "settings": {
            "delta": options.delta if math.isfinite(options.delta) else "inf",
            "bootstrap": options.bootstrap,
            "seed": options.seed,
            "confidence": CONFIDENCE,
            "tokens_per_parameter": budget,
            "baseline": baseline,
            "cbs_threshold": PLATEAU,
            "cbs_overhead": critical_batch_size.OVERHEAD,
            "plateau": PLATEAU,
        },
        "series": study.series,
        "style": {
            "algorithms": dict(zip(study.runs["series"], study.runs["algorithm"], strict=True)),
            "colours": style.colours,
        },
        "scales": _scales(at_budget),
        "audit": _audit(study, optima, budget),
        "best": _best_rows(at_budget, baseline, compute_ratios, time_ratios, optima),
        "ranking": _ranking(at_budget, optima),
        "training_curves": training_curves(at_budget, study),
        "loss_vs_batch": _curves(optima, budget),
        "critical_batch": fitted_parts.critical_batch(points, fits, joint, optima),
        "iso_loss": compute_ratios,
        "time_ratio": time_ratios,
        "size_and_data": size_and_data,
        "hyper_parameters": _hyper_parameters(optima, at_budget, budget),
        "num_workers": num_workers,
        "wall_clock": fitted_parts.wall_clock_hours(at_budget, points, study.series, optima, options),
        "goodput": charged_hours(study.source),
        "sensitivity": {"loss": loss_sensitivity, **sensitivity},
        "questions": questions,
        "published": overlay() if options.published else None,
        "provenance": provenance,
    }
    plain: dict[str, Any] = json_values(report)
    return {**plain, "verdict": verdict.statements(plain)}


def _scales(best: pd.DataFrame) -> list[dict[str, Any]]:
    return [
        {
            "num_params": n,
            "num_tokens": group["num_tokens"].median(),
            "flops": group["flops"].median(),
            "hardware_flops": group["hardware_flops"].median(),
        }
        for n, group in best.groupby("num_params", sort=True)
    ]


def _best_rows(
    best: pd.DataFrame, baseline: str, compute_ratios: dict[str, Any], time_ratios: dict[str, Any], optima: Optima
) -> list[dict[str, Any]]:
    """The best of every series and size, compared with the baseline."""
    names = ["series", "num_params", "num_tokens", "flops", *LOSS, "selection_loss", "selection_seeds", "shared_seeds"]
    names += ["unbiased", "global_batch_tokens", "num_steps", *TUNED, "edges", "batch_edge", "settings", "num_workers"]
    names += ["train_seconds", "memory_bytes", "bytes_sent", "pseudogradient_cosine"]
    of_baseline = best[best["series"] == baseline].set_index("num_params")["seed_losses"]
    compute = {(r["series"], r["flops"]): r for r in compute_ratios.get("ratios") or []}
    time = {(r["series"], r["flops"]): r for r in time_ratios.get("ratios") or []}
    runs = optima.settings.groupby("series", observed=True)["runs"].sum()
    out = []
    for row in best.to_dict("records"):
        key = (row["series"], row["flops"])
        reference = None if row["series"] == baseline else of_baseline.get(row["num_params"])
        out.append(
            {
                **{name: row[name] for name in names},
                "stands_on": {"runs": row["runs"], "of": runs[row["series"]]},
                "seed_losses": [{"seed": seed, "loss": loss} for seed, loss in row["seed_losses"].items()],
                "plateau_lr": list(row["plateau_lr"]),
                "weight_decay_timescale": _timescale(row),
                "against_baseline": comparison(row["seed_losses"], reference),
                "compute_ratio": _value_and_interval(compute.get(key)),
                "time_ratio": _value_and_interval(time.get(key)),
            }
        )
    return out


def _timescale(row: Mapping[Any, Any]) -> float | None:
    """tau = B / (lr wd D), a share of the run (arXiv 2505.13738); None without weight decay."""
    decay = float(row["lr"]) * float(row["weight_decay"])
    return float(row["global_batch_tokens"]) / (decay * float(row["num_tokens"])) if decay > 0 else None


def _ranking(best: pd.DataFrame, optima: Optima) -> dict[str, Any]:
    """Series at the largest size from the lowest loss to the highest, and the second's loss over the first's."""
    largest = best[best["num_params"] == best["num_params"].max()]
    rows = largest.sort_values("loss", kind="stable").to_dict("records")
    gap = comparison(rows[1]["seed_losses"], rows[0]["seed_losses"]) if len(rows) > 1 else None
    return {
        "num_params": rows[0]["num_params"],
        "series": [row["series"] for row in rows],
        "gap": gap,
        "stands_on": optima.runs_behind(largest),
    }


def _value_and_interval(ratio: dict[str, Any] | None) -> dict[str, Any] | None:
    return None if ratio is None else {"value": ratio["value"], "ci": ratio["ci"]}


def _curves(optima: Optima, budget: float) -> list[dict[str, Any]]:
    rows = optima.points[optima.points["tokens_per_parameter"] == budget]
    return [
        {
            "series": series,
            "num_params": n,
            "points": [
                {name: p[name] for name in ("global_batch_tokens", *LOSS, "lr", "settings", "diverged", "edges")}
                for p in curve.sort_values("global_batch_tokens").to_dict("records")
            ],
        }
        for (n, series), curve in rows.groupby(["num_params", "series"], sort=True, observed=True)
    ]


def _audit(study: Study, optima: Optima, budget: float) -> dict[str, Any]:
    runs = study.runs
    reasons = Counter(_reason_kind(e.reason) for e in study.excluded)
    edges = optima.best["edges"].map(len) > 0
    return {
        "found": len(runs) + len(study.excluded),
        "used": int((~runs["diverged"]).sum()),
        "diverged": int(runs["diverged"].sum()),
        "excluded": [{"reason": reason, "runs": n} for reason, n in sorted(reasons.items())],
        "excluded_runs": [dataclasses.asdict(e) for e in study.excluded],
        "corpus": study.corpus,
        "baselines": study.baselines,
        "bytes_per_token": study.bytes_per_token,
        "optima": len(optima.best),
        "optima_on_edge": int(edges.sum()),
        "optima_batch_on_edge": int(optima.best["batch_edge"].notna().sum()),
        "optima_biased": int((~optima.best["unbiased"]).sum()),
        "optima_without_shared_seeds": int((~optima.best["shared_seeds"]).sum()),
        "repeated_settings": optima.seed_settings,
        "seed_sd": optima.seed_sd,
        "notes": study.notes,
        "cautions": study.cautions,
        "withheld": study.withheld,
        "unusable": study.unusable,
        "columns": study.columns,
        "unused_columns": study.unused,
        "budgets": _budgets(runs, budget),
        "by_series": [
            {
                "series": series,
                "runs": len(group),
                "sizes": int(group["num_params"].nunique()),
                "batches": int(group["global_batch_tokens"].nunique()),
                "settings": group.groupby(SETTING, observed=True).ngroups,
                "seeds": int(group["seed"].nunique()),
                "diverged": int(group["diverged"].sum()),
                "device_hours": _device_hours(group),
            }
            for series in study.series
            for group in [runs[runs["series"] == series]]
        ],
    }


def _device_hours(runs: pd.DataFrame) -> float | None:
    """Training time of all attempts times devices over all runs of a series; None where a table lacks one of them."""
    hours = runs["train_seconds"] * runs["num_ranks"] / 3600
    return None if hours.isna().any() else float(hours.sum())


def _budgets(runs: pd.DataFrame, budget: float) -> list[dict[str, Any]]:
    return [
        {
            "tokens_per_parameter": value,
            "runs": len(group),
            "sizes": int(group["num_params"].nunique()),
            "compared": value == budget,
        }
        for value, group in runs.groupby("tokens_per_parameter", sort=True)
    ]


def _reason_kind(reason: str) -> str:
    """Reasons without what differs from run to run, for counting."""
    head, _, tail = reason.partition(":")
    return f"{head}: {tail.strip().split(' ')[0]}" if head == "unfinished" else reason if head != "damaged" else head


def _hyper_parameters(optima: Optima, at_budget: pd.DataFrame, budget: float) -> dict[str, Any]:
    """Loss against learning rate at each series' and size's best batch; at the largest size, over batch and rate."""
    settings = optima.settings[optima.settings["tokens_per_parameter"] == budget]
    # The best of the other hyper-parameters, by the losses that settings are compared by.
    keys = ["series", "num_params", "global_batch_tokens", "lr"]
    chosen = settings.loc[settings.groupby(keys, observed=True, dropna=False)["selection_loss"].idxmin()].sort_values(
        keys
    )
    groups = dict(list(chosen.groupby(["series", "num_params"], observed=True)))
    largest = int(at_budget["num_params"].max())
    curves, maps = [], []
    for row in at_budget.to_dict("records"):
        cells = groups[row["series"], row["num_params"]]
        cells = cells[cells["lr"].notna()]
        by_lr = cells[cells["global_batch_tokens"] == row["global_batch_tokens"]]
        curves.append(
            {
                "series": row["series"],
                "num_params": row["num_params"],
                "global_batch_tokens": row["global_batch_tokens"],
                "best_lr": row["lr"],
                "plateau_lr": list(row["plateau_lr"]),
                "edges": row["edges"],
                "num_lrs": len(by_lr),
                "points": by_lr[["lr", *LOSS]].to_dict("records"),
            }
        )
        if row["num_params"] == largest:
            relative = cells["selection_loss"] / cells["selection_loss"].min() - 1
            columns = ["global_batch_tokens", "lr", *LOSS, "relative"]
            values = cells.assign(relative=relative)[columns].to_dict("records")
            maps.append({"series": row["series"], "num_params": largest, "cells": values})
    return {"curves": curves, "maps": maps}


def _provenance(study: Study, options: Options) -> dict[str, Any]:
    import matplotlib
    import scipy

    return {
        "source": study.source,
        "corpus": study.corpus,
        "data_hash": _data_hash(study),
        "command": options.command,
        "commit": _commit(),
        "seed": options.seed,
        "trained_with": study.versions,
        "analysed_with": {
            "python": platform.python_version(),
            "numpy": np.__version__,
            "scipy": scipy.__version__,
            "pandas": pd.__version__,
            "matplotlib": matplotlib.__version__,
        },
    }


def _data_hash(study: Study) -> str:
    """SHA-256 over the runs that are used: who they are, where they stand, what they reached."""
    runs = study.runs[["run_id", "series", "num_params", "num_tokens", "global_batch_tokens", "seed", "loss"]]
    return hashlib.sha256(pd.util.hash_pandas_object(runs, index=False).to_numpy().tobytes()).hexdigest()


def _commit() -> str | None:
    """Git commit of this program's source tree; None where it was installed without one."""
    folder = Path(__file__).resolve().parent
    try:
        done = subprocess.run(
            ["git", "-C", str(folder), "rev-parse", "--short=12", "HEAD"],
            capture_output=True, text=True, timeout=5, check=False,
        )  # fmt: skip
    except (OSError, subprocess.TimeoutExpired):
        return None
    return done.stdout.strip() or None


def json_values(value: Any) -> Any:
    """Values that JSON can hold: numpy scalars become Python's, what is not finite becomes null, text is printable."""
    if isinstance(value, dict):
        return {printable(str(k)): json_values(v) for k, v in value.items()}
    if isinstance(value, (list, tuple)):
        return [json_values(v) for v in value]
    if isinstance(value, (bool, np.bool_)):
        return bool(value)
    if isinstance(value, (int, np.integer)):
        return int(value)
    if isinstance(value, (float, np.floating)):
        return float(value) if math.isfinite(value) else None
    return printable(value) if isinstance(value, str) else value
