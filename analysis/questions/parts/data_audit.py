"""Data: what was used, and what was not."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from typing import Any, cast

import pandas as pd

from analysis.input.columns import listed
from analysis.input.run_rows import Excluded
from analysis.optima import Optima
from analysis.page.numbers import count, loss, number
from analysis.page.page_table import Column, Table
from analysis.page.section import Block, Items, Shown
from analysis.page.table_fields import SERIES, table
from analysis.questions.question import Part
from analysis.runs import SCALE, SETTING, Study


@dataclass(frozen=True)
class ReasonCount:
    """How many runs take no part for one reason."""

    reason: str
    runs: int


@dataclass(frozen=True)
class BudgetCount:
    """Runs at one number of tokens per parameter."""

    tokens_per_parameter: float
    runs: int
    sizes: int
    compared: bool


@dataclass(frozen=True)
class SeriesCount:
    """What was run of one series."""

    series: str
    runs: int
    sizes: int
    batches: int
    settings: int
    """Combinations of size, tokens, batch and hyper-parameters that were tried; seeds do not count."""
    seeds: int
    diverged: int
    device_hours: float | None
    """Training time of all attempts times devices, over all of its runs used; null where a table lacks one of them."""


@dataclass(frozen=True)
class Audit:
    """Runs found, used and left out, and what is known of them."""

    found: int
    used: int
    """Finished, comparable, not diverged."""
    diverged: int
    excluded: list[ReasonCount]
    """Counts by reason."""
    excluded_runs: list[Excluded]
    corpus: str
    """Content hash of the data."""
    baselines: dict[str, float]
    """Losses of models that know only frequencies."""
    bytes_per_token: float | None
    optima: int
    optima_on_edge: int
    optima_batch_on_edge: int
    optima_biased: int
    """Of optima: those whose loss comes from the seeds that chose them."""
    optima_without_shared_seeds: int
    """Of optima: those compared by means over different seeds."""
    repeated_settings: int
    """Settings with two seeds or more."""
    seed_sd: float | None
    """Standard deviation of log loss between seeds."""
    notes: list[str]
    cautions: list[str]
    """What the columns of a table, or the schedules of best settings, do not agree about."""
    withheld: str | None
    """Why nothing is ranked."""
    unusable: dict[str, str]
    """Columns from which no law is fitted, with reason and remedy."""
    columns: dict[str, str]
    """Columns of the vocabulary -> where a table has them."""
    unused_columns: list[str]
    budgets: list[BudgetCount]
    by_series: list[SeriesCount]


def audit(study: Study, optima: Optima, budget: float) -> Audit:
    """Counts over all runs of the study."""
    runs = study.runs
    reasons = Counter(_reason_kind(e.reason) for e in study.excluded)
    edges = optima.best["edges"].map(len) > 0
    return Audit(
        found=len(runs) + len(study.excluded),
        used=int((~runs["diverged"]).sum()),
        diverged=int(runs["diverged"].sum()),
        excluded=[ReasonCount(reason, n) for reason, n in sorted(reasons.items())],
        excluded_runs=study.excluded,
        corpus=study.corpus,
        baselines=study.baselines,
        bytes_per_token=study.bytes_per_token,
        optima=len(optima.best),
        optima_on_edge=int(edges.sum()),
        optima_batch_on_edge=int(optima.best["batch_edge"].notna().sum()),
        optima_biased=int((~optima.best["unbiased"]).sum()),
        optima_without_shared_seeds=int((~optima.best["shared_seeds"]).sum()),
        repeated_settings=optima.seed_settings,
        seed_sd=optima.seed_sd,
        notes=study.notes,
        cautions=[*study.cautions, *_mixed_schedules(study, optima.best)],
        withheld=study.withheld,
        unusable=study.unusable,
        columns=study.columns,
        unused_columns=study.unused,
        budgets=_budgets(runs, budget),
        by_series=[
            SeriesCount(
                series=series,
                runs=len(group),
                sizes=int(group["num_params"].nunique()),
                batches=int(group["global_batch_tokens"].nunique()),
                settings=group.groupby(SETTING, observed=True).ngroups,
                seeds=int(group["seed"].nunique()),
                diverged=int(group["diverged"].sum()),
                device_hours=_device_hours(group),
            )
            for series in study.series
            for group in [runs[runs["series"] == series]]
        ],
    )


def _mixed_schedules(study: Study, best: pd.DataFrame) -> list[str]:
    """Where best settings of different schedules stand side by side, and which series have laws through several."""
    if "schedule" not in study.runs:
        return []
    rows = best.merge(study.runs.drop_duplicates(SETTING)[[*SETTING, "schedule"]], on=SETTING)
    out = []
    beside = []
    for key, group in rows.groupby(SCALE, sort=True):
        if group["schedule"].nunique() > 1:
            each = ", ".join(f"{name} {one}" for name, one in zip(group["series"], group["schedule"], strict=True))
            size, budget = cast("tuple[int, float]", key)
            beside.append(f"{count(size)} at {number(budget)} tokens per parameter: {each}")
    if beside:
        out.append(
            "Best settings that stand side by side are of different learning-rate schedules, so that differences "
            f"between them are differences between schedules too ({'; '.join(beside[:4])})."
        )
    several = rows.groupby("series")["schedule"].transform("nunique") > 1
    if several.any():
        at: dict[str, list[str]] = {}
        for one, group in rows[several].groupby("schedule", sort=True):
            at[str(one)] = [number(value) for value in sorted(group["tokens_per_parameter"].unique())]
        where = "; ".join(f"{one} at {', '.join(budgets)} tokens per parameter" for one, budgets in at.items())
        names = [name for name in study.series if name in set(rows.loc[several, "series"])]
        out.append(
            f"Best settings of {listed(names, 6)} are of several learning-rate schedules ({where}): lines and laws "
            "through them (of size and tokens, over all scales, the critical batch by 20% overhead) take differences "
            "between schedules for differences between sizes or budgets."
        )
    return out


def _device_hours(runs: pd.DataFrame) -> float | None:
    """Training time of all attempts times devices over all runs of a series; None where a table lacks one of them."""
    hours = runs["train_seconds"] * runs["num_ranks"] / 3600
    return None if hours.isna().any() else float(hours.sum())


def _budgets(runs: pd.DataFrame, budget: float) -> list[BudgetCount]:
    return [
        BudgetCount(
            tokens_per_parameter=cast("float", value),
            runs=len(group),
            sizes=int(group["num_params"].nunique()),
            compared=value == budget,
        )
        for value, group in runs.groupby("tokens_per_parameter", sort=True)
    ]


def _reason_kind(reason: str) -> str:
    """Reasons without what differs from run to run, for counting."""
    head, _, tail = reason.partition(":")
    if head == "unfinished":
        return f"{head}: {tail.strip().split(' ')[0]}"
    return head if head in ("damaged", "stopped early") else reason


def _audit_table(report: dict[str, Any]) -> Table:
    return table(
        "audit",
        "Comparable finished runs",
        report["audit"]["by_series"],
        SERIES,
        (Column("runs", "integer"), "runs"),
        (Column("sizes", "integer"), "sizes"),
        (Column("batches", "integer"), "batches"),
        (Column("settings tried", "integer"), "settings"),
        (Column("seeds", "integer"), "seeds"),
        (Column("diverged", "integer"), "diverged"),
    )


def _excluded(report: dict[str, Any]) -> Table:
    return table(
        "excluded",
        "Runs that take no part",
        report["audit"]["excluded"],
        (Column("reason"), "reason"),
        (Column("runs", "integer"), "runs"),
    )


def section(report: dict[str, Any], drawn: bool) -> list[Block]:
    """Counts, columns, notes, and what was left out."""
    part = report["audit"]
    found, diverged = part["found"], part["diverged"]
    lost = f", {diverged} diverged (a result, but without a loss to fit)" if diverged else ""
    counted = f"{part['used']} used{lost}, {len(part['excluded_runs'])} left out"
    text = f"{found} run{'s' if found != 1 else ''} found: {counted}."
    if part["corpus"]:
        text += f" All that are used share the corpus {part['corpus'][:12]}."
    if part["baselines"]:
        known = ", ".join(f"{loss(value)} ({name})" for name, value in part["baselines"].items())
        text += f" Models that know only frequencies reach {known} nats per token on it."
    blocks: list[Block] = [text]
    if part["columns"]:
        used = ", ".join(name if name == own else f"{name} = {own}" for name, own in part["columns"].items())
        blocks.append(f"Columns used: {used}. Not used: {', '.join(part['unused_columns']) or 'none'}.")
    if part["notes"]:
        blocks.append(Items(part["notes"]))
    return [*blocks, Shown("audit"), Shown("excluded")]


PART = Part(
    "audit",
    Audit,
    lambda inputs: audit(inputs.study, inputs.optima, inputs.budget),
    lambda report: [_audit_table(report), _excluded(report)],
    title="Runs used and left out",
    section=section,
)
