"""A table of a report: the same rows for HTML, Markdown, CSV and LaTeX."""

from __future__ import annotations

import csv
import io
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from analysis.page.escape import csv_cell, latex, markdown
from analysis.page.numbers import NONE, NOT_IDENTIFIED, says_nothing, show


@dataclass(frozen=True)
class Column:
    """A heading with its unit, and the kind of quantity below it."""

    name: str
    kind: str = "text"
    unit: str = ""
    joint: str = ""
    """Where it is not empty, pages show this column in the cell before, after these words; files keep it apart."""

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

    @property
    def shown_columns(self) -> list[Column]:
        """Columns of a page: those that stand alone and say something in some row; files have the others too."""
        return [column for column, shown in zip(self.columns, self._shown, strict=True) if shown and not column.joint]

    @cached_property
    def _shown(self) -> list[bool]:
        """Whether pages show each column; one that stands in the cell before goes with it."""
        out: list[bool] = []
        for i, column in enumerate(self.columns):
            said = i == 0 or not self.rows or any(show(row[i], column.kind) != NONE for row in self.rows)
            out.append(out[-1] if column.joint else said)
        return out

    def cells(self) -> list[list[str]]:
        """Texts of a page, row by row."""
        return [[text for text, _ in row] for row in self._cells()]

    def spread_cells(self) -> list[list[tuple[str, bool, int]]]:
        """Texts of a page, whether each stands under numbers, and over how many columns it goes.

        A text in the last column takes the place of the empty cells before it: what there is instead of numbers.
        """
        numeric = [column.kind != "text" for column in self.shown_columns]
        out = []
        for row in self.cells():
            first = len(row) - 1
            while not numeric[-1] and row[-1] != NONE and first > 0 and numeric[first - 1] and row[first - 1] == NONE:
                first -= 1
            line = [(text, under, 1) for text, under in zip(row[:first], numeric, strict=False)]
            out.append([*line, (row[-1], numeric[-1], len(row) - first)])
        return out

    def _cells(self) -> list[list[tuple[str, bool]]]:
        """Texts, and whether each is made of numbers alone."""
        out = []
        for row in self.rows:
            line: list[tuple[str, bool]] = []
            for value, column, shown in zip(row, self.columns, self._shown, strict=True):
                text = show(value, column.kind)
                if not shown:
                    continue
                if not column.joint:
                    line.append((text, _is_numeric(value)))
                elif says_nothing(value):
                    line[-1] = (NOT_IDENTIFIED, False)
                elif text != NONE:
                    line[-1] = (line[-1][0] + column.joint + text, line[-1][1] and _is_numeric(value))
            out.append(line)
        return out

    def to_csv(self) -> str:
        """Full precision; an interval fills two columns. Text is quoted, and never a formula."""
        out = io.StringIO()
        writer = csv.writer(out, lineterminator="\n", quoting=csv.QUOTE_NONNUMERIC)
        pairs = [
            any(isinstance(row[i], (list, tuple)) and len(row[i]) == 2 for row in self.rows)
            for i in range(len(self.columns))
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
                    line.append("; ".join(map(str, value)) if isinstance(value, (list, tuple)) else value)
            writer.writerow(["" if v is None else csv_cell(v) for v in line])
        return out.getvalue()

    def to_markdown(self) -> str:
        head = "| " + " | ".join(markdown(column.heading) for column in self.shown_columns) + " |"
        rule = "|" + "|".join("---" if column.kind == "text" else "---:" for column in self.shown_columns) + "|"
        # Formatted numbers and intervals are Markdown already.
        cells = [[text if numeric else markdown(text) for text, numeric in row] for row in self._cells()]
        return "\n".join([head, rule, *("| " + " | ".join(row) + " |" for row in cells)])

    def to_latex(self) -> str:
        columns = "".join("l" if column.kind == "text" else "r" for column in self.shown_columns)
        lines = [f"% {self.caption}", rf"\begin{{tabular}}{{{columns}}}", r"\hline"]
        lines.append(" & ".join(latex(column.heading) for column in self.shown_columns) + r" \\ \hline")
        lines += [" & ".join(latex(cell) for cell in row) + r" \\" for row in self.cells()]
        return "\n".join([*lines, r"\hline", r"\end{tabular}", ""])


def _is_numeric(value: Any) -> bool:
    return isinstance(value, (int, float)) or (isinstance(value, (list, tuple)) and all(_is_numeric(v) for v in value))
