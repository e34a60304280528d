"""The tables of a report, read from report.json's content."""

from __future__ import annotations

from typing import Any

from analysis.report.table import Column, Table


def all_tables(report: dict[str, Any]) -> dict[str, Table]:
    """Every table that has rows, by name."""
    tables = [
        _verdict(report),
        _audit(report),
        _excluded(report),
        _loss_vs_batch(report),
        _critical_batch(report),
        _critical_batch_laws(report),
        _critical_batch_joint(report),
        _loss_compute(report),
        _ratios(report, "iso_loss", "Compute of the baseline over compute of the series, at equal loss"),
        _ratios(report, "time_ratio", "Training time of the baseline over that of the series, at equal loss"),
        _left_out(report),
        _size_and_data(report),
        _isoflop(report),
        _wall_clock(report),
        _hyper_parameters(report),
        _num_workers(report),
        _num_workers_laws(report),
        _sensitivity_loss(report),
        _sensitivity_critical_batch(report),
    ]
    return {table.name: table for table in tables if table.rows}


def _verdict(report: dict[str, Any]) -> Table:
    rows = []
    for row in sorted(report["best"], key=lambda r: (r["num_params"], report["series"].index(r["series"]))):
        flags = [*row["edges"]]
        if row["batch_edge"]:
            flags.append("only one batch" if row["batch_edge"] == "only one batch" else f"batch {row['batch_edge']}")
        rows.append(
            [
                row["num_params"],
                row["series"],
                row["loss"],
                row["relative"],
                *_value_and_interval(row["compute_ratio"]),
                *_value_and_interval(row["time_ratio"]),
                row["global_batch_tokens"],
                row["lr"],
                ", ".join(flags) or "–",
            ]
        )
    return Table(
        "verdict",
        "Best loss of every series at each size, and the compute and time that the baseline needs for it",
        [
            Column("size", "count", "parameters"),
            Column("series"),
            Column("loss", "loss", "nats per token"),
            Column("against baseline", "percent"),
            Column("compute ratio", "ratio"),
            Column("95% interval", "ratio"),
            Column("time ratio", "ratio"),
            Column("95% interval", "ratio"),
            Column("best batch", "count", "tokens"),
            Column("best lr", "number"),
            Column("on a grid's edge"),
        ],
        rows,
    )


def _value_and_interval(estimate: dict[str, Any] | None) -> list[Any]:
    return [estimate["value"], estimate["ci"]] if estimate else [None, None]


def _audit(report: dict[str, Any]) -> Table:
    keys = ["series", "runs", "sizes", "batches", "settings", "seeds", "diverged"]
    kinds = ["text"] + ["integer"] * 6
    return Table(
        "audit",
        "Comparable finished runs",
        [
            Column(key if key != "settings" else "hyper-parameter settings", kind)
            for key, kind in zip(keys, kinds, strict=True)
        ],
        [[row[key] for key in keys] for row in report["audit"]["by_series"]],
    )


def _excluded(report: dict[str, Any]) -> Table:
    return Table(
        "excluded",
        "Runs that take no part",
        [Column("reason"), Column("runs", "integer")],
        [[row["reason"], row["runs"]] for row in report["audit"]["excluded"]],
    )


def _loss_vs_batch(report: dict[str, Any]) -> Table:
    return Table(
        "loss_vs_batch",
        "Best loss at each batch size",
        [
            Column("size", "count", "parameters"),
            Column("series"),
            Column("batch", "count", "tokens"),
            Column("loss", "loss", "nats per token"),
            Column("lr", "number"),
            Column("settings", "integer"),
            Column("seeds", "integer"),
            Column("diverged", "integer"),
            Column("on a grid's edge"),
        ],
        [
            [
                curve["num_params"],
                curve["series"],
                p["global_batch_tokens"],
                p["loss"],
                p["lr"],
                p["settings"],
                p["seeds"],
                p["diverged"],
                ", ".join(p["edges"]) or "–",
            ]
            for curve in report["loss_vs_batch"]
            for p in curve["points"]
        ],
    )


def _critical_batch(report: dict[str, Any]) -> Table:
    return Table(
        "critical_batch",
        "Critical batch sizes by definition",
        [
            Column("size", "count", "parameters"),
            Column("series"),
            Column("tokens D", "count"),
            Column("1% rule: between", "count", "tokens"),
            Column("interpolated", "count", "tokens"),
            Column("20% overhead", "count", "tokens"),
            Column("censored"),
            Column("preconditions that fail"),
        ],
        [
            [
                p["num_params"],
                p["series"],
                p["num_tokens"],
                [p["largest_good_batch"], p["next_batch"]],
                p["interpolated"],
                p["overhead20"],
                p["censored"] or "–",
                "; ".join(p["concerns"]) or "–",
            ]
            for p in report["critical_batch"]["points"]
        ],
    )


