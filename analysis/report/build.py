"""The content of report.json: every question's result in plain values, and in words what they allow to be said."""

from __future__ import annotations

import dataclasses
import math
import platform
import subprocess
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from analysis import critical_batch_size, iso_loss
from analysis.fit import CONFIDENCE, CannotSay
from analysis.optima import Optima, find_optima, main_budget
from analysis.records import TUNED, Study
from analysis.report import verdict

SCHEMA_VERSION = 1


@dataclass(frozen=True)
class Options:
    """What a report was asked for."""

    delta: float = 1e-3
    bootstrap: int = 1000
    seed: int = 0
    title: str = "Scaling-law report"
    command: str = ""


def build_report(study: Study, options: Options) -> dict[str, Any]:
    """Everything on the page, as values that JSON can hold."""
    optima = find_optima(study)
    budget = main_budget(optima.best)
    at_budget = optima.best[optima.best["tokens_per_parameter"] == budget]
    baseline = iso_loss.choose_baseline(study.series)
    points = critical_batch_size.find_critical_batches(optima, budget)
    laws = critical_batch_size.fit_laws(points, optima, options.delta, options.bootstrap, options.seed)
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
            "cbs_threshold": critical_batch_size.THRESHOLD,
        },
        "series": study.series,
        "scales": _scales(at_budget),
        "audit": _audit(study, optima),
        "best": [_best_row(row) for row in at_budget.to_dict("records")],
        "loss_vs_batch": _curves(optima, budget),
        "critical_batch": {
            "definitions": critical_batch_size.DEFINITIONS,
            "points": [dataclasses.asdict(point) for point in points],
            "laws": [
                {
                    "series": law.series,
                    "definition": law.definition,
                    "fit": law.fit.to_dict() if law.fit else None,
                    "reason": law.reason,
                }
                for law in laws
            ],
        },
        "iso_loss": _iso_loss(at_budget, study.series, baseline, options),
        "hyper_parameters": _hyper_parameters(study, optima, budget),
        "num_workers": _num_workers(at_budget),
        "provenance": _provenance(study, options),
    }
    report["verdict"] = verdict.statements(report)
    plain: dict[str, Any] = _plain(report)
    return plain


def _scales(best: pd.DataFrame) -> list[dict[str, Any]]:
    return [
        {
            "num_params": n,
            "num_tokens": group["num_tokens"].median(),
            "flops": group["flops"].median(),
        }
        for n, group in best.groupby("num_params", sort=True)
    ]


def _best_row(row: dict[Any, Any]) -> dict[str, Any]:
    keys = ["series", "num_params", "num_tokens", "flops", "loss", "global_batch_tokens", "num_steps", "seeds"]
    return {
        **{key: row[key] for key in keys},
        **{name: row[name] for name in TUNED},
        "edges": row["edges"],
        "batch_edge": row["batch_edge"],
        "plateau_lr": list(row["plateau_lr"]),
        "settings": row["settings"],
        "train_seconds": row["train_seconds"],
        "bytes_sent": row["bytes_sent"],
        "pseudogradient_cosine": row["pseudogradient_cosine"],
        "num_workers": row["num_workers"],
    }


def _curves(optima: Optima, budget: float) -> list[dict[str, Any]]:
    rows = optima.points[optima.points["tokens_per_parameter"] == budget]
    return [
        {
            "series": series,
            "num_params": n,
            "points": [
                {
                    "global_batch_tokens": p["global_batch_tokens"],
                    "loss": p["loss"],
                    "lr": p["lr"],
                    "settings": p["settings"],
                    "seeds": p["seeds"],
                    "diverged": p["diverged"],
                    "edges": p["edges"],
                }
                for p in curve.sort_values("global_batch_tokens").to_dict("records")
            ],
        }
        for (n, series), curve in rows.groupby(["num_params", "series"], sort=True, observed=True)
    ]


def _audit(study: Study, optima: Optima) -> dict[str, Any]:
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
        "repeated_settings": optima.seed_settings,
        "seed_sd": optima.seed_sd,
        "notes": study.notes,
        "by_series": [
            {
                "series": series,
                "runs": len(group),
                "sizes": int(group["num_params"].nunique()),
                "batches": int(group["global_batch_tokens"].nunique()),
                "settings": int(group["hyper_parameters"].nunique()),
                "seeds": int(group["seed"].nunique()),
                "diverged": int(group["diverged"].sum()),
            }
            for series in study.series
            for group in [runs[runs["series"] == series]]
        ],
    }


