"""Any table of runs -> the study that run folders give. Every row is used or named with the reason why not.

A run's identity is as wide as the vocabulary: rows that differ in a documented column, or in one that the user
declares, are different runs. A column that nobody declared, and in which rows differ that agree in everything else,
withholds the ranking: it may be a setting.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any, assert_never

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from analysis.budgets import cluster_budgets
from analysis.input.cells import LARGEST_EXACT, NOT_A_NUMBER, NOT_FINITE, OK, Numbers, written
from analysis.input.columns import COLUMNS, EITHER, METHOD, NEEDED, listed
from analysis.input.cross_checks import check_runs
from analysis.input.declared_columns import Declared, OtherColumns, caution_of_unlike_losses, declared_columns
from analysis.input.mapping import Reader, find_origins, read_mapping
from analysis.input.run_rows import Excluded
from analysis.input.table_files import Table
from analysis.repeats import number_repeats, why_curves, why_partly_seeded, why_unranked, without_seeds
from analysis.runs import SETTING, Study, hyper_parameters_of
from analysis.series import series_labels
from muloco_runner.config import ConfigError
from muloco_runner.config.method import WITH_INNER_NAMED

FINISHED = frozenset({"finished", "complete", "completed", "success", "succeeded", "done", "ok"})
UNFINISHED = frozenset({
    "running", "pending", "queued", "scheduled", "starting", "crashed", "failed", "killed", "preempted", "preempting",
    "stopped", "cancelled", "canceled", "timeout", "interrupted", "error", "aborted",
})  # fmt: skip


def study_of_table(
    source: str, table: pd.DataFrame | Table, mapping: Mapping[str, Any], declared: Declared | None = None
) -> Study:
    """The table as a study. Missing columns raise `ConfigError`; rows that cannot be used are excluded by name."""
    declared = declared or Declared()
    table = table if isinstance(table, Table) else Table(source, table.reset_index(drop=True))
    origins = find_origins(table, mapping, [*COLUMNS], [*NEEDED, *EITHER])
    headings = [str(one) for one in table.frame.columns]
    for name in NEEDED:
        if name not in origins:
            raise ConfigError(f"{source}: no column {name}; it has {listed(headings)}; name it in a --mapping file")
    if not any(name in origins for name in EITHER):
        raise ConfigError(f"{source}: needs a column {' or '.join(EITHER)}; it has {listed(headings)}")
    reader = Reader(table, origins, declared.decimal)
    runs, reasons, unknown_state = _checked(reader)
    used = {heading for name, one in origins.items() if name != unknown_state for heading in one.columns}
    unread = [heading for heading in headings if heading not in used]
    others = declared_columns(source, reader.frame, unread, declared)
    rows = _Rows(runs, reasons, reader.table)
    rows.exclude_duplicates(_content(reader, [name for name in unread if name not in others.bookkeeping], declared))
    findings = check_runs(rows.kept(), set(origins))
    rows.exclude(findings.rows)
    kept = rows.kept()
    excluded = [*rows.excluded(), *(Excluded(name, reason) for name, reason in table.dropped)]
    if kept.empty:
        reason = f"; the first: {excluded[0].reason}" if excluded else ""
        raise ConfigError(f"{source}: none of {len(runs) + len(table.dropped)} rows can be used{reason}")
    completed = _completed(kept, declared.budget_tolerance)
    frame, notes = _labelled(completed, reader.table, others)
    seedless = without_seeds(frame, reader)
    withheld, cautions = why_unranked(frame, reader, others.undeclared, declared.unlabelled_repeats)
    if withheld is None and not declared.unlabelled_repeats:
        withheld = why_partly_seeded(frame, seedless) or why_curves(frame, reader)
    cautions += [*_cautions_of_names(frame, unknown_state, reader), *_cautions_of_workers(completed)]
    whole = [one.column for name, one in origins.items() if one.column is not None and name != unknown_state]
    cautions += caution_of_unlike_losses(pd.DataFrame(reader.frame.loc[frame.index]), others, whole)
    if declared.unlabelled_repeats:
        number_repeats(frame, seedless)
    return Study(
        source,
        _in_order(frame),
        sorted(excluded, key=lambda e: (e.reason, e.run_id)),
        notes=[*reader.notes, *notes],
        cautions=[*findings.cautions, *cautions],
        columns={name: str(one) for name, one in origins.items() if name != unknown_state} | others.used(),
        unused=[name for name in unread if name not in (*others.identity, *others.settings)],
        withheld=withheld,
        unusable=findings.unusable,
    )


# Rows


class _Rows:
    """Rows of a table, each with the reason why it is not used, or an empty text."""

    def __init__(self, runs: pd.DataFrame, reasons: NDArray[Any], table: Table) -> None:
        self.runs = runs
        self.table = table
        self.reasons = reasons

    def kept(self) -> pd.DataFrame:
        return pd.DataFrame(self.runs[self.reasons == ""])

    def exclude(self, reasons: pd.Series[str]) -> None:
        self.reasons[reasons.index.to_numpy()] = reasons.to_numpy()

    def exclude_duplicates(self, others: pd.DataFrame) -> None:
        """Rows that agree in our columns and in `others`: one run, written twice."""
        kept = self.kept()
        # Few rows agree even in these: the others need no look at every cell.
        alike = kept.duplicated(["algorithm", "num_params", "global_batch_tokens", "lr", "seed", "loss"], keep=False)
        content = kept[alike].drop(columns="run_id").join(others.add_prefix("other "))
        if "other loss" in content:
            content["other loss"] = content["other loss"].where(content["diverged"], "")
        content = content.astype({name: str for name in content if content[name].dtype == object})
        repeated = content.duplicated()
        if repeated.any():
            first = content.groupby(list(content.columns), dropna=False, sort=False).ngroup()
            origin = first.map(pd.Series(content.index, index=first).groupby(level=0).first())
            self.exclude("duplicate of " + origin[repeated].map(self.table.row_name))

    def excluded(self) -> list[Excluded]:
        rows = np.flatnonzero(self.reasons != "")
        return [Excluded(str(self.runs["run_id"].iloc[row]), str(self.reasons[row])) for row in rows]


def _content(reader: Reader, others: list[str], declared: Declared) -> pd.DataFrame:
    """What tells two rows apart beside our columns: other columns, of repeats also the name and the cell of a loss."""
    content = pd.DataFrame(reader.frame[others])
    if declared.unlabelled_repeats:
        for heading in reader.origins["loss"].columns:
            content["loss"] = reader.frame[heading].astype(str)
        content["run_id"] = reader.texts("run_id") if "run_id" in reader.origins else ""
    return content


def _checked(reader: Reader) -> tuple[pd.DataFrame, NDArray[Any], str | None]:
    """Our columns as numbers; for each row why it cannot be used; `state` where that column holds something else."""
    frame = reader.frame
    reasons = np.full(len(frame), "", dtype=object)

    def complain(bad: NDArray[np.bool_], text: str | None = None, name: str = "", end: str = "") -> None:
        for row in np.flatnonzero(bad & (reasons == "")):
            reasons[row] = text or f"damaged: {reader.shown(name, int(row))} {end}"

    runs = pd.DataFrame(index=frame.index)
    runs["run_id"] = row_names(reader)
    unknown_state = complain_of_states(reader, complain)
    runs["algorithm"] = reader.texts("algorithm")
    complain((runs["algorithm"] == "").to_numpy(), "damaged: no algorithm")
    diverged = np.zeros(len(frame), dtype=bool)
    if "diverged" in reader.origins:
        diverged, unclear = yes_or_no(reader.texts("diverged"))
        complain(unclear, name="diverged", end="is neither yes nor no")
    # Data parallel it is one; of methods whose workers train apart it must be said.
    runs["workers_known"] = False
    for name, column in COLUMNS.items():
        if column.kind is None:
            continue
        if name not in reader.origins:
            runs[name] = np.nan if column.default is None else column.default
            continue
        found = reader.numbers(name)
        if name == "loss":
            diverged = diverged | (found.states == NOT_FINITE)
        complain(found.states == NOT_A_NUMBER, name=name, end="is no number")
        complain((found.states == NOT_FINITE) & (name != "loss"), name=name, end="must be a finite number")
        _complain_of_size(name, found, diverged & (name == "loss"), complain)
        default = np.nan if column.default is None else column.default
        runs[name] = np.where(found.states == OK, found.values, default)
        if name == "num_workers":
            runs["workers_known"] = found.states == OK
        if name == "seed":
            runs[name] = _seeds(reader, found)
    for name in ("num_params", "global_batch_tokens"):
        complain(runs[name].isna().to_numpy(), f"damaged: no {name}")
    complain(runs["loss"].isna().to_numpy() & ~diverged, "damaged: no loss")
    tokens = runs["num_tokens"].fillna(runs["tokens_per_parameter"] * runs["num_params"]).to_numpy()
    complain(tokens > _MOST_COUNTED, f"damaged: more than {_MOST_COUNTED:.1g} tokens")
    complain(tokens < 1, "damaged: less than one token")
    complain(runs[list(EITHER)].isna().all(axis=1).to_numpy(), f"damaged: neither {' nor '.join(EITHER)}")
    runs["diverged"] = diverged
    runs["loss"] = runs["loss"].mask(diverged)
    return runs, reasons, unknown_state


_MOST_COUNTED = 9e18
"""Larger whole numbers do not fit into 64 bits."""


def _complain_of_size(name: str, found: Numbers, free: NDArray[np.bool_], complain: Any) -> None:
    """Name the cells of a column that are too small or too large for it, but in the rows that are `free`."""
    column, values = COLUMNS[name], found.values
    known = (found.states == OK) & ~free
    match column.sign:
        case "positive":
            complain(known & (values <= 0), name=name, end="must be a positive number")
        case "not negative":
            complain(known & (values < 0), name=name, end="must not be negative")
        case "any":
            pass
        case _:
            assert_never(column.sign)
    if column.kind == "count":
        end = f"is less than one: in another unit? Map {name}: {{column: ..., factor: 1e6}} or 1e9"
        complain(known & (values > 0) & (values < 1), name=name, end=end)
        complain(known & (values > _MOST_COUNTED), name=name, end=f"must be below {_MOST_COUNTED:.1g}")


def _seeds(reader: Reader, found: Numbers) -> NDArray[np.float64]:
    """The seeds, those beyond 2^53 as numbers in their order; rows without one have one that no other row has."""
    known = found.states == OK
    values = np.where(known, found.values, 0.0)
    column = reader.origins["seed"].column
    if column is not None and (np.abs(values) >= LARGEST_EXACT).any():
        texts = _cells(reader.table, column, reader.frame.index).fillna("")
        order = sorted(texts[known].unique(), key=lambda text: (len(text), text))
        values = np.where(known, texts.map({text: float(i) for i, text in enumerate(order)}), 0.0)
        reader.notes.append(f"seeds: beyond 2^53, so numbered from 0 to {len(order) - 1} in their order")
    if known.any():
        values[~known] = values[known].min() - 1
    return values


def row_names(reader: Reader) -> pd.Series[str]:
    """The name of each run: `row 1`, ... where a table has none, and beside names that stand twice.

    Where a table is of several files, with the file.
    """
    names = reader.texts("run_id") if "run_id" in reader.origins else pd.Series("", index=reader.frame.index)
    unclear = ((names == "") | names.duplicated(keep=False)).to_numpy()
    rows = np.flatnonzero(unclear)
    out = names.astype(object).to_numpy(copy=True)
    places = {row: reader.table.row_name(int(row)) for row in rows}
    out[rows] = [f"{out[row]} ({place})" if out[row] else place for row, place in places.items()]
    return pd.Series(out, index=names.index, dtype=object)


def complain_of_states(reader: Reader, complain: Any) -> str | None:
    """Leave out runs that are not finished; the name of the column where it holds something else than states."""
    if "state" not in reader.origins:
        return None
    states = reader.texts("state")
    known = {str(text): str(text).lower() for text in states.unique() if text}
    if not {*known.values()} & (FINISHED | UNFINISHED):
        return "state"
    for text, state in sorted(known.items()):
        if state not in FINISHED:
            complain((states == text).to_numpy(), f"unfinished: {state}")
    return None


def yes_or_no(texts: pd.Series[str]) -> tuple[NDArray[np.bool_], NDArray[np.bool_]]:
    """Which cells say yes, and which say neither yes nor no; an empty one says no."""
    words = {str(text): str(text).lower() for text in texts.unique()}
    yes = [text for text, word in words.items() if word in ("true", "t", "1", "1.0", "yes", "y", "diverged")]
    no = [text for text, word in words.items() if word in ("", "false", "f", "0", "0.0", "no", "n", "nan", "none")]
    said = texts.isin(yes).to_numpy()
    return said, ~said & ~texts.isin(no).to_numpy()


def _exact_cells(table: Table, name: str) -> pd.Series[Any]:
    """A column's cells, no two of which are one number only because they were read as floating point."""
    cells = table.frame[name]
    if cells.dtype.kind != "f" or not (cells.abs() >= LARGEST_EXACT).any():
        return cells
    cells = table.as_text().frame[name]
    if cells.dtype.kind == "f":
        raise ConfigError(
            f"{table.source}: {name} holds numbers beyond 2^53 in floating point, where neighbours are one number: "
            "write that column as text"
        )
    return cells


