"""Where the charged hours of the sweeps behind a report went, as their controllers have itemised them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from analysis.page.page_table import Column, Table
from analysis.report.table_fields import table
from muloco_runner.record import RecordError, read_all_goodput


def charged_hours(source: str) -> dict[str, Any]:
    """Hours by kind of every sweep under the folder that the runs came from; none for a table."""
    root = Path(source)
    root = root.parent if root.name == "runs" else root
    rows, problem = [], None
    try:
        for sweep, processor, goodput in read_all_goodput(root) if root.is_dir() else ():
            rates = goodput.rates
            rows += [
                {
                    "sweep": sweep,
                    "processor": processor,
                    "kind": kind,
                    "hours": goodput.hours[kind],
                    "share": share,
                    "tokens_per_hour": rates.get("tokens"),
                }
                for kind, share in goodput.shares.items()
            ]
    except RecordError as error:
        problem = str(error)
    return {"rows": rows, "problem": problem}


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