def _critical_batch_laws(report: dict[str, Any]) -> Table:
    rows = []
    for law in report["critical_batch"]["laws"]:
        fit = law["fit"]
        alpha = fit["parameters"]["alpha"] if fit else None
        rows.append(
            [
                law["series"],
                law["definition"],
                alpha["value"] if alpha else None,
                alpha["ci"] if alpha else None,
                fit["num_points"] if fit else None,
                law["reason"] or "–",
            ]
        )
    return Table(
        "critical_batch_laws",
        "Growth of the critical batch with tokens, B = A D^alpha",
        [
            Column("series"),
            Column("definition"),
            Column("alpha", "ratio"),
            Column("95% interval", "ratio"),
            Column("sizes", "integer"),
            Column("why not"),
        ],
        rows,
    )


def _critical_batch_joint(report: dict[str, Any]) -> Table:
    rows = []
    for entry in report["critical_batch"]["joint"]:
        law = entry["law"]
        if law is None:
            rows.append([entry["series"], None, None, None, None, None, None, entry["reason"]])
            continue
        note = "one exponent for size and tokens" if law["tied"] else "–"
        exponent, size = law["exponent"], law["critical_batch_size"]
        rows.append(
            [
                entry["series"],
                *_value_and_interval(exponent),
                *_value_and_interval(size),
                law["at_tokens"],
                law["num_points"],
                note,
            ]
        )
    return Table(
        "critical_batch_joint",
        "cbs_joint: one model of all sizes and batches, with D_eff = D / (1 + B/B_c) and B_c = c D^p",
        [
            Column("series"),
            Column("p", "ratio"),
            Column("95% interval", "ratio"),
            Column("B_c", "count", "tokens"),
            Column("95% interval", "count"),
            Column("at D", "count", "tokens"),
            Column("losses", "integer"),
            Column("note"),
        ],
        rows,
    )


def _loss_compute(report: dict[str, Any]) -> Table:
    iso = report["iso_loss"]
    if iso.get("reason"):
        return Table("loss_compute", "", [], [])
    parameters = iso["fit"]["parameters"]
    return Table(
        "loss_compute",
        "Laws of loss against compute, L = E + A C^-alpha with one E",
        [
            Column("parameter"),
            Column("value", "number"),
            Column("standard error", "number"),
            Column("95% interval", "number"),
        ],
        [[name, e["value"], e["se"], e["ci"]] for name, e in parameters.items()],
    )


def _ratios(report: dict[str, Any], name: str, caption: str) -> Table:
    return Table(
        name,
        caption,
        [
            Column("series"),
            Column("compute", "flops", "flops"),
            Column("ratio", "ratio"),
            Column("95% interval", "ratio"),
            Column("resamples without a ratio", "integer"),
        ],
        [[r["series"], r["flops"], r["value"], r["ci"], r["undefined"]] for r in report[name].get("ratios") or []],
    )


def _left_out(report: dict[str, Any]) -> Table:
    return Table(
        "left_out",
        "The largest size, predicted from the smaller ones",
        [
            Column("series"),
            Column("size", "count", "parameters"),
            Column("predicted loss", "loss"),
            Column("observed loss", "loss"),
            Column("error", "percent"),
        ],
        [
            [r["series"], r["num_params"], r["predicted_loss"], r["observed_loss"], r["relative_error"]]
            for r in report["iso_loss"].get("left_out") or []
        ],
    )


def _hyper_parameters(report: dict[str, Any]) -> Table:
    return Table(
        "hyper_parameters",
        "Best learning rate and the range within 1% of its loss, at the best batch",
        [
            Column("size", "count", "parameters"),
            Column("series"),
            Column("batch", "count", "tokens"),
            Column("best lr", "number"),
            Column("within 1%", "number"),
            Column("learning rates tried", "integer"),
            Column("on a grid's edge"),
        ],
        [
            [
                h["num_params"],
                h["series"],
                h["global_batch_tokens"],
                h["best_lr"],
                h["plateau_lr"],
                h["num_lrs"],
                ", ".join(h["edges"]) or "–",
            ]
            for h in report["hyper_parameters"]["curves"]
        ],
    )


def _num_workers(report: dict[str, Any]) -> Table:
    return Table(
        "num_workers",
        "Loss against the number of workers, relative to data parallel with the same inner optimizer",
        [
            Column("size", "count", "parameters"),
            Column("series"),
            Column("K", "integer"),
            Column("loss", "loss", "nats per token"),
            Column("data parallel"),
            Column("its loss", "loss", "nats per token"),
            Column("relative", "percent"),
            Column("pseudogradient cosine", "ratio"),
        ],
        [
            [
                r["num_params"],
                r["series"],
                r["num_workers"],
                r["loss"],
                r["baseline"],
                r["baseline_loss"],
                r["relative"],
                r["pseudogradient_cosine"],
            ]
            for r in report["num_workers"]["points"]
        ],
    )


