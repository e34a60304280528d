"""Figures of a report, drawn from report.json's content alone: a module for each kind of question."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import matplotlib as mpl

from analysis.report.drawing import RC, Drawing, Styles
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

_PLOTS: tuple[Callable[[dict[str, Any], Styles], list[Drawing]], ...] = (
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
    styles = Styles(report["series"])
    with mpl.rc_context(RC):
        drawings: list[Drawing] = []
        for plot in _PLOTS:
            drawings += plot(report, styles)
        return drawings
