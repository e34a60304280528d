"""The tables of a report, read from report.json's content: the same rows for HTML, Markdown, CSV and LaTeX."""

from __future__ import annotations

import csv
import io
from dataclasses import dataclass
from typing import Any

from analysis.report.numbers import show


@dataclass(frozen=True)
class Column:
    """A heading with its unit, and the kind of quantity below it."""

    name: str
    kind: str = "text"
    unit: str = ""

    @property
    def heading(self) -> str:
        return f"{self.name} ({self.unit})" if self.unit else self.name


@dataclass(frozen=True)
class Table:
    """Raw values; text is made where it is shown."""

    name: str
    caption: str
    columns: list[Column]
    rows: list[list[Any]]

    def cells(self) -> list[list[str]]:
        return [
            [show(value, column.kind) for value, column in zip(row, self.columns, strict=True)] for row in self.rows
        ]

    def to_csv(self) -> str:
        """Full precision; an interval takes two columns."""
        out = io.StringIO()
        writer = csv.writer(out, lineterminator="\n")
        pairs = [
            any(isinstance(row[i], list) and len(row[i]) == 2 for row in self.rows) for i in range(len(self.columns))
        ]
        header: list[str] = []
        for column, pair in zip(self.columns, pairs, strict=True):
            header += [f"{column.heading} low", f"{column.heading} high"] if pair else [column.heading]
        writer.writerow(header)
        for row in self.rows:
            line: list[Any] = []
            for value, pair in zip(row, pairs, strict=True):
                if pair:
                    line += value if value else ["", ""]
                else:
                    line.append("; ".join(map(str, value)) if isinstance(value, list) else value)
            writer.writerow(["" if v is None else v for v in line])
        return out.getvalue()

    def to_markdown(self) -> str:
        head = "| " + " | ".join(column.heading for column in self.columns) + " |"
        rule = "|" + "|".join("---" if column.kind == "text" else "---:" for column in self.columns) + "|"
        body = ["| " + " | ".join(cell.replace("|", "\\|") for cell in row) + " |" for row in self.cells()]
        return "\n".join([head, rule, *body])

    def to_latex(self) -> str:
        columns = "".join("l" if column.kind == "text" else "r" for column in self.columns)
        lines = [f"% {self.caption}", rf"\begin{{tabular}}{{{columns}}}", r"\hline"]
        lines.append(" & ".join(_latex(column.heading) for column in self.columns) + r" \\ \hline")
        lines += [" & ".join(_latex(cell) for cell in row) + r" \\" for row in self.cells()]
        return "\n".join([*lines, r"\hline", r"\end{tabular}", ""])


def _latex(text: str) -> str:
    for char, replacement in (("\\", r"\textbackslash{}"), ("&", r"\&"), ("%", r"\%"), ("_", r"\_"), ("#", r"\#"),
                              ("^", r"\^{}"), ("\u202f", r"\,"), ("–", "--")):  # fmt: skip
        text = text.replace(char, replacement)
    return text


def all_tables(report: dict[str, Any]) -> dict[str, Table]:
    """Every table that has rows, by name."""
    tables = [
        _verdict(report),
        _audit(report),
        _excluded(report),
        _loss_vs_batch(report),
        _critical_batch(report),
        _critical_batch_laws(report),
        _loss_compute(report),
        _iso_loss(report),
        _left_out(report),
        _hyper_parameters(report),
        _num_workers(report),
    ]
    return {table.name: table for table in tables if table.rows}


def _verdict(report: dict[str, Any]) -> Table:
    ratios = {(r["series"], r["flops"]): r for r in report["iso_loss"].get("ratios") or []}
    baseline = {
        row["num_params"]: row["loss"] for row in report["best"] if row["series"] == report["settings"]["baseline"]
    }
    rows = []
    for row in sorted(report["best"], key=lambda r: (r["num_params"], report["series"].index(r["series"]))):
        ratio = ratios.get((row["series"], row["flops"]))
        against = baseline.get(row["num_params"])
        flags = [*row["edges"]]
        if row["batch_edge"]:
            flags.append("only one batch" if row["batch_edge"] == "only one batch" else f"batch {row['batch_edge']}")
        rows.append(
            [
                row["num_params"],
                row["series"],
                row["loss"],
                row["loss"] / against - 1 if against else None,
                ratio["value"] if ratio else None,
                ratio["ci"] if ratio else None,
                row["global_batch_tokens"],
                row["lr"],
                ", ".join(flags) or "–",
            ]
        )
    return Table(
        "verdict",
        "Best loss of every series at each size, against the baseline, and the compute the baseline needs for it",
        [
            Column("size", "count", "parameters"),
            Column("series"),
            Column("loss", "loss", "nats per token"),
            Column("against baseline", "percent"),
            Column("compute ratio", "ratio"),
            Column("95% interval", "ratio"),
            Column("best batch", "count", "tokens"),
            Column("best lr", "number"),
            Column("on a grid's edge"),
        ],
        rows,
    )


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
                report["critical_batch"]["definitions"][law["definition"]],
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


def _iso_loss(report: dict[str, Any]) -> Table:
    return Table(
        "iso_loss",
        "Compute of the baseline over compute of the series, at equal loss",
        [
            Column("series"),
            Column("compute", "flops", "flops"),
            Column("ratio", "ratio"),
            Column("95% interval", "ratio"),
        ],
        [[r["series"], r["flops"], r["value"], r["ci"]] for r in report["iso_loss"].get("ratios") or []],
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
            for h in report["hyper_parameters"]
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
            for r in report["num_workers"]
        ],
    )
