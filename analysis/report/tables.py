"""The tables of a report, read from report.json's content."""

from __future__ import annotations

from typing import Any

from analysis.page.page_table import Table
from analysis.questions.registry import PARTS, QUESTIONS


def all_tables(report: dict[str, Any]) -> dict[str, Table]:
    """Every table that has rows, by name."""
    tables = [table for part in PARTS for table in part.tables(report)]
    tables += [table for question in QUESTIONS for table in question.tables_in(report)]
    return {table.name: table for table in tables if table.rows}