def _num_workers_laws(report: dict[str, Any]) -> Table:
    rows = []
    for law in report["num_workers"]["laws"]:
        parameters = law["fit"]["parameters"] if law["fit"] else {}
        rows.append(
            [
                law["algorithm"],
                *_value_and_interval(parameters.get("alpha[num_params]")),
                *_value_and_interval(parameters.get("alpha[num_workers]")),
                law["reason"] or "–",
            ]
        )
    return Table(
        "num_workers_laws",
        "Loss against size and workers, L = A N^a K^b",
        [
            Column("algorithm"),
            Column("a", "exponent"),
            Column("95% interval", "exponent"),
            Column("b", "exponent"),
            Column("95% interval", "exponent"),
            Column("why not"),
        ],
        rows,
    )


def _size_and_data(report: dict[str, Any]) -> Table:
    rows = []
    for law in report["size_and_data"]["laws"]:
        parameters = law["fit"]["parameters"] if law["fit"] else {}
        with_intervals = [v for name in ("E", "alpha", "beta") for v in _value_and_interval(parameters.get(name))]
        levels = [parameters[name]["value"] if parameters else None for name in ("A", "B")]
        rows.append([law["series"], *with_intervals, *levels, law["allocation"], law["reason"] or "–"])
    return Table(
        "size_and_data",
        "L = E + A N^-alpha + B D^-beta, and the exponent of the best size for a compute, N ~ C^a",
        [
            Column("series"),
            *[c for name in ("E", "alpha", "beta") for c in (Column(name, "ratio"), Column("95% interval", "ratio"))],
            Column("A", "number"),
            Column("B", "number"),
            Column("a", "ratio"),
            Column("why not"),
        ],
        rows,
    )


def _isoflop(report: dict[str, Any]) -> Table:
    return Table(
        "isoflop",
        "Best size at equal compute, by parabola",
        [
            Column("series"),
            Column("compute", "flops", "flops"),
            Column("sizes", "integer"),
            Column("best size", "count", "parameters"),
        ],
        [[b["series"], b["flops"], len(b["points"]), b["best_num_params"]] for b in report["size_and_data"]["budgets"]],
    )


def _wall_clock(report: dict[str, Any]) -> Table:
    clock = report["wall_clock"]
    return Table(
        "wall_clock",
        "Hours of training at the largest size and each series' critical batch",
        [
            Column("series"),
            Column("link", "number", "Gbit/s"),
            Column("batch", "count", "tokens"),
            Column("steps", "integer"),
            Column("exchanges", "integer"),
            Column("compression", "number"),
            Column("idealised", "hours"),
            Column("fixed devices", "hours"),
            Column("best run as recorded", "hours"),
        ],
        [
            [
                r["series"],
                r["bandwidth_gbits"],
                r["global_batch_tokens"],
                r["num_steps"],
                r["num_exchanges"],
                r["compression"],
                r["idealised_hours"],
                r["charles_hours"],
                r["measured_hours"],
            ]
            for r in clock["rows"]
        ],
    )


def _sensitivity_loss(report: dict[str, Any]) -> Table:
    return Table(
        "sensitivity_loss",
        "Laws of loss against compute under other choices; the ratio stands at the largest compute of the data",
        [
            Column("choice"),
            Column("series"),
            Column("irreducible loss", "loss"),
            Column("exponent", "ratio"),
            Column("compute ratio", "ratio"),
            Column("why not"),
        ],
        [
            [v["name"], v["series"], v["irreducible_loss"], v["exponent"], v["ratio"], v["reason"] or "–"]
            for v in report["sensitivity"]["loss"]
        ],
    )


def _sensitivity_critical_batch(report: dict[str, Any]) -> Table:
    part = report["sensitivity"]
    other = "least squares" if part["other_delta"] == "inf" else f"Huber {part['other_delta']:g}"
    return Table(
        "sensitivity_critical_batch",
        "Exponent of the critical batch by definition and loss function",
        [
            Column("series"),
            Column("definition"),
            Column("exponent", "ratio"),
            Column("95% interval", "ratio"),
            Column(f"by {other}", "ratio"),
        ],
        [
            [
                e["series"],
                e["definition"],
                e["exponent"],
                e["ci"],
                e["other_exponent"],
            ]
            for e in part["critical_batch"]
        ],
    )
