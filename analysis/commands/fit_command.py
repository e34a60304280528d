"""`muloco-report fit`: one law fitted to one table, for scripts and for a look."""

from __future__ import annotations

import argparse
import dataclasses
import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import yaml

from analysis.commands.arguments import add_reading_arguments, positive_or_inf, resamples, whole
from analysis.input.cells import MISSING, NOT_A_NUMBER, NOT_FINITE, OK, Decimal, Numbers
from analysis.input.columns import FIT_COLUMNS, find_column, listed, usual_headings
from analysis.input.cross_checks import Findings, check_runs
from analysis.input.mapping import Origin, Reader, find_origins, origin
from analysis.input.table_files import Table, read_table
from analysis.table import complain_of_states, row_names, yes_or_no
from muloco_runner.config import ConfigError

if TYPE_CHECKING:
    import pandas as pd

    from analysis.laws.fit import Fit


@dataclass(frozen=True)
class Form:
    """A law by name: the columns it needs, in the fitter's order."""

    columns: tuple[str, ...]
    formula: str
    groups: bool = False
    """Whether a column `series` gives each series its own curve over one irreducible loss."""


FORMS = {
    "power": Form(("x", "y"), "y = A * x^alpha"),
    "loss-compute": Form(("flops", "loss"), "loss = E + A * flops^-alpha", groups=True),
    "chinchilla": Form(("num_params", "num_tokens", "loss"), "loss = E + A * num_params^-alpha + B * num_tokens^-beta"),
    "critical-batch": Form(("num_tokens", "critical_batch_size"), "critical_batch_size = A * num_tokens^alpha"),
}


@dataclass(frozen=True)
class TableFit:
    """A fit with where its numbers come from."""

    fit: Fit
    columns: dict[str, str]
    """Our columns -> the table's."""
    num_rows: int
    skipped: tuple[tuple[str, str], ...]
    """(row, reason) of rows that take no part."""
    notes: tuple[str, ...]
    unused: tuple[str, ...]
    """Columns of the table that nothing was read from."""

    def to_dict(self) -> dict[str, Any]:
        return {
            **self.fit.to_dict(),
            "columns": self.columns,
            "unused_columns": list(self.unused),
            "rows": {
                "found": self.num_rows,
                "used": self.fit.num_points,
                "skipped": [list(one) for one in self.skipped],
            },
            "notes": list(self.notes),
        }


