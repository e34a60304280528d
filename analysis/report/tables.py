"""The tables of a report, read from report.json's content."""

from __future__ import annotations

from typing import Any

from analysis.page.numbers import count
from analysis.page.page_table import Column, Table
from analysis.questions.registry import QUESTIONS
from analysis.report import charged_hours
from analysis.report.table_fields import (
    COMPUTE,
    EDGES,
    LOSS,
    LOSS_SE,
    SEEDS,
    SERIES,
    SIZE,
    WHY_NOT,
    Entry,
    Field,
    against,
    batch,
    estimate,
    inside,
    or_dash,
    stands_on,
    table,
)


def all_tables(report: dict[str, Any]) -> dict[str, Table]:
    """Every table that has rows, by name."""
    tables = [
        _overview(report),
        _verdict(report),
        _cost(report),
        _audit(report),
        _excluded(report),
        _loss_vs_batch(report),
        _critical_batch(report),
        _critical_batch_laws(report),
        _critical_batch_joint(report),
        _loss_compute(report),
        _ratios(report, "iso_loss", "Compute of the baseline over compute of the series, at equal loss"),
        _ratios(report, "time_ratio", "Training time of the baseline over that of the series, at equal loss"),
        _holdouts(report),
        _size_and_data(report),
        _isoflop(report),
        _wall_clock(report),
        charged_hours.table_of(report),
        _hyper_parameters(report),
        _num_workers(report),
        _num_workers_laws(report),
        _sensitivity_loss(report),
        _sensitivity_critical_batch(report),
    ]
    tables += [one for question in QUESTIONS for one in question.tables_in(report)]
    return {one.name: one for one in tables if one.rows}


def _overview(report: dict[str, Any]) -> Table:
    """A row a series: its best loss at each size, and the compute ratio at the largest size it has one for."""
    best = {(row["series"], row["num_params"]): row for row in report["best"]}
    sizes = sorted({n for _, n in best}, reverse=True)
    entries = []
    for name in report["series"]:
        mine = [best[name, n] for n in sizes if (name, n) in best]
        ratio = next((row["compute_ratio"] for row in mine if row["compute_ratio"]), None)
        if mine:
            entries.append({"series": name, "ratio": ratio, **{str(n): best.get((name, n)) for n in sizes}})
    losses: list[Field] = []
    for n in sizes:
        losses += [
            (Column(count(n), "loss"), inside(str(n), "loss")),
            (Column(f"{count(n)}, standard error", "standard_error", joint=" ± "), inside(str(n), "loss_se")),
        ]
    has_ratios = any(entry["ratio"] for entry in entries)
    return table(
        "overview",
        "Best loss by size (parameters) in nats per token"
        + (f"; ratio: compute of {report['settings']['baseline']} over the series', at equal loss" * has_ratios),
        entries,
        SERIES,
        *(estimate(Column("ratio", "ratio"), "ratio") if has_ratios else ()),
        *losses,
    )


def _cost(report: dict[str, Any]) -> Table:
    """Steps, tokens and time of the best run at the largest size, and what tuning its series took."""
    largest = max(row["num_params"] for row in report["best"])
    tuning = {entry["series"]: entry for entry in report["audit"]["by_series"]}
    entries = [{**row, "tuning": tuning[row["series"]]} for row in report["best"] if row["num_params"] == largest]
    return table(
        "cost",
        f"What the best of each series at {count(largest)} parameters took, and what tuning the series took over all "
        "sizes",
        sorted(entries, key=lambda entry: report["series"].index(entry["series"])),
        SERIES,
        LOSS,
        LOSS_SE,
        (Column("steps", "integer"), "num_steps"),
        (Column("tokens", "count"), "num_tokens"),
        (Column("training time", "seconds", "s"), "train_seconds"),
        (Column("peak memory", "bytes"), "memory_bytes"),
        (Column("tau = B/(lr wd D)", "number", "share of the run"), "weight_decay_timescale"),
        (Column("runs of the series", "integer"), inside("tuning", "runs")),
        (Column("settings tried", "integer"), inside("tuning", "settings")),
        (Column("device-hours of the series", "hours"), inside("tuning", "device_hours")),
    )


