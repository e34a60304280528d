"""Loss and pseudogradients against the number of workers."""

from __future__ import annotations

from typing import Any

import numpy as np
from matplotlib.ticker import FuncFormatter, NullLocator

from analysis.page import axis_labels
from analysis.page.drawing import INK, Drawing, Styles, error_bars, legend, panel, size_slug
from analysis.page.numbers import count


def plot_num_workers(report: dict[str, Any], styles: Styles) -> list[Drawing]:
    """Loss relative to data parallel against K, a figure a size; and how alike the workers' pseudogradients are."""
    out = []
    points, published = report["num_workers"]["points"], report["published"]
    across = axis_labels.across(report, "workers K", "num_workers")
    for n in sorted({r["num_params"] for r in points}):
        rows = [r for r in points if r["num_params"] == n]
        if len({r["num_workers"] for r in rows}) < 2:
            continue
        title = f"{count(n)} parameters"
        by = sorted({r["algorithm"] for r in rows})
        figure, axes = panel(title, across, "loss over data parallel's - 1 (%)", len(by) + bool(published))
        for algorithm in by:
            mine = sorted((r for r in rows if r["algorithm"] == algorithm), key=lambda r: r["num_workers"])
            style = {**styles.line(mine[0]["series"]), "label": f"{algorithm}, against {mine[0]['baseline']}"}
            workers, compared = [r["num_workers"] for r in mine], [r["against_baseline"] for r in mine]
            relative = [100 * c["relative"] for c in compared]
            axes.plot(workers, relative, **style)
            error_bars(axes, workers, relative, [c["se"] and 100 * c["se"] for c in compared], style["color"])
        if published:
            nearest = min((p["num_params"] for p in published["num_workers"]), key=lambda m: abs(np.log(m / n)))
            for p in (p for p in published["num_workers"] if p["num_params"] == nearest):
                axes.plot([p["num_workers"]], [100 * p["relative"]], **styles.published(f"{p['algorithm']} K=1"))
        axes.axhline(0, color=INK, linewidth=0.8)
        _workers_axis(axes, [r["num_workers"] for r in rows])
        legend(figure, axes)
        alt = f"Loss relative to data parallel against the number of workers, models of {count(n)} parameters."
        out.append(Drawing(f"num_workers_{size_slug(n)}", "num_workers", title, alt, figure))
    return out + _plot_cosines(points, styles, across)


def _plot_cosines(points: list[dict[str, Any]], styles: Styles, across: str) -> list[Drawing]:
    known = [r for r in points if r["pseudogradient_cosine"] is not None]
    if not known:
        return []
    title = "Mean cosine between workers' pseudogradients"
    sizes = sorted({r["num_params"] for r in known})
    keys = [(a, n) for a in sorted({r["algorithm"] for r in known}) for n in sizes]
    figure, axes = panel(title, across, "cosine, last quarter of the run", len(keys))
    for algorithm, n in keys:
        mine = sorted(
            (r for r in known if r["algorithm"] == algorithm and r["num_params"] == n), key=lambda r: r["num_workers"]
        )
        if mine:
            base = styles.line(mine[0]["series"])
            style = {**base, **styles.filling(sizes.index(n)), "label": f"{algorithm}, {count(n)}"}
            axes.plot([r["num_workers"] for r in mine], [r["pseudogradient_cosine"] for r in mine], **style)
    _workers_axis(axes, [r["num_workers"] for r in known])
    legend(figure, axes)
    alt = "Mean pairwise cosine between workers' pseudogradients against the number of workers."
    return [Drawing("pseudogradient_cosine", "num_workers", title, alt, figure)]


def _workers_axis(axes: Any, workers: list[int]) -> None:
    axes.set_xscale("log", base=2)
    axes.set_xticks(sorted(set(workers)))
    axes.xaxis.set_major_formatter(FuncFormatter(lambda v, _: f"{v:g}"))
    axes.xaxis.set_minor_locator(NullLocator())
