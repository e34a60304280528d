"""What several tables of a report show: a column with what stands in it, and tables made of such fields."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

from analysis.page.axis_labels import unit_of
from analysis.page.page_table import Column, Table

Entry = dict[str, Any]
Field = tuple[Column, str | Callable[[Entry], Any]]
"""A column, and which key of an entry stands in it or what follows from the entry."""


def table(name: str, caption: str, entries: Iterable[Entry], *fields: Field) -> Table:
    """A row for each entry."""
    rows = [[entry[value] if isinstance(value, str) else value(entry) for _, value in fields] for entry in entries]
    return Table(name, caption, [column for column, _ in fields], rows)


def inside(*keys: str) -> Callable[[Entry], Any]:
    """What lies in an entry at the end of `keys`; None where one of them holds None."""

    def value(entry: Entry) -> Any:
        found: Any = entry
        for key in keys:
            found = None if found is None else found[key]
        return found

    return value


def estimate(column: Column, *keys: str) -> tuple[Field, Field]:
    """A value and its interval."""
    interval = Column(f"{column.name} 95% interval", column.kind, joint=" ")
    return (column, inside(*keys, "value")), (interval, inside(*keys, "ci"))


def against(column: Column) -> tuple[Field, Field, Field]:
    """A comparison, its standard error, and the seeds that were compared one by one."""
    key = "against_baseline"
    return (
        (column, inside(key, "relative")),
        (Column(f"{column.name}, standard error", "spread", joint=" ± "), inside(key, "se")),
        (Column("paired seeds", "integer", joint=", paired "), _paired_seeds),
    )


def _paired_seeds(entry: Entry) -> int | None:
    """Seeds that were compared one by one, where there were several."""
    found = entry["against_baseline"]
    return found["paired_seeds"] if found and found["paired_seeds"] > 1 else None


def stands_on() -> tuple[Field, Field]:
    """Runs behind a result, of all used runs of its series."""
    return (
        (Column("runs behind it", "integer"), inside("stands_on", "runs")),
        (Column("runs of the series", "integer", joint=" of "), inside("stands_on", "of")),
    )


def batch(report: Entry, name: str = "batch") -> Field:
    """A batch in tokens, unless the table's column is in another unit."""
    return (Column(name, "count", unit_of(report, "global_batch_tokens", "tokens")), "global_batch_tokens")


def or_dash(key: str, separator: str = ", ") -> Callable[[Entry], Any]:
    """A text, or several joined; a dash where there is none."""

    def value(entry: Entry) -> Any:
        found = entry[key] or "–"
        return found if isinstance(found, str) else separator.join(found)

    return value


SERIES: Field = (Column("series"), "series")
SIZE: Field = (Column("size", "count", "parameters"), "num_params")
LOSS: Field = (Column("loss", "loss", "nats per token"), "loss")
LOSS_SE: Field = (Column("standard error of the loss", "standard_error", joint=" ± "), "loss_se")
SEEDS: Field = (Column("seeds", "integer"), "seeds")
COMPUTE: Field = (Column("compute", "flops", "flops"), "flops")
EDGES: Field = (Column("on a grid's edge"), or_dash("edges"))
WHY_NOT: Field = (Column("why not"), or_dash("reason"))