def _verdict(report: dict[str, Any]) -> Table:
    return table(
        "verdict",
        "Best loss of every series at each size, and the compute and time that the baseline needs for it",
        sorted(report["best"], key=lambda row: (row["num_params"], report["series"].index(row["series"]))),
        SIZE,
        SERIES,
        LOSS,
        LOSS_SE,
        SEEDS,
        *against(Column("against baseline", "percent")),
        *estimate(Column("compute ratio", "ratio"), "compute_ratio"),
        *estimate(Column("time ratio", "ratio"), "time_ratio"),
        batch(report, "best batch"),
        (Column("best lr", "number"), "lr"),
        *stands_on(),
        (Column("on a grid's edge"), _edges_of_best),
    )


def _edges_of_best(row: Entry) -> str:
    flags = [*row["edges"]]
    if row["batch_edge"]:
        flags.append("only one batch" if row["batch_edge"] == "only one batch" else f"batch {row['batch_edge']}")
    return ", ".join(flags) or "–"


def _audit(report: dict[str, Any]) -> Table:
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


def _loss_vs_batch(report: dict[str, Any]) -> Table:
    return table(
        "loss_vs_batch",
        "Best loss at each batch size",
        [{**curve, **point} for curve in report["loss_vs_batch"] for point in curve["points"]],
        SIZE,
        SERIES,
        batch(report),
        LOSS,
        LOSS_SE,
        SEEDS,
        (Column("lr", "number"), "lr"),
        (Column("settings", "integer"), "settings"),
        (Column("diverged", "integer"), "diverged"),
        EDGES,
    )


def _critical_batch(report: dict[str, Any]) -> Table:
    return table(
        "critical_batch",
        "Critical batch sizes by definition",
        report["critical_batch"]["points"],
        SIZE,
        SERIES,
        (Column("tokens D", "count"), "num_tokens"),
        (Column("1% rule: between", "count", "tokens"), lambda p: [p["largest_good_batch"], p["next_batch"]]),
        (Column("interpolated", "count", "tokens"), "interpolated"),
        (Column("20% overhead", "count", "tokens"), "overhead20"),
        (Column("censored"), or_dash("censored")),
        (Column("preconditions that fail"), or_dash("concerns", "; ")),
    )


def _critical_batch_laws(report: dict[str, Any]) -> Table:
    return table(
        "critical_batch_laws",
        "Growth of the critical batch with tokens, B = A D^alpha",
        report["critical_batch"]["laws"],
        SERIES,
        (Column("definition"), "definition"),
        *estimate(Column("alpha", "ratio"), "fit", "parameters", "alpha"),
        (Column("sizes", "integer"), inside("fit", "num_points")),
        *stands_on(),
        WHY_NOT,
    )


def _critical_batch_joint(report: dict[str, Any]) -> Table:
    def note(entry: Entry) -> str:
        if entry["law"] is None:
            return str(entry["reason"])
        return "one exponent for size and tokens" if entry["law"]["tied"] else "–"

    return table(
        "critical_batch_joint",
        "cbs_joint: one model of all sizes and batches, with D_eff = D / (1 + B/B_c) and B_c = c D^p",
        report["critical_batch"]["joint"],
        SERIES,
        *estimate(Column("p", "ratio"), "law", "exponent"),
        *estimate(Column("B_c", "count", "tokens"), "law", "critical_batch_size"),
        (Column("at D", "count", "tokens"), inside("law", "at_tokens")),
        (Column("losses", "integer"), inside("law", "num_points")),
        *stands_on(),
        (Column("note"), note),
    )


def _loss_compute(report: dict[str, Any]) -> Table:
    iso = report["iso_loss"]
    parameters = {} if iso.get("reason") else iso["fit"]["parameters"]
    return table(
        "loss_compute",
        "Laws of loss against compute, L = E + A C^-alpha with one E",
        [{**found, "name": name} for name, found in parameters.items()],
        (Column("parameter"), "name"),
        (Column("value", "number"), "value"),
        (Column("standard error", "number"), "se"),
        (Column("95% interval", "number"), "ci"),
    )


def _ratios(report: dict[str, Any], name: str, caption: str) -> Table:
    return table(
        name,
        caption,
        report[name].get("ratios") or [],
        SERIES,
        COMPUTE,
        *estimate(Column("ratio", "ratio")),
        (Column("resamples without a ratio", "integer"), "undefined"),
    )


def _holdouts(report: dict[str, Any]) -> Table:
    return table(
        "holdouts",
        "The largest size, predicted from the smaller ones",
        report["iso_loss"].get("holdouts") or [],
        SERIES,
        SIZE,
        (Column("predicted loss", "loss"), "predicted_loss"),
        (Column("observed loss", "loss"), "observed_loss"),
        (Column("error", "percent"), "relative_error"),
    )


