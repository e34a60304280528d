"""Where the charged hours of the sweeps behind a report went, as their controllers have itemised them."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from analysis.page.page_table import Column, Table
from analysis.page.section import Block, Shown
from analysis.page.table_fields import table
from analysis.questions.question import Part
from muloco_runner.record import RecordError, read_all_goodput


@dataclass(frozen=True)
class KindOfHours:
    """Hours of one sweep of one kind."""

    sweep: str
    processor: str
    kind: str
    hours: float
    share: float
    tokens_per_hour: float | None
    """Of the whole sweep, for each charged hour."""


@dataclass(frozen=True)
class ChargedHours:
    """Charged hours of the sweeps under the source, by kind."""

    rows: list[KindOfHours]
    problem: str | None
    """Why a sweep's are not readable."""


def charged_hours(source: str) -> ChargedHours:
    """Hours by kind of every sweep under the folder that the runs came from; none for a table."""
    root = Path(source)
    root = root.parent if root.name == "runs" else root
    rows: list[KindOfHours] = []
    try:
        for sweep, processor, goodput in read_all_goodput(root) if root.is_dir() else ():
            tokens = goodput.rates.get("tokens")
            for kind, share in goodput.shares.items():
                rows.append(KindOfHours(sweep, processor, kind, goodput.hours[kind], share, tokens))
    except RecordError as error:
        return ChargedHours(rows, str(error))
    return ChargedHours(rows, None)


def table_of(report: dict[str, Any]) -> Table:
    """A row for each sweep and kind."""
    return table(
        "goodput",
        "Charged hours of the sweeps by what they were spent on",
        report["goodput"]["rows"],
        (Column("sweep"), "sweep"),
        (Column("charged for"), "kind"),
        (Column("hours of"), "processor"),
        (Column("hours", "number"), "hours"),
        (Column("share", "share"), "share"),
        (Column("tokens for each charged hour", "count"), "tokens_per_hour"),
    )


def section(report: dict[str, Any], drawn: bool) -> list[Block] | None:
    """Hours by kind; nothing is said of sources without a sweep's books."""
    part = report["goodput"]
    if not part["rows"] and not part["problem"]:
        return None
    problem = f" {part['problem']}." if part["problem"] else ""
    return [
        "GPUs, or CPUs of jobs without any, times the time from a job's start to its end, for all jobs of the sweeps "
        "that have ended; queueing is not in it. The kinds of a sweep add up to what it was charged. Lost is training "
        f"that no checkpoint held when its attempt ended.{problem}",
        Shown("goodput"),
    ]


PART = Part(
    "goodput",
    ChargedHours,
    lambda inputs: charged_hours(inputs.study.source),
    lambda report: [table_of(report)],
    title="Charged hours",
    section=section,
)
