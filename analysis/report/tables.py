"""The tables of a report, read from report.json's content."""

from __future__ import annotations

from typing import Any

from analysis.page.page_table import Table
from analysis.questions.registry import REGISTRY


def all_tables(report: dict[str, Any]) -> dict[str, Table]:
    """Every table that has rows, by name."""
    tables = [table for one in REGISTRY for table in one.tables_in(report)]
    return {table.name: table for table in tables if table.rows}
