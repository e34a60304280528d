"""What a reader looks for first: the best loss of every series against compute, and the training behind it."""

from __future__ import annotations

from typing import Any

import numpy as np
from matplotlib.ticker import MaxNLocator

from analysis.page import axis_labels
from analysis.page.axes import error_bars, log_axis, loss_axis, power_of_ten, upper_end
from analysis.page.drawing import INK, Drawing, finish, fitted, panel, panel_below, size_slug
from analysis.page.numbers import count
from analysis.page.styles import Styles

_FIRST_SHARE = 0.1
"""Of a run: its steep beginning, which is not what curves are compared by."""
_NAME_POINTS = 120.0
"""Widest name of a series beside its row."""


def plot_overview(report: dict[str, Any], styles: Styles) -> list[Drawing]:
    """Best loss against compute with the fitted laws; loss by series where there is one size."""
    sizes = {row["num_params"] for row in report["best"]}
    return [_losses_of_one_size(report, styles) if len(sizes) == 1 else _loss_against_compute(report, styles)]


def _loss_against_compute(report: dict[str, Any], styles: Styles) -> Drawing:
    iso, best = report["iso_loss"], report["best"]
    names = [name for name in report["series"] if any(row["series"] == name for row in best)]
    across = axis_labels.compute(report)
    upright = axis_labels.upright(report, "validation loss", "loss", "nats per token")
    title = "Best loss of each series" if iso["reason"] else "Best loss of each series, with the fitted laws"
    figure, axes = panel(title, across, upright)
    fitted = {} if iso["reason"] else iso["fit"]["parameters"]
    for name in names:
        rows = [row for row in best if row["series"] == name]
        at, losses = [row["flops"] for row in rows], [row["loss"] for row in rows]
        law = f"A[{name}]" in fitted
        axes.plot([], [], **styles.line(name))
        look = styles.points(name) if law else {**styles.line(name), "linewidth": 0.7}
        axes.plot(at, losses, **{**look, "label": None})
        error_bars(axes, at, losses, [row["loss_se"] for row in rows], styles.line(name)["color"])
        if law:
            grid = np.geomspace(min(at), max(at), 50)
            above = fitted[f"A[{name}]"]["value"] * grid ** -fitted[f"alpha[{name}]"]["value"]
            axes.plot(grid, fitted["E"]["value"] + above, **styles.curve(name))
    panels = [axes]
    if {row["series"] for row in best if row["against_baseline"]}:
        panels.append(panel_below(figure, axes, f"% over {report['settings']['baseline']} at the same size", 1.0))
        _differences(panels[1], report, styles)
    log_axis(axes.xaxis, [row["flops"] for row in best], power_of_ten)
    loss_axis(axes)
    finish(figure, *panels)
    alt = (
        "Best validation loss of every series against compute; lines are the fitted laws where there are any. Below, "
        "how far each lies above the baseline at the same size, in percent."
    )
    return Drawing("overview", "overview", title, alt, figure)


def _differences(axes: Any, report: dict[str, Any], styles: Styles) -> None:
    """Loss of each series over the baseline's at the same size, less one."""
    for name in report["series"]:
        rows = [row for row in report["best"] if row["series"] == name and row["against_baseline"]]
        at, over = [row["flops"] for row in rows], [100 * row["against_baseline"]["relative"] for row in rows]
        axes.plot(at, over, **{**styles.line(name), "linewidth": 0.8})
        error = [row["against_baseline"]["se"] for row in rows]
        error_bars(axes, at, over, [se and 100 * se for se in error], styles.line(name)["color"])
    axes.axhline(0, color=INK, linewidth=0.8)
    axes.yaxis.set_major_locator(MaxNLocator(4))


def _losses_of_one_size(report: dict[str, Any], styles: Styles) -> Drawing:
    rows = sorted(report["best"], key=lambda row: -row["loss"])
    title = f"Best loss of each series, {count(rows[0]['num_params'])} parameters"
    across = axis_labels.across(report, "validation loss", "loss", "nats per token")
    figure, axes = panel(title, across, "", height=0.2 + 0.17 * len(rows))
    for i, row in enumerate(rows):
        look = styles.points(row["series"])
        axes.plot([row["loss"]], [i], **{**look, "label": None})
        if row["loss_se"]:
            reach = [row["loss"] - row["loss_se"], row["loss"] + row["loss_se"]]
            axes.plot(reach, [i, i], color=look["color"], linewidth=1.0)
    axes.set_yticks(range(len(rows)), [fitted(row["series"], 7.5, _NAME_POINTS) for row in rows], fontsize=7.5)
    axes.set_ylim(-0.7, len(rows) - 0.3)
    axes.margins(x=0.15)
    loss_axis(axes, "x")
    finish(figure, axes)
    alt = "Best validation loss of every series, the lowest at the bottom."
    return Drawing("overview", "overview", title, alt, figure)


def plot_training_curves(report: dict[str, Any], styles: Styles) -> list[Drawing]:
    """Training loss against tokens of the best run of each series, a panel a size; the steep beginning leaves it."""
    out = []
    for n in sorted({curve["num_params"] for curve in report["training_curves"]}):
        curves = [c for c in report["training_curves"] if c["num_params"] == n and len(c["points"]) > 1]
        if not curves:
            continue
        title = f"{count(n)} parameters"
        across = axis_labels.across(report, "training tokens", "num_tokens")
        figure, axes = panel(title, across, "training loss (nats per token)")
        late: list[float] = []
        for curve in curves:
            tokens, losses = [p["tokens"] for p in curve["points"]], [p["loss"] for p in curve["points"]]
            axes.plot(tokens, losses, **{**styles.line(curve["series"]), "markevery": 0.2, "linewidth": 1.0})
            late += [p["loss"] for p in curve["points"] if p["tokens"] >= _FIRST_SHARE * tokens[-1]]
        upper_end(axes, late)
        axes.xaxis.set_major_formatter(lambda value, _: count(value))
        loss_axis(axes)
        finish(figure, axes)
        alt = f"Training loss against tokens of the best run of each series, models of {count(n)} parameters."
        out.append(Drawing(f"training_curves_{size_slug(n)}", "training_curves", title, alt, figure))
    return out
