"""The tables of a report, read from report.json's content."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

from analysis.page.axis_labels import unit_of
from analysis.page.numbers import count
from analysis.page.page_table import Column, Table
from analysis.questions.registry import QUESTIONS
from analysis.report import charged_hours

Entry = dict[str, Any]
Field = tuple[Column, str | Callable[[Entry], Any]]
"""A column, and which key of an entry stands in it or what follows from the entry."""


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
    tables += [table for question in QUESTIONS for table in question.tables_in(report)]
    return {table.name: table for table in tables if table.rows}


# What several tables show


def _table(name: str, caption: str, entries: Iterable[Entry], *fields: Field) -> Table:
    """A row for each entry."""
    rows = [[entry[value] if isinstance(value, str) else value(entry) for _, value in fields] for entry in entries]
    return Table(name, caption, [column for column, _ in fields], rows)


def _inside(*keys: str) -> Callable[[Entry], Any]:
    """What lies in an entry at the end of `keys`; None where one of them holds None."""

    def value(entry: Entry) -> Any:
        found: Any = entry
        for key in keys:
            found = None if found is None else found[key]
        return found

    return value


def _estimate(column: Column, *keys: str) -> tuple[Field, Field]:
    """A value and its interval."""
    interval = Column(f"{column.name} 95% interval", column.kind, joint=" ")
    return (column, _inside(*keys, "value")), (interval, _inside(*keys, "ci"))


def _against(column: Column) -> tuple[Field, Field, Field]:
    """A comparison, its standard error, and the seeds that were compared one by one."""
    key = "against_baseline"
    return (
        (column, _inside(key, "relative")),
        (Column(f"{column.name}, standard error", "spread", joint=" ± "), _inside(key, "se")),
        (Column("paired seeds", "integer", joint=", paired "), _paired_seeds),
    )


def _paired_seeds(entry: Entry) -> int | None:
    """Seeds that were compared one by one, where there were several."""
    found = entry["against_baseline"]
    return found["paired_seeds"] if found and found["paired_seeds"] > 1 else None


def _stands_on() -> tuple[Field, Field]:
    """Runs behind a result, of all used runs of its series."""
    return (
        (Column("runs behind it", "integer"), _inside("stands_on", "runs")),
        (Column("runs of the series", "integer", joint=" of "), _inside("stands_on", "of")),
    )


def _batch(report: Entry, name: str = "batch") -> Field:
    """A batch in tokens, unless the table's column is in another unit."""
    return (Column(name, "count", unit_of(report, "global_batch_tokens", "tokens")), "global_batch_tokens")


def _or_dash(key: str, separator: str = ", ") -> Callable[[Entry], Any]:
    """A text, or several joined; a dash where there is none."""

    def value(entry: Entry) -> Any:
        found = entry[key] or "–"
        return found if isinstance(found, str) else separator.join(found)

    return value


_SERIES: Field = (Column("series"), "series")
_SIZE: Field = (Column("size", "count", "parameters"), "num_params")
_LOSS: Field = (Column("loss", "loss", "nats per token"), "loss")
_LOSS_SE: Field = (Column("standard error of the loss", "standard_error", joint=" ± "), "loss_se")
_SEEDS: Field = (Column("seeds", "integer"), "seeds")
_COMPUTE: Field = (Column("compute", "flops", "flops"), "flops")
_EDGES: Field = (Column("on a grid's edge"), _or_dash("edges"))
_WHY_NOT: Field = (Column("why not"), _or_dash("reason"))


# One by one


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
            (Column(count(n), "loss"), _inside(str(n), "loss")),
            (Column(f"{count(n)}, standard error", "standard_error", joint=" ± "), _inside(str(n), "loss_se")),
        ]
    has_ratios = any(entry["ratio"] for entry in entries)
    return _table(
        "overview",
        "Best loss by size (parameters) in nats per token"
        + (f"; ratio: compute of {report['settings']['baseline']} over the series', at equal loss" * has_ratios),
        entries,
        _SERIES,
        *(_estimate(Column("ratio", "ratio"), "ratio") if has_ratios else ()),
        *losses,
    )


