"""Loss and pseudogradients against the number of workers."""

from __future__ import annotations

from typing import Any

import numpy as np

from analysis.page import axis_labels
from analysis.page.axes import error_bars, tried_axis
from analysis.page.drawing import INK, Drawing, finish, panel
from analysis.page.numbers import count
from analysis.page.styles import Styles, legend_label


def plot_num_workers(report: dict[str, Any], styles: Styles) -> list[Drawing]:
    """Loss relative to the partner against K, one line an algorithm and size with several K; how alike the
    pseudogradients are.
    """
    points, published = report["num_workers"]["points"], report["published"]
    across = axis_labels.across(report, "workers K", "num_workers")
    sizes = sorted({r["num_params"] for r in points})
    lines = {key: mine for key, mine in _lines(points).items() if len({r["num_workers"] for r in mine}) > 1}
    out = []
    if lines:
        title = "Loss against the number of workers"
        figure, axes = panel(title, across, "loss over the partner's - 1 (%)")
        for (algorithm, n), mine in lines.items():
            style = {**styles.of_size(mine[0]["series"], sizes.index(n), len(sizes))}
            style["label"] = legend_label(f"{algorithm}, {count(n)}")
            workers, compared = [r["num_workers"] for r in mine], [r["against_baseline"] for r in mine]
            relative = [100 * c["relative"] for c in compared]
            axes.plot(workers, relative, **style)
            error_bars(axes, workers, relative, [c["se"] and 100 * c["se"] for c in compared], style["color"])
        if published:
            nearest = min((p["num_params"] for p in published["num_workers"]), key=lambda m: abs(np.log(m / sizes[-1])))
            for p in (p for p in published["num_workers"] if p["num_params"] == nearest):
                axes.plot([p["num_workers"]], [100 * p["relative"]], **styles.published(f"{p['algorithm']} K=1"))
        axes.axhline(0, color=INK, linewidth=0.8)
        tried_axis(axes.xaxis, [r["num_workers"] for mine in lines.values() for r in mine], _whole)
        finish(figure, axes)
        alt = "Loss relative to that of the partner against the number of workers, one line an algorithm and size."
        out.append(Drawing("num_workers", "num_workers", title, alt, figure))
    return out + _plot_cosines(points, styles, across)


def _lines(points: list[dict[str, Any]]) -> dict[tuple[str, int], list[dict[str, Any]]]:
    """The points of each algorithm and size by K, at each K the one with the lowest loss."""
    best: dict[tuple[str, int, int], dict[str, Any]] = {}
    for row in sorted(points, key=lambda r: r["against_baseline"]["relative"]):
        best.setdefault((row["algorithm"], row["num_params"], row["num_workers"]), row)
    out: dict[tuple[str, int], list[dict[str, Any]]] = {}
    for (algorithm, n, _), row in sorted(best.items()):
        out.setdefault((algorithm, n), []).append(row)
    return out


def _plot_cosines(points: list[dict[str, Any]], styles: Styles, across: str) -> list[Drawing]:
    known = [r for r in points if r["pseudogradient_cosine"] is not None]
    if not known:
        return []
    title = "Mean cosine between workers' pseudogradients"
    sizes, lines = sorted({r["num_params"] for r in known}), _lines(known)
    figure, axes = panel(title, across, "cosine, last quarter of the run")
    for (algorithm, n), mine in lines.items():
        style = styles.of_size(mine[0]["series"], sizes.index(n), len(sizes))
        style["label"] = legend_label(f"{algorithm}, {count(n)}")
        axes.plot([r["num_workers"] for r in mine], [r["pseudogradient_cosine"] for r in mine], **style)
    tried_axis(axes.xaxis, [r["num_workers"] for r in known], _whole)
    finish(figure, axes)
    alt = "Mean pairwise cosine between workers' pseudogradients against the number of workers."
    return [Drawing("pseudogradient_cosine", "num_workers", title, alt, figure)]


def _whole(value: float) -> str:
    return f"{value:g}"