def fit_table(
    form: str,
    table: Table,
    *,
    mapping: Mapping[str, Any],
    bootstrap: int,
    delta: float,
    seed: int = 0,
    decimal: Decimal | None = None,
    resample_by: str | None = None,
) -> TableFit:
    """The law `form` on the table's columns; `mapping` is as in a mapping file. Mistakes raise `ConfigError`.

    Rows that agree in the column `resample_by` ("run": the column of runs) are resampled together.

    Rows that miss a number, or whose numbers contradict those of all others, are skipped by name.
    """
    from analysis.laws import power_law

    wanted = FORMS[form]
    optional = ("series",) if wanted.groups else ()
    for name in mapping:
        if name not in (*wanted.columns, *optional):
            raise ConfigError(
                f"--column {name}: {form} has no such column; it takes {', '.join((*wanted.columns, *optional))}"
            )
    if table.frame.empty:
        raise ConfigError("the table has no rows")
    reader, derived = _reader(table, mapping, (*wanted.columns, *optional), decimal)
    rows = _Rows(reader, (*wanted.columns, *(one for one in optional if one in reader.origins)), derived)
    findings = rows.checked()
    for name in wanted.columns:
        for source in derived.get(name, (name,)):
            if source in findings.unusable:
                raise ConfigError(f"no law is fitted from {source}: {findings.unusable[source]}")
    columns = [rows.values(name) for name in wanted.columns]
    options: dict[str, Any] = {"bootstrap": bootstrap, "delta": delta, "seed": seed}
    series = rows.texts("series") if "series" in reader.origins else []
    # One algorithm is no group: its parameters keep their plain names.
    if wanted.groups and ("series" in (*mapping, str(reader.origins.get("series"))) or len(set(series)) > 1):
        options["groups"] = series
    if resample_by is not None:
        options["resample_by"] = _clusters(table, reader, rows, resample_by)
    fitters: dict[str, Callable[..., Fit]] = {
        "power": power_law.fit_power_law,
        "loss-compute": power_law.fit_loss_compute,
        "chinchilla": power_law.fit_chinchilla,
        "critical-batch": power_law.fit_critical_batch,
    }
    skipped = (*rows.skipped(), *table.dropped)
    try:
        fit = fitters[form](*columns, **options)
    except ValueError as error:
        raise ConfigError(f"{error}{_shown_rows(skipped)}") from None
    clusters = len(set(options.get("resample_by", ())))
    if resample_by is not None and clusters <= fit.num_parameters:
        raise ConfigError(
            f"--resample-by {resample_by}: {clusters} of them for {fit.num_parameters} parameters; at least "
            f"{fit.num_parameters + 1} are needed"
        )
    keys = [*columns, options["groups"]] if "groups" in options else columns
    repeated = len(keys[0]) - len(set(zip(*keys, strict=True)))
    warnings = [f"{repeated} row(s) repeat another: each counts, as a point of its own"] if repeated else []
    warnings += _pooled(reader.frame, rows) if "groups" not in options else []
    warnings += _dependent(reader, rows) if resample_by is None else []
    fit = dataclasses.replace(fit, warnings=(*fit.warnings, *warnings, *findings.cautions))
    read = {heading for one in reader.origins.values() for heading in one.columns}
    unused = tuple(str(heading) for heading in reader.frame.columns if heading not in read)
    used = {name: str(reader.origins[name]) for name in (*wanted.columns, *optional) if name in reader.origins}
    used |= {name: f"{' and '.join(parts)} by flops = 6 N D" for name, parts in derived.items()}
    return TableFit(fit, used, len(table.frame) + len(table.dropped), skipped, tuple(reader.notes), unused)


def _clusters(table: Table, reader: Reader, rows: _Rows, column: str) -> list[str]:
    """The cell of every used row in the column by which rows are resampled together."""
    headings = [str(one) for one in table.frame.columns]
    if column not in headings and column != "run":
        raise ConfigError(f"--resample-by {column}: no such column; the table has {listed(headings)}")
    if column not in headings and "run_id" not in reader.origins:
        raise ConfigError(f"--resample-by run: no column of runs; name one of {listed(headings)}")
    cells = reader.frame[column].astype(str) if column in headings else reader.texts("run_id")
    return [str(cell) for cell in cells[rows.used]]


def _dependent(reader: Reader, rows: _Rows) -> list[str]:
    """A warning where several rows belong to one run: resampled one by one they pass for independent."""
    if "run_id" not in reader.origins:
        return []
    runs = reader.texts("run_id")[rows.used]
    if len(set(runs)) == len(runs):
        return []
    return [
        f"{len(runs)} rows belong to {len(set(runs))} runs: intervals that take rows for independent are too narrow; "
        "say --resample-by run"
    ]


def _pooled(frame: pd.DataFrame, rows: _Rows) -> list[str]:
    """A warning for each column in which the rows are of several algorithms, though the law is one for all."""
    out = []
    for heading in usual_headings([str(one) for one in frame.columns], "series"):
        names = sorted({str(cell).strip() for cell in frame.loc[rows.used, heading].dropna()})
        if len(names) > 1:
            out.append(
                f"one law for the rows of all {len(names)} values of {heading} ({listed(names, 6)}): where they "
                "differ, give each a table of its own"
            )
    return out