def _cost(report: dict[str, Any]) -> Table:
    """Steps, tokens and time of the best run at the largest size, and what tuning its series took."""
    largest = max(row["num_params"] for row in report["best"])
    tuning = {entry["series"]: entry for entry in report["audit"]["by_series"]}
    rows = [row for row in report["best"] if row["num_params"] == largest]
    return _table(
        "cost",
        f"What the best of each series at {count(largest)} parameters took, and what tuning the series took over all "
        "sizes",
        sorted(rows, key=lambda row: report["series"].index(row["series"])),
        _SERIES,
        _LOSS,
        _LOSS_SE,
        (Column("steps", "integer"), "num_steps"),
        (Column("tokens", "count"), "num_tokens"),
        (Column("training time", "seconds", "s"), "train_seconds"),
        (Column("tau = B/(lr wd D)", "number", "share of the run"), "weight_decay_timescale"),
        (Column("runs of the series", "integer"), lambda row: tuning[row["series"]]["runs"]),
        (Column("settings tried", "integer"), lambda row: tuning[row["series"]]["settings"]),
        (Column("device-hours of the series", "hours"), lambda row: tuning[row["series"]]["device_hours"]),
    )


def _verdict(report: dict[str, Any]) -> Table:
    return _table(
        "verdict",
        "Best loss of every series at each size, and the compute and time that the baseline needs for it",
        sorted(report["best"], key=lambda row: (row["num_params"], report["series"].index(row["series"]))),
        _SIZE,
        _SERIES,
        _LOSS,
        _LOSS_SE,
        _SEEDS,
        *_against(Column("against baseline", "percent")),
        *_estimate(Column("compute ratio", "ratio"), "compute_ratio"),
        *_estimate(Column("time ratio", "ratio"), "time_ratio"),
        _batch(report, "best batch"),
        (Column("best lr", "number"), "lr"),
        *_stands_on(),
        (Column("on a grid's edge"), _edges_of_best),
    )


def _edges_of_best(row: Entry) -> str:
    flags = [*row["edges"]]
    if row["batch_edge"]:
        flags.append("only one batch" if row["batch_edge"] == "only one batch" else f"batch {row['batch_edge']}")
    return ", ".join(flags) or "–"


def _audit(report: dict[str, Any]) -> Table:
    return _table(
        "audit",
        "Comparable finished runs",
        report["audit"]["by_series"],
        _SERIES,
        (Column("runs", "integer"), "runs"),
        (Column("sizes", "integer"), "sizes"),
        (Column("batches", "integer"), "batches"),
        (Column("hyper-parameter settings", "integer"), "settings"),
        (Column("seeds", "integer"), "seeds"),
        (Column("diverged", "integer"), "diverged"),
    )


def _excluded(report: dict[str, Any]) -> Table:
    return _table(
        "excluded",
        "Runs that take no part",
        report["audit"]["excluded"],
        (Column("reason"), "reason"),
        (Column("runs", "integer"), "runs"),
    )


def _loss_vs_batch(report: dict[str, Any]) -> Table:
    return _table(
        "loss_vs_batch",
        "Best loss at each batch size",
        [{**curve, **point} for curve in report["loss_vs_batch"] for point in curve["points"]],
        _SIZE,
        _SERIES,
        _batch(report),
        _LOSS,
        _LOSS_SE,
        _SEEDS,
        (Column("lr", "number"), "lr"),
        (Column("settings", "integer"), "settings"),
        (Column("diverged", "integer"), "diverged"),
        _EDGES,
    )


