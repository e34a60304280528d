"""A sheet of a workbook (.xlsx) as rows of cells."""

from __future__ import annotations

from itertools import zip_longest
from pathlib import Path
from typing import Any

import pandas as pd

from analysis.input.table_source import chosen
from muloco_runner.config import ConfigError

Rows = list[tuple[Any, ...]]


def read_sheet(path: Path, part: str | None) -> tuple[str, list[str], pd.DataFrame]:
    """The name, headings and cells of the sheet `part`, or of the only one with cells. Mistakes raise `ConfigError`.

    Cells that were computed have the value that was saved with them; one that was saved without is refused.
    """
    sheets = {name: rows for name, rows in _sheets(path, computed=True).items() if _filled(rows)}
    if not sheets:
        raise ConfigError(f"{path}: no sheet has cells")
    name = chosen(path, [*sheets], part)
    rows = sheets[name]
    if any(cell is None for row in rows for cell in row):
        _refuse_formulas(path, name, rows)
    width = max(len(row) for row in rows)
    padded = [(*row, *[None] * (width - len(row))) for row in rows if any(cell is not None for cell in row)]
    used = [i for i in range(width) if any(row[i] is not None for row in padded)]
    header = ["" if padded[0][i] is None else str(padded[0][i]).strip() for i in used]
    frame = pd.DataFrame([[row[i] for i in used] for row in padded[1:]], columns=range(len(used)))
    return name, header, frame.infer_objects()


def _sheets(path: Path, computed: bool) -> dict[str, Rows]:
    """The cells of each sheet: values, or formulas where there are some."""
    try:
        from openpyxl import load_workbook
    except ImportError:
        raise ConfigError(
            f"{path}: workbooks are read by openpyxl: pip install 'muloco-sweeps[excel]', or save the sheet as .csv"
        ) from None
    book = load_workbook(path, read_only=True, data_only=computed)
    try:
        for sheet in book.worksheets:
            sheet.reset_dimensions()  # what a file says of them may be wrong
        return {sheet.title: list(sheet.iter_rows(values_only=True)) for sheet in book.worksheets}
    finally:
        book.close()


def _filled(rows: Rows) -> bool:
    return any(cell is not None for row in rows for cell in row)


def _refuse_formulas(path: Path, name: str, rows: Rows) -> None:
    for number, (row, formulas) in enumerate(zip_longest(rows, _sheets(path, computed=False)[name], fillvalue=()), 1):
        for cell, formula in zip_longest(row, formulas):
            if cell is None and isinstance(formula, str) and formula.startswith("="):
                raise ConfigError(
                    f"{path}: row {number} of sheet {name} has a formula that was never computed, {formula}: open the "
                    "file in a spreadsheet program and save it"
                )
