"""What a reader looks for first: the best loss of every series against compute, and the training behind it."""

from __future__ import annotations

from typing import Any

import numpy as np

from analysis.page import axis_labels
from analysis.page.drawing import (
    Drawing,
    Styles,
    error_bars,
    legend,
    log_axis,
    loss_axis,
    panel,
    power_of_ten,
    size_slug,
    upper_end,
)
from analysis.page.numbers import count

_FIRST_SHARE = 0.1
"""Of a run: its steep beginning, which is not what curves are compared by."""


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
    figure, axes = panel(title, across, upright, len(names))
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
    log_axis(axes.xaxis, [row["flops"] for row in best], power_of_ten)
    loss_axis(axes)
    legend(figure, axes)
    alt = "Best validation loss of every series against compute; lines are the fitted laws where there are any."
    return Drawing("overview", "overview", title, alt, figure)


def _losses_of_one_size(report: dict[str, Any], styles: Styles) -> Drawing:
    rows = sorted(report["best"], key=lambda row: -row["loss"])
    title = f"Best loss of each series, {count(rows[0]['num_params'])} parameters"
    across = axis_labels.across(report, "validation loss", "loss", "nats per token")
    longest = max(len(row["series"]) for row in rows)
    left = min(0.5, 0.06 + 0.0185 * longest)
    figure, axes = panel(title, across, "", 0, left=left, height=1.1 + 0.2 * len(rows))
    for i, row in enumerate(rows):
        look = styles.points(row["series"])
        axes.plot([row["loss"]], [i], **{**look, "label": None})
        if row["loss_se"]:
            reach = [row["loss"] - row["loss_se"], row["loss"] + row["loss_se"]]
            axes.plot(reach, [i, i], color=look["color"], linewidth=1.0)
    axes.set_yticks(range(len(rows)), [shortened(row["series"]) for row in rows], fontsize=7.5)
    axes.set_ylim(-0.7, len(rows) - 0.3)
    axes.margins(x=0.15)
    loss_axis(axes, "x")
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
        figure, axes = panel(title, across, "training loss (nats per token)", len(curves))
        late: list[float] = []
        for curve in curves:
            tokens, losses = [p["tokens"] for p in curve["points"]], [p["loss"] for p in curve["points"]]
            axes.plot(tokens, losses, **{**styles.line(curve["series"]), "markevery": 0.2, "linewidth": 1.0})
            late += [p["loss"] for p in curve["points"] if p["tokens"] >= _FIRST_SHARE * tokens[-1]]
        upper_end(axes, late)
        axes.xaxis.set_major_formatter(lambda value, _: count(value))
        loss_axis(axes)
        legend(figure, axes)
        alt = f"Training loss against tokens of the best run of each series, models of {count(n)} parameters."
        out.append(Drawing(f"training_curves_{size_slug(n)}", "training_curves", title, alt, figure))
    return out


def shortened(name: str, longest: int = 27) -> str:
    """A name for a place of limited width, its middle left out; both ends tell methods apart."""
    return name if len(name) <= longest else f"{name[: longest - 12]}…{name[-11:]}"