def _hyper_parameters(report: dict[str, Any]) -> Table:
    return table(
        "hyper_parameters",
        "Best learning rate and the range within 1% of its loss, at the best batch",
        report["hyper_parameters"]["curves"],
        SIZE,
        SERIES,
        batch(report),
        (Column("best lr", "number"), "best_lr"),
        (Column("within 1%", "number"), "plateau_lr"),
        (Column("learning rates tried", "integer"), "num_lrs"),
        EDGES,
    )


def _num_workers(report: dict[str, Any]) -> Table:
    return table(
        "num_workers",
        "Loss against the number of workers, relative to the partner: data parallel with the same inner "
        "optimizer, or what --style says",
        report["num_workers"]["points"],
        SIZE,
        SERIES,
        (Column("K", "integer"), "num_workers"),
        LOSS,
        LOSS_SE,
        (Column("partner"), "baseline"),
        (Column("its loss", "loss", "nats per token"), "baseline_loss"),
        *against(Column("relative", "percent")),
        (Column("pseudogradient cosine", "ratio"), "pseudogradient_cosine"),
    )


def _num_workers_laws(report: dict[str, Any]) -> Table:
    return table(
        "num_workers_laws",
        "Loss against size and workers, L = A N^a K^b",
        report["num_workers"]["laws"],
        (Column("algorithm"), "algorithm"),
        *estimate(Column("a", "ratio"), "fit", "parameters", "alpha[num_params]"),
        *estimate(Column("b", "ratio"), "fit", "parameters", "alpha[num_workers]"),
        *stands_on(),
        WHY_NOT,
    )


def _size_and_data(report: dict[str, Any]) -> Table:
    return table(
        "size_and_data",
        "L = E + A N^-alpha + B D^-beta, and the exponent of the best size for a compute, N ~ C^a",
        report["size_and_data"]["laws"],
        SERIES,
        *estimate(Column("E", "ratio"), "fit", "parameters", "E"),
        *estimate(Column("alpha", "ratio"), "fit", "parameters", "alpha"),
        *estimate(Column("beta", "ratio"), "fit", "parameters", "beta"),
        (Column("A", "number"), inside("fit", "parameters", "A", "value")),
        (Column("B", "number"), inside("fit", "parameters", "B", "value")),
        (Column("a", "ratio"), "allocation"),
        *stands_on(),
        WHY_NOT,
    )


def _isoflop(report: dict[str, Any]) -> Table:
    return table(
        "isoflop",
        "Best size at equal compute, by parabola",
        report["size_and_data"]["budgets"],
        SERIES,
        COMPUTE,
        (Column("sizes", "integer"), lambda budget: len(budget["points"])),
        (Column("best size", "count", "parameters"), "best_num_params"),
        *stands_on(),
    )


def _wall_clock(report: dict[str, Any]) -> Table:
    return table(
        "wall_clock",
        "Hours of training at the largest size and each series' critical batch",
        report["wall_clock"]["rows"],
        SERIES,
        (Column("link", "number", "Gbit/s"), "bandwidth_gbits"),
        batch(report),
        (Column("steps", "integer"), "num_steps"),
        (Column("exchanges", "integer"), "num_exchanges"),
        (Column("compression", "number"), "compression"),
        (Column("idealised", "hours"), "idealised_hours"),
        (Column("fixed devices", "hours"), "charles_hours"),
        (Column("best run as recorded", "hours"), "measured_hours"),
    )


def _sensitivity_loss(report: dict[str, Any]) -> Table:
    return table(
        "sensitivity_loss",
        "Laws of loss against compute under other choices; the ratio stands at the largest compute of the data",
        report["sensitivity"]["loss"],
        (Column("choice"), "name"),
        SERIES,
        (Column("irreducible loss", "loss"), "irreducible_loss"),
        (Column("exponent", "ratio"), "exponent"),
        (Column("compute ratio", "ratio"), "ratio"),
        *stands_on(),
        WHY_NOT,
    )


def _sensitivity_critical_batch(report: dict[str, Any]) -> Table:
    part = report["sensitivity"]
    other = "least squares" if part["other_delta"] == "inf" else f"Huber {part['other_delta']:g}"
    return table(
        "sensitivity_critical_batch",
        "Exponent of the critical batch by definition and loss function",
        part["critical_batch"],
        SERIES,
        (Column("definition"), "definition"),
        (Column("exponent", "ratio"), "exponent"),
        (Column("95% interval", "ratio"), "ci"),
        (Column(f"by {other}", "ratio"), "other_exponent"),
        *stands_on(),
    )