def _critical_batch(report: dict[str, Any]) -> Table:
    return _table(
        "critical_batch",
        "Critical batch sizes by definition",
        report["critical_batch"]["points"],
        _SIZE,
        _SERIES,
        (Column("tokens D", "count"), "num_tokens"),
        (Column("1% rule: between", "count", "tokens"), lambda p: [p["largest_good_batch"], p["next_batch"]]),
        (Column("interpolated", "count", "tokens"), "interpolated"),
        (Column("20% overhead", "count", "tokens"), "overhead20"),
        (Column("censored"), _or_dash("censored")),
        (Column("preconditions that fail"), _or_dash("concerns", "; ")),
    )


def _critical_batch_laws(report: dict[str, Any]) -> Table:
    return _table(
        "critical_batch_laws",
        "Growth of the critical batch with tokens, B = A D^alpha",
        report["critical_batch"]["laws"],
        _SERIES,
        (Column("definition"), "definition"),
        *_estimate(Column("alpha", "ratio"), "fit", "parameters", "alpha"),
        (Column("sizes", "integer"), _inside("fit", "num_points")),
        *_stands_on(),
        _WHY_NOT,
    )


def _critical_batch_joint(report: dict[str, Any]) -> Table:
    def note(entry: Entry) -> str:
        if entry["law"] is None:
            return str(entry["reason"])
        return "one exponent for size and tokens" if entry["law"]["tied"] else "–"

    return _table(
        "critical_batch_joint",
        "cbs_joint: one model of all sizes and batches, with D_eff = D / (1 + B/B_c) and B_c = c D^p",
        report["critical_batch"]["joint"],
        _SERIES,
        *_estimate(Column("p", "ratio"), "law", "exponent"),
        *_estimate(Column("B_c", "count", "tokens"), "law", "critical_batch_size"),
        (Column("at D", "count", "tokens"), _inside("law", "at_tokens")),
        (Column("losses", "integer"), _inside("law", "num_points")),
        *_stands_on(),
        (Column("note"), note),
    )


def _loss_compute(report: dict[str, Any]) -> Table:
    iso = report["iso_loss"]
    parameters = {} if iso.get("reason") else iso["fit"]["parameters"]
    return _table(
        "loss_compute",
        "Laws of loss against compute, L = E + A C^-alpha with one E",
        [{**estimate, "name": name} for name, estimate in parameters.items()],
        (Column("parameter"), "name"),
        (Column("value", "number"), "value"),
        (Column("standard error", "number"), "se"),
        (Column("95% interval", "number"), "ci"),
    )


def _ratios(report: dict[str, Any], name: str, caption: str) -> Table:
    return _table(
        name,
        caption,
        report[name].get("ratios") or [],
        _SERIES,
        _COMPUTE,
        *_estimate(Column("ratio", "ratio")),
        (Column("resamples without a ratio", "integer"), "undefined"),
    )


def _holdouts(report: dict[str, Any]) -> Table:
    return _table(
        "holdouts",
        "The largest size, predicted from the smaller ones",
        report["iso_loss"].get("holdouts") or [],
        _SERIES,
        _SIZE,
        (Column("predicted loss", "loss"), "predicted_loss"),
        (Column("observed loss", "loss"), "observed_loss"),
        (Column("error", "percent"), "relative_error"),
    )


def _hyper_parameters(report: dict[str, Any]) -> Table:
    return _table(
        "hyper_parameters",
        "Best learning rate and the range within 1% of its loss, at the best batch",
        report["hyper_parameters"]["curves"],
        _SIZE,
        _SERIES,
        _batch(report),
        (Column("best lr", "number"), "best_lr"),
        (Column("within 1%", "number"), "plateau_lr"),
        (Column("learning rates tried", "integer"), "num_lrs"),
        _EDGES,
    )