def _cells(table: Table, name: str, rows: pd.Index[Any]) -> pd.Series[Any]:
    """A column's cells as text, `2.0` and `2` the same in a column of numbers."""
    cells = _exact_cells(table, name).loc[rows]
    codes, unique = pd.factorize(cells.astype(object), use_na_sentinel=True)
    words = [written(cell) if isinstance(cell, float) else str(cell).strip() for cell in unique]
    return pd.Series(np.array([*words, None], dtype=object)[codes], index=rows, dtype=object)


# The study


def _completed(runs: pd.DataFrame, tolerance: float) -> pd.DataFrame:
    """What follows from the columns that are there, and what a table never says."""
    tokens = runs["num_tokens"].fillna((runs["tokens_per_parameter"] * runs["num_params"]).round())
    per_parameter = runs["tokens_per_parameter"].fillna(tokens / runs["num_params"])
    steps = (tokens / runs["global_batch_tokens"]).round().clip(lower=1)
    runs = runs.assign(
        num_tokens=tokens.round().astype("int64"),
        tokens_per_parameter=cluster_budgets(per_parameter.to_numpy(), runs["num_params"].to_numpy(), tolerance),
        own_budget=per_parameter,
        num_steps=runs["num_steps"].fillna(steps).round().astype("int64"),
        flops=runs["flops"].fillna(6.0 * runs["num_params"] * tokens),
        attempts=1, device="", corpus_hash="",
    )  # fmt: skip
    # Zero stands for no interval, as an empty cell does.
    runs = runs.assign(sync_interval=runs["sync_interval"].replace(0, np.nan))
    whole = ("num_params", "global_batch_tokens", "num_workers", "num_fragments", "delay_steps")
    return runs.assign(**{name: runs[name].round().astype("int64") for name in whole})


