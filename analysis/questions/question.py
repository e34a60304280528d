"""What report.json is made of: results from the study, with the tables, figures and text that show them.

A new question is a module that ends in a `Question`, and a line in `registry`. Its result is a dataclass: report.json
holds it under `questions`, and the JSON schema follows from its type. A `Part` is the same for a key of its own.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Generic, TypeVar

import pandas as pd
from pydantic import TypeAdapter

from analysis.optima import Optima
from analysis.page.drawing import Drawing
from analysis.page.page_table import Table
from analysis.page.styles import Styles
from analysis.questions.critical_batch_size import CriticalBatch, CriticalBatchLaw
from analysis.questions.iso_loss import IsoLoss
from analysis.questions.options import Options
from analysis.questions.time_ratio import TimeRatios
from analysis.runs import Study

Result = TypeVar("Result")


@dataclass(frozen=True)
class Inputs:
    """What a question may read."""

    study: Study
    optima: Optima
    best: pd.DataFrame
    """The best of every series and size at `budget`."""
    budget: float
    """Tokens per parameter that sizes are compared at."""
    baseline: str
    baseline_rule: str
    """Why it is this one."""
    options: Options
    iso_loss: IsoLoss | str
    """Laws of loss against compute, or why there are none."""
    critical_batches: list[CriticalBatch]
    """Of every series and size at `budget` with two batches."""
    critical_batch_laws: list[CriticalBatchLaw]
    """B = A D^alpha at `budget`, by series and definition."""
    time_ratios: TimeRatios | str
    """Time at the critical batch, or why there are no ratios."""


@dataclass(frozen=True)
class Part(Generic[Result]):
    """A key of report.json. Its page is in the templates."""

    name: str
    """Key in report.json."""
    result: Any
    """Type of what `compute` returns: dataclasses, or lists and dictionaries of them."""
    compute: Callable[[Inputs], Result]
    tables: Callable[[dict[str, Any]], list[Table]]
    """Tables from the whole report."""
    plots: tuple[Callable[[dict[str, Any], Styles], list[Drawing]], ...] = ()
    """Figures from the whole report."""


@dataclass(frozen=True)
class Question(Generic[Result]):
    """One question of the report. Everything but `compute` reads the result alone."""

    name: str
    """Key below `questions` in report.json and id of the section."""
    title: str
    result: type[Result]
    compute: Callable[[Inputs], Result]
    section: Callable[[Result], list[str]]
    """Paragraphs above the tables and figures."""
    rows: Callable[[Result], list[Table]]
    findings: Callable[[Result], list[str]] = lambda result: []
    """Sentences for the verdict, strongest first; none unless given."""
    plot: Callable[[Result, Styles], list[Drawing]] = lambda result, styles: []
    """Figures; none unless given."""

    @cached_property
    def adapter(self) -> TypeAdapter[Result]:
        """Reads a result, and has its JSON schema."""
        return TypeAdapter(self.result)

    def read(self, report: dict[str, Any]) -> Result:
        """The result that a report.json holds."""
        return self.adapter.validate_python(report["questions"][self.name])

    def findings_in(self, report: dict[str, Any]) -> list[str]:
        return self.findings(self.read(report))

    def tables_in(self, report: dict[str, Any]) -> list[Table]:
        return self.rows(self.read(report))

    def drawings_in(self, report: dict[str, Any], styles: Styles) -> list[Drawing]:
        return self.plot(self.read(report), styles)

    def section_in(self, report: dict[str, Any]) -> dict[str, Any]:
        """What the page's templates show; `tables` are names."""
        result = self.read(report)
        return {
            "id": self.name,
            "title": self.title,
            "paragraphs": self.section(result),
            "tables": [table.name for table in self.rows(result)],
        }
