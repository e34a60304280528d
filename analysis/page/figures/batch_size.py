"""Loss against batch, and where the critical batch lies."""

from __future__ import annotations

from typing import Any

import numpy as np
from matplotlib.ticker import FuncFormatter

from analysis.page import axis_labels
from analysis.page.axes import arrow, cut_above, error_bars, log_axis, loss_axis, tried_axis
from analysis.page.drawing import Drawing, finish, panel, size_slug
from analysis.page.numbers import count
from analysis.page.styles import Styles

_ARROW = 0.07
"""Length of an arrow over the width of the panel, inside its margin."""


def plot_loss_vs_batch(report: dict[str, Any], styles: Styles) -> list[Drawing]:
    """Loss against batch at each size; a bar marks where the critical batch lies, an arrow that it lies beyond."""
    out = []
    marks = {(p["series"], p["num_params"]): p for p in report["critical_batch"]["points"]}
    for n in sorted({curve["num_params"] for curve in report["loss_vs_batch"]}):
        curves = [curve for curve in report["loss_vs_batch"] if curve["num_params"] == n]
        if max(len(curve["points"]) for curve in curves) < 2:
            continue
        title = f"{count(n)} parameters"
        figure, axes = panel(
            title,
            axis_labels.across(report, "global batch B", "global_batch_tokens", "tokens"),
            axis_labels.upright(report, "validation loss", "loss", "nats per token"),
        )
        tried = [p["global_batch_tokens"] for curve in curves for p in curve["points"]]
        for name in report["series"]:
            for curve in curves:
                if curve["series"] != name:
                    continue
                batch = [p["global_batch_tokens"] for p in curve["points"]]
                loss = [p["loss"] for p in curve["points"]]
                axes.plot(batch, loss, **styles.line(name))
                error_bars(axes, batch, loss, [p["loss_se"] for p in curve["points"]], styles.line(name)["color"])
                mark = marks.get((name, n))
                if mark and name in styles.named:
                    threshold = report["settings"]["cbs_threshold"]
                    reach = (max(tried) / min(tried)) ** _ARROW
                    _mark_critical(axes, mark, styles.line(name)["color"], threshold, reach)
        tried_axis(axes.xaxis, tried)
        loss_axis(axes)
        cut_above(axes, [[p["loss"] for p in curve["points"]] for curve in curves])
        low, high = axes.get_ylim()
        for annotation in axes.texts:  # arrows; those of curves that left the panel would stand outside it
            annotation.set_visible(low <= annotation.xy[1] <= high)
        finish(figure, axes)
        alt = f"Validation loss against global batch in tokens, models of {count(n)} parameters, one curve a series."
        out.append(Drawing(f"loss_vs_batch_{size_slug(n)}", "loss_vs_batch", title, alt, figure))
    return out


def _mark_critical(axes: Any, mark: dict[str, Any], color: str, threshold: float, reach: float) -> None:
    """A bar at the critical batch; arrows, `reach` times a batch long, to where it lies beyond the batches tried."""
    censored, level = mark["censored"] or "", threshold * mark["best_loss"]
    if not censored:
        axes.plot([mark["interpolated"]], [level], marker="|", markersize=13, markeredgewidth=1.8, color=color)
    if "right" in censored:
        arrow(axes, (mark["largest_good_batch"], level), (mark["largest_good_batch"] * reach, level), color)
    if "left" in censored:
        arrow(axes, (mark["best_batch"], level), (mark["best_batch"] / reach, level), color)


def plot_critical_batch(report: dict[str, Any], styles: Styles) -> list[Drawing]:
    """Critical batch against tokens under two definitions, with laws; arrows where a curve is censored."""
    points = report["critical_batch"]["points"]
    if len({p["num_params"] for p in points}) < 2:
        return []
    out = [_critical_batch(report, styles, "cbs_1pct_interpolated", "interpolated", "Critical batch, 1% rule")]
    if any(p["overhead20"] for p in points):
        title = "Critical batch, 20% token overhead"
        out.append(_critical_batch(report, styles, "cbs_overhead20", "overhead20", title))
    return out


def _critical_batch(report: dict[str, Any], styles: Styles, definition: str, key: str, title: str) -> Drawing:
    points, published = report["critical_batch"]["points"], report["published"]
    names = [name for name in report["series"] if any(p["series"] == name for p in points)]
    x_label = axis_labels.across(report, "training tokens D", "num_tokens")
    y_label = axis_labels.upright(report, "critical batch", "global_batch_tokens", "tokens")
    figure, axes = panel(title, x_label, y_label)
    values: list[float] = []
    tokens: list[float] = []
    for i, name in enumerate(names):
        style = styles.points(name)
        axes.plot([], [], **style)
        for p in (p for p in points if p["series"] == name and (name in styles.named or not p["censored"])):
            x = p["num_tokens"] * 1.04 ** (i - (len(names) - 1) / 2)
            tokens.append(x)
            values += _critical_batch_point(axes, p, x, key, {**style, "label": None})
        law = next(
            law for law in report["critical_batch"]["laws"] if law["series"] == name and law["definition"] == definition
        )
        if law["fit"]:
            low, high = law["fit"]["inputs"]["num_tokens"]
            grid = np.geomspace(low, high, 20)
            parameters = law["fit"]["parameters"]
            axes.plot(grid, parameters["A"]["value"] * grid ** parameters["alpha"]["value"], **styles.curve(name))
    if published and definition != "cbs_overhead20":
        for p in published["critical_batch"]:
            tokens.append(p["num_tokens"])
            values.append(p["critical_batch_size"])
            axes.plot([p["num_tokens"]], [p["critical_batch_size"]], **styles.published(p["series"]))
    log_axis(axes.xaxis, tokens, count)
    axes.set_yscale("log", base=2)
    axes.yaxis.set_major_formatter(FuncFormatter(lambda v, _: count(v)))
    axes.set_ylim(min(values) / 1.5, max(values) * 1.5)
    finish(figure, axes)
    alt = f"{title} against training tokens; arrows are bounds where the batches tried do not hold it."
    return Drawing(
        "critical_batch" if key == "interpolated" else f"critical_batch_{key}", "critical_batch", title, alt, figure
    )


def _critical_batch_point(axes: Any, p: dict[str, Any], x: float, key: str, style: dict[str, Any]) -> list[float]:
    """A point with the tested batches around it, or arrows; returns the batches drawn."""
    censored, color = p["censored"] or "", style["color"]
    if not censored and p[key] is not None:
        if key == "interpolated":
            axes.plot([x, x], [p["largest_good_batch"], p["next_batch"]], color=color, linewidth=1, alpha=0.6)
        axes.plot([x], [p[key]], **style)
        return [p[key]]
    drawn = []
    if "right" in censored:
        drawn += [p["largest_good_batch"], p["largest_good_batch"] * 1.6]
        arrow(axes, (x, p["largest_good_batch"]), (x, p["largest_good_batch"] * 1.6), color)
        axes.plot([x], [p["largest_good_batch"]], marker="_", markersize=9, color=color)
    if "left" in censored:
        drawn += [p["largest_good_batch"], p["largest_good_batch"] / 1.6]
        arrow(axes, (x, p["largest_good_batch"]), (x, p["largest_good_batch"] / 1.6), color)
        axes.plot([x], [p["largest_good_batch"]], marker="_", markersize=9, color=color)
    return drawn