def _reader(
    table: Table, mapping: Mapping[str, Any], wanted: tuple[str, ...], decimal: Decimal | None
) -> tuple[Reader, dict[str, tuple[str, str]]]:
    """A reader of all that is wanted, and which of N and D follows from the other two of C = 6ND."""
    headings = [str(one) for one in table.frame.columns]
    origins = {}
    derived: dict[str, tuple[str, str]] = {}
    others = {"num_params": "num_tokens", "num_tokens": "num_params"}
    for name in wanted:
        if name in mapping:
            origins[name] = origin(name, mapping[name], table)
            continue
        found = _find(headings, name, table)
        if found is None and name in others and "flops" not in wanted:
            parts = (others[name], "flops")
            if all(part in mapping or _find(headings, part, table) is not None for part in parts):
                derived[name] = parts
                continue
        if found is None and name != "series":
            raise ConfigError(
                f"the table has no column {name!r}; it has {listed(headings)}; say --column {name}=ITS_NAME"
            )
        if found is not None:
            origins[name] = Origin(column=found)
    checked = ("num_params", "num_tokens", "flops", "num_steps", "global_batch_tokens", "diverged", "state", "run_id")
    if "loss" in wanted or "critical_batch_size" in wanted:
        origins = find_origins(table, {}, [one for one in checked if one not in derived], []) | origins
    return Reader(table, origins, decimal), derived


def _find(headings: list[str], name: str, table: Table) -> str | None:
    return find_column(headings, name, table.ambiguous, f"say --column {name}=ITS_NAME")


class _Rows:
    """The rows of a table that a law rests on, and why the others are skipped."""

    def __init__(self, reader: Reader, wanted: tuple[str, ...], derived: Mapping[str, tuple[str, str]]) -> None:
        import numpy as np
        import pandas as pd

        self._reader, self._derived = reader, derived
        self._reasons = np.full(len(reader.frame), "", dtype=object)
        self._runs = pd.DataFrame({"run_id": row_names(reader), "diverged": False}, index=reader.frame.index)
        complain_of_states(reader, self._complain)
        if "diverged" in reader.origins:
            diverged, unclear = yes_or_no(reader.texts("diverged"))
            self._complain(diverged, "diverged")
            self._complain(unclear, "diverged is neither yes nor no")
        needed = [part for name in wanted for part in derived.get(name, (name,))]
        for name, column in FIT_COLUMNS.items():
            if column.kind is None:
                continue
            self._runs[name] = np.nan
            if name in reader.origins:
                found = reader.numbers(name)
                self._runs[name] = np.where(found.values > 0, found.values, np.nan) if column.positive else found.values
                if name in needed:
                    self._complain_of_cells(name, found)
        if "series" in wanted:
            self._complain((reader.texts("series") == "").to_numpy(), "no series")

    def _complain(self, bad: Any, reason: str) -> None:
        self._reasons[bad & (self._reasons == "")] = reason

    def _complain_of_cells(self, name: str, found: Numbers) -> None:
        for state, word in ((MISSING, f"no {name}"), (NOT_A_NUMBER, "no number"), (NOT_FINITE, "not finite")):
            for row in (found.states == state).nonzero()[0]:
                if self._reasons[row] == "":
                    shown = self._reader.shown(name, int(row))
                    self._reasons[row] = word if state == MISSING else f"{shown}: {word}"
        for row in ((found.states == OK) & (found.values <= 0)).nonzero()[0]:
            if self._reasons[row] == "":
                self._reasons[row] = f"{self._reader.shown(name, int(row))}: not positive"

    def checked(self) -> Findings:
        """Cross-checks of the columns; rows that contradict all others are skipped."""
        findings = check_runs(self._runs[self._reasons == ""], set(self._reader.origins))
        self._reasons[findings.rows.index.to_numpy()] = findings.rows.to_numpy()
        return findings

    @property
    def used(self) -> Any:
        """Which rows take part."""
        return self._reasons == ""

    def values(self, name: str) -> Any:
        rows = self._runs[self.used]
        if name in self._derived:
            other, compute = self._derived[name]
            return (rows[compute] / (6.0 * rows[other])).to_numpy()
        return rows[name].to_numpy()

    def texts(self, name: str) -> list[str]:
        return [str(text) for text in self._reader.texts(name)[self._reasons == ""]]

    def skipped(self) -> tuple[tuple[str, str], ...]:
        rows = (self._reasons != "").nonzero()[0]
        return tuple((str(self._runs["run_id"].iloc[row]), str(self._reasons[row])) for row in rows)