def _num_workers(report: dict[str, Any]) -> Table:
    return _table(
        "num_workers",
        "Loss against the number of workers, relative to the partner: data parallel with the same inner "
        "optimizer, or what --style says",
        report["num_workers"]["points"],
        _SIZE,
        _SERIES,
        (Column("K", "integer"), "num_workers"),
        _LOSS,
        _LOSS_SE,
        (Column("partner"), "baseline"),
        (Column("its loss", "loss", "nats per token"), "baseline_loss"),
        *_against(Column("relative", "percent")),
        (Column("pseudogradient cosine", "ratio"), "pseudogradient_cosine"),
    )


def _num_workers_laws(report: dict[str, Any]) -> Table:
    return _table(
        "num_workers_laws",
        "Loss against size and workers, L = A N^a K^b",
        report["num_workers"]["laws"],
        (Column("algorithm"), "algorithm"),
        *_estimate(Column("a", "ratio"), "fit", "parameters", "alpha[num_params]"),
        *_estimate(Column("b", "ratio"), "fit", "parameters", "alpha[num_workers]"),
        *_stands_on(),
        _WHY_NOT,
    )


def _size_and_data(report: dict[str, Any]) -> Table:
    return _table(
        "size_and_data",
        "L = E + A N^-alpha + B D^-beta, and the exponent of the best size for a compute, N ~ C^a",
        report["size_and_data"]["laws"],
        _SERIES,
        *_estimate(Column("E", "ratio"), "fit", "parameters", "E"),
        *_estimate(Column("alpha", "ratio"), "fit", "parameters", "alpha"),
        *_estimate(Column("beta", "ratio"), "fit", "parameters", "beta"),
        (Column("A", "number"), _inside("fit", "parameters", "A", "value")),
        (Column("B", "number"), _inside("fit", "parameters", "B", "value")),
        (Column("a", "ratio"), "allocation"),
        *_stands_on(),
        _WHY_NOT,
    )


def _isoflop(report: dict[str, Any]) -> Table:
    return _table(
        "isoflop",
        "Best size at equal compute, by parabola",
        report["size_and_data"]["budgets"],
        _SERIES,
        _COMPUTE,
        (Column("sizes", "integer"), lambda budget: len(budget["points"])),
        (Column("best size", "count", "parameters"), "best_num_params"),
        *_stands_on(),
    )


def _wall_clock(report: dict[str, Any]) -> Table:
    return _table(
        "wall_clock",
        "Hours of training at the largest size and each series' critical batch",
        report["wall_clock"]["rows"],
        _SERIES,
        (Column("link", "number", "Gbit/s"), "bandwidth_gbits"),
        _batch(report),
        (Column("steps", "integer"), "num_steps"),
        (Column("exchanges", "integer"), "num_exchanges"),
        (Column("compression", "number"), "compression"),
        (Column("idealised", "hours"), "idealised_hours"),
        (Column("fixed devices", "hours"), "charles_hours"),
        (Column("best run as recorded", "hours"), "measured_hours"),
    )


def _sensitivity_loss(report: dict[str, Any]) -> Table:
    return _table(
        "sensitivity_loss",
        "Laws of loss against compute under other choices; the ratio stands at the largest compute of the data",
        report["sensitivity"]["loss"],
        (Column("choice"), "name"),
        _SERIES,
        (Column("irreducible loss", "loss"), "irreducible_loss"),
        (Column("exponent", "ratio"), "exponent"),
        (Column("compute ratio", "ratio"), "ratio"),
        *_stands_on(),
        _WHY_NOT,
    )


def _sensitivity_critical_batch(report: dict[str, Any]) -> Table:
    part = report["sensitivity"]
    other = "least squares" if part["other_delta"] == "inf" else f"Huber {part['other_delta']:g}"
    return _table(
        "sensitivity_critical_batch",
        "Exponent of the critical batch by definition and loss function",
        part["critical_batch"],
        _SERIES,
        (Column("definition"), "definition"),
        (Column("exponent", "ratio"), "exponent"),
        (Column("95% interval", "ratio"), "ci"),
        (Column(f"by {other}", "ratio"), "other_exponent"),
        *_stands_on(),
    )