def _labelled(runs: pd.DataFrame, cells: Table, others: OtherColumns) -> tuple[pd.DataFrame, list[str]]:
    """The runs with `series` and `hyper_parameters`, and notes on budgets that count as one."""
    identity = {f"own {name}": _cells(cells, name, runs.index) for name in others.identity}
    keys = ["algorithm", *METHOD, "workers_known"]
    content = runs[keys].assign(**identity)
    codes = content.groupby([*content.columns], dropna=False, sort=True).ngroup().to_numpy()
    kinds, first = np.unique(codes, return_index=True)
    records = [
        {"algorithm": row["algorithm"], "method": _method(row, others.identity)}
        for row in content.iloc[first].to_dict("records")
    ]
    labels = np.empty(len(kinds), dtype=object)
    labels[:] = series_labels(records)
    parts = [f"{name}=" + _cells(cells, name, runs.index).fillna("").astype(str) for name in others.settings]
    if runs["gathered_values"].nunique() > 1:
        parts.append("gathered_values=" + runs["gathered_values"].astype(str))
    setting = pd.concat(parts, axis=1).agg(" ".join, axis=1) if len(parts) > 1 else parts[0] if parts else ""
    runs = runs.assign(series=labels[codes], setting=setting)
    runs["hyper_parameters"] = hyper_parameters_of(runs)
    notes = []
    for budget, own in runs.groupby("tokens_per_parameter")["own_budget"]:
        low, high = own.min(), own.max()
        if high / low > 1.001:
            notes.append(f"budgets from {low:.3g} to {high:.3g} tokens per parameter count as one, {budget:g}")
    return runs.drop(columns=["own_budget", "workers_known"]), notes


