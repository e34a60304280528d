"""The content of report.json: every part's and question's result in plain values, and in words what they allow to be
said.
"""

from __future__ import annotations

import dataclasses
import hashlib
import math
import platform
import subprocess
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pandas as pd

from analysis.beside import beside
from analysis.confidence import CONFIDENCE
from analysis.laws.fit import NotIdentified
from analysis.optima import Optima, find_optima, main_budget
from analysis.page.escape import printable
from analysis.published.page import Overlay, overlay
from analysis.questions import critical_batch_size
from analysis.questions.baseline import choose_baseline
from analysis.questions.critical_batch_size import CriticalBatchLaw
from analysis.questions.iso_loss import IsoLoss, compute_iso_loss, ratio_grid
from analysis.questions.options import Options
from analysis.questions.question import Inputs
from analysis.questions.registry import PARTS, QUESTIONS
from analysis.questions.time_ratio import TimeRatios, compute_time_ratios, shared_definition
from analysis.report import verdict
from analysis.report.peak_memory import with_peak_memory
from analysis.report.verdict import Verdict
from analysis.runs import Study
from analysis.style import styled
from muloco_runner.record import PLATEAU

SCHEMA_VERSION = 5
_SLOW = ("critical_batch", "size_and_data")
"""Parts that a second process computes while the others are."""


@dataclass(frozen=True)
class Settings:
    """Choices of the analysis."""

    delta: float | Literal["inf"]
    bootstrap: int
    seed: int
    confidence: float
    tokens_per_parameter: float
    """Budget at which laws over compute and critical batches stand."""
    baseline: str
    """Series that ratios are relative to."""
    baseline_rule: str
    """Why it is this one."""
    cbs_threshold: float
    """Loss at the critical batch over the best loss, 1% rule."""
    cbs_overhead: float
    """Tokens over tokens, 20% overhead rule."""
    plateau: float
    """Loss over the best loss up to which settings count as good."""


@dataclass(frozen=True)
class SeriesStyle:
    """What figures know of series beside their names."""

    algorithms: dict[str, str]
    """Of each series."""
    colours: dict[str, str]
    """Of series or algorithms, as --style has them."""


@dataclass(frozen=True)
class Scale:
    """A size at the budget that is compared."""

    num_params: int
    num_tokens: float
    flops: float
    hardware_flops: float | None
    """That devices compute: 6 (N - V D) and attention a token; null where a table does not say."""


@dataclass(frozen=True)
class Provenance:
    """Where the numbers come from."""

    source: str
    corpus: str
    data_hash: str
    """SHA-256 of the runs used: identity, place and loss."""
    command: str
    commit: str | None
    """Of this program."""
    seed: int
    """Of the resampling."""
    trained_with: dict[str, list[str]]
    analysed_with: dict[str, str]


HEAD: dict[str, Any] = {
    "schema_version": Literal[5],
    "title": str,
    "settings": Settings,
    "series": list[str],
    "style": SeriesStyle,
    "scales": list[Scale],
}
"""Keys of report.json before those of `PARTS`, and their types."""
TAIL: dict[str, Any] = {"published": Overlay | None, "provenance": Provenance, "verdict": Verdict}
"""Those after `questions`."""


def build_report(study: Study, options: Options) -> dict[str, Any]:
    """Everything on the page, as values that JSON can hold."""
    study, style = styled(study, options.style)
    options = dataclasses.replace(options, style=style)
    inputs = _inputs(study, options)
    slow = beside(lambda: {part.name: part.compute(inputs) for part in PARTS if part.name in _SLOW})
    found = {part.name: part.compute(inputs) for part in PARTS if part.name not in _SLOW}
    questions = {question.name: question.compute(inputs) for question in QUESTIONS}
    found |= slow()
    report: dict[str, Any] = {
        "schema_version": SCHEMA_VERSION,
        "title": options.title,
        "settings": _settings(inputs),
        "series": study.series,
        "style": SeriesStyle(dict(zip(study.runs["series"], study.runs["algorithm"], strict=True)), style.colours),
        "scales": _scales(inputs.best),
        **{part.name: found[part.name] for part in PARTS},
        "questions": questions,
        "published": overlay() if options.published else None,
        "provenance": _provenance(study, options),
    }
    plain: dict[str, Any] = json_values(report)
    return {**plain, "verdict": json_values(verdict.statements(plain))}


