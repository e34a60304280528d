"""Loss against batch: the best of the hyper-parameters at every batch that was tried."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, cast

from analysis.page import axis_labels
from analysis.page.axes import arrow, cut_above, error_bars, loss_axis, tried_axis
from analysis.page.drawing import Drawing, finish, panel, size_slug
from analysis.page.numbers import count, number
from analysis.page.page_table import Column, Table
from analysis.page.section import Block, Figures, Shown
from analysis.page.styles import Styles
from analysis.page.table_fields import EDGES, LOSS, LOSS_SE, SEEDS, SERIES, SIZE, batch, table
from analysis.questions.question import Inputs, Part


@dataclass(frozen=True)
class BatchPoint:
    """The best at one batch."""

    global_batch_tokens: int
    loss: float
    """Mean over seeds: those that took no part in choosing the setting, where it has such seeds."""
    loss_se: float | None
    """Standard error of the mean over seeds; null for one seed."""
    seeds: int
    """Seeds behind the loss."""
    compared_loss: float
    """Mean over the seeds that settings and batches are compared by."""
    lr: float | None
    settings: int
    diverged: int
    edges: list[str]
    """Hyper-parameters whose best value is the smallest (low) or largest (high) tried."""


@dataclass(frozen=True)
class BatchCurve:
    """One series at one size."""

    series: str
    num_params: int
    points: list[BatchPoint]


_ARROW = 0.07
"""Length of an arrow over the width of the panel, inside its margin."""
_FROM_THE_ROW = [
    "global_batch_tokens",
    "loss",
    "loss_se",
    "seeds",
    "compared_loss",
    "lr",
    "settings",
    "diverged",
    "edges",
]


def batch_curves(inputs: Inputs) -> list[BatchCurve]:
    """Curves at the budget that sizes are compared at, by size and series."""
    points = inputs.optima.points
    rows = points[points["tokens_per_parameter"] == inputs.budget]
    out = []
    for key, curve in rows.groupby(["num_params", "series"], sort=True, observed=True):
        n, series = cast("tuple[int, str]", key)
        curve = curve.assign(compared_loss=curve["selection_loss"])  # noqa: PLW2901
        tried: list[Any] = curve.sort_values("global_batch_tokens")[_FROM_THE_ROW].to_dict("records")
        out.append(BatchCurve(series, n, [BatchPoint(**point) for point in tried]))
    return out


def _loss_vs_batch(report: dict[str, Any]) -> Table:
    return table(
        "loss_vs_batch",
        "Best loss at each batch size",
        [{**curve, **point} for curve in report["loss_vs_batch"] for point in curve["points"]],
        SIZE,
        SERIES,
        batch(report),
        LOSS,
        LOSS_SE,
        SEEDS,
        (Column("lr", "number"), "lr"),
        (Column("settings", "integer"), "settings"),
        (Column("diverged", "integer"), "diverged"),
        EDGES,
    )


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
                axes.plot(batch, [p["compared_loss"] for p in curve["points"]], **styles.line(name))
                loss = [p["loss"] for p in curve["points"]]
                error_bars(axes, batch, loss, [p["loss_se"] for p in curve["points"]], styles.line(name)["color"])
                mark = marks.get((name, n))
                if mark and name in styles.named:
                    threshold = report["settings"]["cbs_threshold"]
                    reach = (max(tried) / min(tried)) ** _ARROW
                    _mark_critical(axes, mark, styles.line(name)["color"], threshold, reach)
        tried_axis(axes.xaxis, tried)
        loss_axis(axes)
        cut_above(axes, [[p["compared_loss"] for p in curve["points"]] for curve in curves])
        low, high = axes.get_ylim()
        for annotation in axes.texts:  # arrows; those of curves that left the panel would stand outside it
            annotation.set_visible(low <= annotation.xy[1] <= high)
        finish(figure, axes)
        alt = f"Validation loss against global batch in tokens, models of {count(n)} parameters, one curve a series."
        out.append(Drawing(f"loss_vs_batch_{size_slug(n)}", title, alt, figure))
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


def section(report: dict[str, Any], drawn: bool) -> list[Block] | str:
    """Curves with their critical batches."""
    if not drawn:
        return "no series has two batches at one size"
    threshold = number(report["settings"]["cbs_threshold"])
    return [
        "Each point is the best of the hyper-parameters tried at that batch, on the seeds that all settings have; bars "
        "are means over seeds, of fresh ones where there are any, with their standard errors. An upright bar marks the "
        f"interpolated critical batch, at {threshold} times the best loss; an arrow to the right says that it lies "
        "beyond the largest batch tried, one to the left that the best batch is the smallest tried.",
        Figures(),
        Shown("loss_vs_batch", folded=True),
    ]


PART = Part(
    "loss_vs_batch",
    list[BatchCurve],
    batch_curves,
    lambda report: [_loss_vs_batch(report)],
    plot_loss_vs_batch,
    "Loss against batch",
    section,
)