_TRAINS_APART = re.compile(rf"DiLoCo|MuLoCo|({'|'.join(WITH_INNER_NAMED)})-.*")
"""Algorithms (`DiLoCoConfig.algorithm`) whose workers train apart: K is named, also where it is 1."""


def _method(row: Mapping[Any, Any], identity: tuple[str, ...]) -> dict[str, Any]:
    """What of a row's method is not the usual; None stands for the usual, which no label names."""
    apart = row["workers_known"] and (_TRAINS_APART.fullmatch(row["algorithm"]) or row["num_workers"] > 1)
    interval, bits = row["sync_interval"], row["bits_per_value"]
    return {
        **({"num_workers": int(row["num_workers"])} if apart else {}),
        "sync_interval": None if np.isnan(interval) else written(interval),
        "num_fragments": int(row["num_fragments"]) if row["num_fragments"] != 1 else None,
        "delay_steps": int(row["delay_steps"]) or None,
        "bits_per_value": None if np.isnan(bits) else written(bits),
        **{name: row[f"own {name}"] for name in identity},
    }


def _cautions_of_workers(runs: pd.DataFrame) -> list[str]:
    """Runs of methods whose workers train apart that do not say how many there are."""
    unknown = runs[~runs["workers_known"] & runs["algorithm"].str.fullmatch(_TRAINS_APART)]
    if unknown.empty:
        return []
    names = listed(sorted(unknown["algorithm"].unique()), 6)
    return [
        f"K is not known of {len(unknown)} runs of {names}, which count as K=1 wherever a number is needed: map "
        "num_workers, and fill in its empty cells."
    ]