def _inputs(study: Study, options: Options) -> Inputs:
    """What parts and questions share: the best of every series and size, and laws that several of them rest on."""
    optima = find_optima(study)
    budget = main_budget(optima.best, options.budget)
    best = optima.best[optima.best["tokens_per_parameter"] == budget]
    best = best.sort_values("series", key=lambda s: s.map(study.series.index), kind="stable")
    best = with_peak_memory(best, study)
    baseline = choose_baseline(study, set(best["series"]), options.baseline, options.style)
    points = critical_batch_size.find_critical_batches(optima, budget)
    fits = beside(lambda: critical_batch_size.fit_laws(points, optima, options.delta, options.bootstrap, options.seed))
    laws = _loss_laws(best, study.series, baseline.series, optima, options)
    batch_laws = fits()
    times = _time_ratios(laws, best, batch_laws)
    return Inputs(study, optima, best, budget, baseline.series, baseline.rule, options, laws, points, batch_laws, times)


def _loss_laws(best: pd.DataFrame, series: list[str], baseline: str, optima: Optima, options: Options) -> IsoLoss | str:
    """Laws of loss against compute, or why there are none."""
    if against := optima.reason_against("flops", "loss", "num_params", "num_tokens"):
        return against
    try:
        return compute_iso_loss(best, series, baseline, options.delta, options.bootstrap, options.seed)
    except NotIdentified as error:
        return str(error)


def _time_ratios(laws: IsoLoss | str, best: pd.DataFrame, batch_laws: list[CriticalBatchLaw]) -> TimeRatios | str:
    """Time at the critical batch at each series' own compute, or why there are no such ratios."""
    if isinstance(laws, str):
        return laws
    definition, fits = shared_definition(batch_laws, laws.baseline)
    if definition is None:
        return f"the critical batch of {laws.baseline} has a law under no definition that another series shares"
    rows = best[best["series"].isin(laws.series)]
    computes = {
        name: sorted(rows.loc[rows["series"] == name, "flops"].tolist())
        for name in laws.series
        if name != laws.baseline
    }
    (budget,) = rows["tokens_per_parameter"].unique()
    grid = ratio_grid(laws.fit)
    return compute_time_ratios(laws.fit, fits, definition, laws.baseline, computes, grid, float(budget), laws.scales)


def _settings(inputs: Inputs) -> Settings:
    options = inputs.options
    return Settings(
        delta=options.delta if math.isfinite(options.delta) else "inf",
        bootstrap=options.bootstrap,
        seed=options.seed,
        confidence=CONFIDENCE,
        tokens_per_parameter=inputs.budget,
        baseline=inputs.baseline,
        baseline_rule=inputs.baseline_rule,
        cbs_threshold=PLATEAU,
        cbs_overhead=critical_batch_size.OVERHEAD,
        plateau=PLATEAU,
    )


def _scales(best: pd.DataFrame) -> list[Scale]:
    medians = best.groupby("num_params", sort=True)[["num_tokens", "flops", "hardware_flops"]].median()
    return [Scale(*row) for row in medians.itertuples(name=None)]


def _provenance(study: Study, options: Options) -> Provenance:
    import matplotlib
    import scipy

    return Provenance(
        source=study.source,
        corpus=study.corpus,
        data_hash=_data_hash(study),
        command=options.command,
        commit=_commit(),
        seed=options.seed,
        trained_with=study.versions,
        analysed_with={
            "python": platform.python_version(),
            "numpy": np.__version__,
            "scipy": scipy.__version__,
            "pandas": pd.__version__,
            "matplotlib": matplotlib.__version__,
        },
    )


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
    """Values that JSON can hold: dataclasses become objects, numpy scalars Python's, what is not finite null, and text
    printable.
    """
    if isinstance(value, np.generic):
        value = value.item()
    if dataclasses.is_dataclass(value):
        return {field.name: json_values(getattr(value, field.name)) for field in dataclasses.fields(value)}
    if isinstance(value, dict):
        return {printable(str(k)): json_values(v) for k, v in value.items()}
    if isinstance(value, (list, tuple)):
        return [json_values(v) for v in value]
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return printable(value) if isinstance(value, str) else value
