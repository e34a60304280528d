"""Figures of a report, drawn from report.json's content alone: a module for each kind of question."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import matplotlib as mpl

from analysis.page.drawing import RC, Drawing
from analysis.page.styles import Styles
from analysis.questions.registry import QUESTIONS
from analysis.report.figures.batch_size import plot_critical_batch, plot_loss_vs_batch
from analysis.report.figures.compute import (
    plot_isoflop,
    plot_loss_compute,
    plot_ratios,
    plot_sensitivity,
    plot_wall_clock,
)
from analysis.report.figures.hyper_parameters import plot_learning_rates, plot_maps
from analysis.report.figures.num_workers import plot_num_workers
from analysis.report.figures.overview import plot_overview, plot_training_curves
from analysis.report.named_series import named_series

_PLOTS: tuple[Callable[[dict[str, Any], Styles], list[Drawing]], ...] = (
    plot_overview,
    plot_training_curves,
    plot_loss_vs_batch,
    plot_critical_batch,
    plot_loss_compute,
    plot_ratios,
    plot_isoflop,
    plot_wall_clock,
    plot_learning_rates,
    plot_maps,
    plot_num_workers,
    plot_sensitivity,
)


def draw_all(report: dict[str, Any]) -> list[Drawing]:
    """Every figure for which the report has points."""
    styles = Styles(report["series"], **report["style"], named=named_series(report))
    with mpl.rc_context(RC):
        drawings: list[Drawing] = []
        for plot in _PLOTS:
            drawings += plot(report, styles)
        for question in QUESTIONS:
            drawings += question.drawings_in(report, styles)
        return _with_own_names(drawings)


def _with_own_names(drawings: list[Drawing]) -> list[Drawing]:
    """The drawings, a number after a name that was given before: names are names of files and ids of a page."""
    seen: Counter[str] = Counter()
    out = []
    for drawing in drawings:
        seen[drawing.name] += 1
        again = seen[drawing.name]
        out.append(drawing if again == 1 else replace(drawing, name=f"{drawing.name}__{again}"))
    return out