def _cautions_of_names(runs: pd.DataFrame, unknown_state: str | None, reader: Reader) -> list[str]:
    """Algorithms that differ in spelling alone, and a column of states of which none is known."""
    cautions = []
    spellings: dict[str, set[str]] = {}
    for name in runs["algorithm"].unique():
        spellings.setdefault(re.sub(r"[\s_-]+", "", str(name).casefold()), set()).add(str(name))
    for names in spellings.values():
        if len(names) > 1:
            cautions.append(
                f"Algorithms {' and '.join(sorted(names))} differ in spelling alone, and are series of their own."
            )
    if unknown_state is not None:
        words = sorted({str(text) for text in reader.texts("state").unique() if text})
        cautions.append(
            f"The column {reader.origins['state']} has no state that is known ({listed(words, 6) or 'all empty'}): all "
            "rows count as finished."
        )
    return cautions


def _in_order(runs: pd.DataFrame) -> pd.DataFrame:
    """The same runs in the same order, however the rows of the table were ordered."""
    setting = runs.groupby(SETTING, observed=True, sort=True).ngroup()
    order = np.lexsort((runs["loss"].to_numpy(), runs["seed"].to_numpy(), setting.to_numpy()))
    return runs.iloc[order].reset_index(drop=True)


__all__ = ["Declared", "read_mapping", "study_of_table"]