def _reason_kind(reason: str) -> str:
    """Reasons without what differs from run to run, for counting."""
    head, _, tail = reason.partition(":")
    return f"{head}: {tail.strip().split(' ')[0]}" if head == "unfinished" else reason if head != "damaged" else head


def _iso_loss(best: pd.DataFrame, series: list[str], baseline: str, options: Options) -> dict[str, Any]:
    try:
        result = iso_loss.compute_iso_loss(best, series, baseline, options.delta, options.bootstrap, options.seed)
    except CannotSay as error:
        return {"reason": str(error)}
    rows = best[best["series"].isin(result.series)]
    floor = result.fit.value("E")
    return {
        "reason": None,
        "baseline": baseline,
        "fit": result.fit.to_dict(),
        "scales": int(rows["num_params"].nunique()),
        "trusted_scales": iso_loss.TRUSTED_SCALES,
        "points": [
            {
                "series": row["series"],
                "num_params": row["num_params"],
                "flops": row["flops"],
                "loss": row["loss"],
                "reducible": row["loss"] - floor,
                "residual": residual,
            }
            for row, residual in zip(rows.to_dict("records"), result.fit.residuals, strict=True)
        ],
        "ratios": [dataclasses.asdict(r) for r in result.ratios],
        "curves": {name: [dataclasses.asdict(r) for r in curve] for name, curve in result.curves.items()},
        "left_out": [{**dataclasses.asdict(item), "relative_error": item.relative_error} for item in result.left_out],
        "left_out_reason": result.left_out_reason,
        "refused": result.refused,
    }


def _hyper_parameters(study: Study, optima: Optima, budget: float) -> list[dict[str, Any]]:
    """Loss against learning rate at each series' and size's best batch."""
    out = []
    finished = study.runs[~study.runs["diverged"]]
    for row in optima.best[optima.best["tokens_per_parameter"] == budget].to_dict("records"):
        here = finished[
            (finished["series"] == row["series"])
            & (finished["num_params"] == row["num_params"])
            & (finished["tokens_per_parameter"] == budget)
            & (finished["global_batch_tokens"] == row["global_batch_tokens"])
        ]
        by_lr = here.groupby("lr")["loss"].min()
        out.append(
            {
                "series": row["series"],
                "num_params": row["num_params"],
                "global_batch_tokens": row["global_batch_tokens"],
                "best_lr": row["lr"],
                "plateau_lr": list(row["plateau_lr"]),
                "edges": row["edges"],
                "num_lrs": len(by_lr),
                "points": [{"lr": lr, "loss": loss} for lr, loss in by_lr.items()],
            }
        )
    return out


def _num_workers(best: pd.DataFrame) -> list[dict[str, Any]]:
    """Loss against K relative to the data-parallel run with the same inner optimizer, where both exist."""
    pairs = {"DiLoCo": "DDP-AdamW", "MuLoCo": "DDP-Muon"}
    out = []
    for row in best.to_dict("records"):
        partner = pairs.get(str(row["algorithm"]))
        reference = best[(best["series"] == partner) & (best["num_params"] == row["num_params"])]
        if partner is None or reference.empty:
            continue
        against = float(reference["loss"].iloc[0])
        out.append(
            {
                "series": row["series"],
                "algorithm": row["algorithm"],
                "baseline": partner,
                "num_params": row["num_params"],
                "num_workers": row["num_workers"],
                "loss": row["loss"],
                "baseline_loss": against,
                "relative": row["loss"] / against - 1,
                "pseudogradient_cosine": row["pseudogradient_cosine"],
            }
        )
    return out


def _provenance(study: Study, options: Options) -> dict[str, Any]:
    import matplotlib
    import scipy

    return {
        "source": study.source,
        "corpus": study.corpus,
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


def _commit() -> str | None:
    """Git commit of this program's source tree; None where it was installed without one."""
    here = Path(__file__).resolve().parent
    try:
        done = subprocess.run(
            ["git", "-C", str(here), "rev-parse", "--short=12", "HEAD"],
            capture_output=True, text=True, timeout=5, check=False,
        )  # fmt: skip
    except (OSError, subprocess.TimeoutExpired):
        return None
    return done.stdout.strip() or None


def _plain(value: Any) -> Any:
    """Values that JSON can hold: numpy scalars become Python's, what is not finite becomes null."""
    if isinstance(value, dict):
        return {str(k): _plain(v) for k, v in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(v) for v in value]
    if isinstance(value, (bool, np.bool_)):
        return bool(value)
    if isinstance(value, (int, np.integer)):
        return int(value)
    if isinstance(value, (float, np.floating)):
        return float(value) if math.isfinite(value) else None
    return value