def _shown_rows(skipped: tuple[tuple[str, str], ...], most: int = 5) -> str:
    if not skipped:
        return ""
    named = "; ".join(f"{name} ({reason})" for name, reason in skipped[:most])
    return f"; {len(skipped)} row(s) skipped: {named}" + (" ..." if len(skipped) > most else "")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Options of a fit, and how cells are read."""
    parser.add_argument("form", metavar="FORM", choices=sorted(FORMS), help=" | ".join(FORMS))
    parser.add_argument(
        "table",
        metavar="TABLE",
        type=Path,
        help="a .csv, .tsv, .parquet, .jsonl or .json file, also .gz or in a .zip, or an .xlsx",
    )
    parser.add_argument(
        "--column", action="append", default=[], metavar="NAME=COLUMN",
        help="the table's own name of a column, arithmetic on columns (flops='6 * n * d'), or {column: ..., unit: ...}",
    )  # fmt: skip
    parser.add_argument(
        "--bootstrap", type=resamples, default=1000, help="resamples behind each interval, 0 for none (%(default)s)"
    )
    parser.add_argument(
        "--delta",
        type=positive_or_inf,
        default=1e-3,
        help="Huber's delta in log space; inf is least squares (%(default)s)",
    )  # fmt: skip
    parser.add_argument("--seed", type=whole, default=0, help="of the resampling (%(default)s)")
    parser.add_argument(
        "--resample-by", metavar="COLUMN",
        help="rows that agree in it are resampled together: run, where runs have several rows (default: row by row)",
    )  # fmt: skip
    parser.add_argument("--json", action="store_true", help="everything about the fit, for a program")
    add_reading_arguments(parser)


def run_fit(options: argparse.Namespace) -> int:
    found = fit_table(
        options.form,
        read_table(options.table, options.separator, options.part),
        mapping=_mapping(options.column),
        bootstrap=options.bootstrap,
        delta=options.delta,
        seed=options.seed,
        decimal=options.decimal,
        resample_by=options.resample_by,
    )
    if options.json:
        print(json.dumps(found.to_dict(), indent=1, allow_nan=False))
        return 0
    fit = found.fit
    print(f"{fit.formula}, {fit.num_points} points, objective {fit.objective:.6g} (Huber, delta {fit.delta:g})")
    for name, estimate in fit.parameters.items():
        spread = ""
        if estimate.ci is not None:
            spread = f"  se {estimate.se:.3g}  95% [{estimate.ci[0]:.6g}, {estimate.ci[1]:.6g}]"
        print(f"  {name:12} {estimate.value:.6g}{spread}")
    print("  columns: " + ", ".join(name if name == own else f"{name} = {own}" for name, own in found.columns.items()))
    print("  columns not used: " + (listed(found.unused) or "none"))
    print(f"  rows: {fit.num_points} of {found.num_rows}{_shown_rows(found.skipped)}")
    for note in (*found.notes, *fit.warnings):
        print(f"  note: {note}")
    return 0


def _mapping(pairs: list[str]) -> dict[str, Any]:
    mapping: dict[str, Any] = {}
    for pair in pairs:
        name, separator, column = pair.partition("=")
        if not separator or not column:
            raise ConfigError(f"--column {pair}: write NAME=COLUMN")
        mapping[name] = column
        if column.startswith("{"):
            try:
                mapping[name] = yaml.safe_load(column)
            except yaml.YAMLError as error:
                raise ConfigError(f"--column {pair}: not YAML ({' '.join(str(error).split())})") from None
    return mapping
