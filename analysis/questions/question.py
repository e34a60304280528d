"""What report.json is made of: results from the study, with the tables, figures and text that show them.

A new question is a module that ends in a `Question`, and a line in `registry`. Its result is a dataclass: report.json
holds it under `questions`, and the JSON schema follows from its type. A `Part` is the same for a key of its own, and
reads the whole report.
"""

from __future__ import annotations

from collections.abc import Callable, Collection
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any, Generic, TypeVar

import pandas as pd
from pydantic import TypeAdapter

from analysis.optima import Optima
from analysis.page.drawing import Drawing
from analysis.page.page_table import Table
from analysis.page.section import Block, Figures, Section, Shown
from analysis.page.styles import Styles
from analysis.questions.critical_batch_size import CriticalBatch, CriticalBatchLaw
from analysis.questions.iso_loss import IsoLoss
from analysis.questions.options import Options
from analysis.questions.time_ratio import TimeRatios
from analysis.runs import Study

Result = TypeVar("Result")
NOT_IDENTIFIED = "Not identified: "
"""How the text of a question begins that has no section, but a line with the reason."""


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
    """A key of report.json. Everything but `compute` reads the whole report."""

    name: str
    """Key in report.json and id of the section."""
    result: Any
    """Type of what `compute` returns: dataclasses, or lists and dictionaries of them."""
    compute: Callable[[Inputs], Result]
    rows: Callable[[dict[str, Any]], list[Table]] = lambda report: []
    """Tables; none unless given."""
    plot: Callable[[dict[str, Any], Styles], list[Drawing]] = lambda report, styles: []
    """Figures; none unless given."""
    title: str = ""
    section: Callable[[dict[str, Any], bool], list[Block] | str | None] = lambda report, drawn: None
    """Blocks of the section, or why it has nothing to show, or None where nothing is to be said of it. `drawn`: whether
    there are figures."""

    def tables_in(self, report: dict[str, Any]) -> list[Table]:
        return self.rows(report)

    def drawings_in(self, report: dict[str, Any], styles: Styles) -> list[Drawing]:
        return [replace(drawing, section=self.name) for drawing in self.plot(report, styles)]

    def section_in(self, report: dict[str, Any], figures: Collection[str]) -> Section | None:
        """The page's section. `figures`: names of parts and questions that have some."""
        found = self.section(report, self.name in figures)
        if isinstance(found, str):
            return Section(self.name, self.title, [], found)
        return None if found is None else Section(self.name, self.title, found)


@dataclass(frozen=True)
class Question(Generic[Result]):
    """One question of the report. Everything but `compute` reads the result alone."""

    name: str
    """Key below `questions` in report.json and id of the section."""
    title: str
    result: type[Result]
    compute: Callable[[Inputs], Result]
    section: Callable[[Result], list[str]]
    """Paragraphs above the figures and tables; one that begins with `NOT_IDENTIFIED` takes their place."""
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
        return [replace(drawing, section=self.name) for drawing in self.plot(self.read(report), styles)]

    def section_in(self, report: dict[str, Any], figures: Collection[str]) -> Section:
        """The page's section: text, figures, tables, all but the first folded."""
        result = self.read(report)
        paragraphs, tables = self.section(result), self.rows(result)
        said = " ".join(paragraphs)
        if said.startswith(NOT_IDENTIFIED) or (not tables and self.name not in figures):
            reason = said.removeprefix(NOT_IDENTIFIED).removesuffix(".")
            return Section(self.name, self.title, [], reason or "nothing to show")
        shown = [Shown(table.name, folded=i > 0) for i, table in enumerate(tables)]
        return Section(self.name, self.title, [*paragraphs, Figures(), *shown])
