"""Loss against learning rate at each series' and size's best batch; at the largest size, over batch and rate."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.patches import Rectangle

from analysis.page import axis_labels
from analysis.page.axes import cut_above, error_bars, log_axis, loss_axis
from analysis.page.drawing import INK, Drawing, finish, panel, series_slug, size_slug
from analysis.page.numbers import count, number
from analysis.page.page_table import Column, Table
from analysis.page.section import Block, Figures, Shown
from analysis.page.styles import Styles
from analysis.page.table_fields import EDGES, SERIES, SIZE, batch, table
from analysis.questions.question import Inputs, Part


@dataclass(frozen=True)
class RatePoint:
    """The best of the other hyper-parameters at one learning rate."""

    lr: float
    loss: float
    """Mean over seeds: those that took no part in choosing the setting, where it has such seeds."""
    loss_se: float | None
    """Standard error of the mean over seeds; null for one seed."""
    seeds: int
    """Seeds behind the loss."""


@dataclass(frozen=True)
class RateCurve:
    """One series at one size, at its best batch."""

    series: str
    num_params: int
    global_batch_tokens: int
    best_lr: float | None
    plateau_lr: list[float | None]
    edges: list[str]
    """Hyper-parameters whose best value is the smallest (low) or largest (high) tried."""
    num_lrs: int
    points: list[RatePoint]


@dataclass(frozen=True)
class RateCell:
    """One batch and learning rate."""

    global_batch_tokens: int
    lr: float
    loss: float
    """Mean over seeds: those that took no part in choosing the setting, where it has such seeds."""
    loss_se: float | None
    """Standard error of the mean over seeds; null for one seed."""
    seeds: int
    """Seeds behind the loss."""
    relative: float
    """selection_loss over the lowest of the map, minus one."""


@dataclass(frozen=True)
class RateMap:
    """One series at the largest size."""

    series: str
    num_params: int
    cells: list[RateCell]


@dataclass(frozen=True)
class TunedRates:
    """Curves at the best batch, maps at the largest size."""

    curves: list[RateCurve]
    """Loss against learning rate at the best batch."""
    maps: list[RateMap]
    """At the largest size."""


_LOSS = ["loss", "loss_se", "seeds"]


def tuned_rates(inputs: Inputs) -> TunedRates:
    """Curves of every series and size at the budget that is compared, and maps."""
    settings = inputs.optima.settings[inputs.optima.settings["tokens_per_parameter"] == inputs.budget]
    # The best of the other hyper-parameters, by the losses that settings are compared by.
    keys = ["series", "num_params", "global_batch_tokens", "lr"]
    lowest = settings.groupby(keys, observed=True, dropna=False)["selection_loss"].idxmin()
    groups = dict(list(settings.loc[lowest].sort_values(keys).groupby(["series", "num_params"], observed=True)))
    largest = int(inputs.best["num_params"].max())
    curves, maps = [], []
    for row in inputs.best.to_dict("records"):
        cells = groups[row["series"], row["num_params"]]
        cells = cells[cells["lr"].notna()]
        by_lr = cells[cells["global_batch_tokens"] == row["global_batch_tokens"]]
        points = [RatePoint(**point) for point in _records(by_lr[["lr", *_LOSS]])]
        place = (row["series"], row["num_params"])
        plateau = list(row["plateau_lr"])
        curves.append(
            RateCurve(*place, row["global_batch_tokens"], row["lr"], plateau, row["edges"], len(by_lr), points)
        )
        if row["num_params"] == largest:
            relative = cells["selection_loss"] / cells["selection_loss"].min() - 1
            columns = ["global_batch_tokens", "lr", *_LOSS, "relative"]
            found = [RateCell(**cell) for cell in _records(cells.assign(relative=relative)[columns])]
            maps.append(RateMap(row["series"], largest, found))
    return TunedRates(curves, maps)


def _records(rows: pd.DataFrame) -> list[Any]:
    return rows.to_dict("records")


def _hyper_parameters(report: dict[str, Any]) -> Table:
    return table(
        "hyper_parameters",
        "Best learning rate and the range within 1% of its loss, at the best batch",
        report["hyper_parameters"]["curves"],
        SIZE,
        SERIES,
        batch(report),
        (Column("best lr", "number"), "best_lr"),
        (Column("within 1%", "number"), "plateau_lr"),
        (Column("learning rates tried", "integer"), "num_lrs"),
        EDGES,
    )


def plot_learning_rates(report: dict[str, Any], styles: Styles) -> list[Drawing]:
    """Loss against learning rate at each series' best batch, a figure a size."""
    out = []
    for n in sorted({h["num_params"] for h in report["hyper_parameters"]["curves"]}):
        rows = [h for h in report["hyper_parameters"]["curves"] if h["num_params"] == n and len(h["points"]) > 1]
        if not rows:
            continue
        title = f"{count(n)} parameters, each series at its best batch"
        across = axis_labels.across(report, "peak learning rate of the inner steps", "lr")
        upright = axis_labels.upright(report, "validation loss", "loss", "nats per token")
        figure, axes = panel(title, across, upright)
        rates: list[float] = []
        for name in report["series"]:
            for h in rows:
                if h["series"] == name:
                    tried, losses = [p["lr"] for p in h["points"]], [p["loss"] for p in h["points"]]
                    rates += tried
                    axes.plot(tried, losses, **styles.line(name))
                    error_bars(axes, tried, losses, [p["loss_se"] for p in h["points"]], styles.line(name)["color"])
        log_axis(axes.xaxis, rates, number)
        loss_axis(axes)
        cut_above(axes, [[p["loss"] for p in h["points"]] for h in rows])
        finish(figure, axes)
        alt = f"Validation loss against peak learning rate for models of {count(n)} parameters."
        out.append(Drawing(f"learning_rate_{size_slug(n)}", title, alt, figure))
    return out


def plot_maps(report: dict[str, Any], styles: Styles) -> list[Drawing]:
    """Percent above the best loss over batch and learning rate, a map a series, at the largest size."""
    out = []
    for m in (m for m in report["hyper_parameters"]["maps"] if m["series"] in styles.named):
        rates = sorted({c["lr"] for c in m["cells"]})
        batches = sorted({c["global_batch_tokens"] for c in m["cells"]})
        if len(rates) < 2 or len(batches) < 2:
            continue
        title = f"{m['series']}, {count(m['num_params'])}: % above its best loss"
        across = axis_labels.across(report, "global batch B", "global_batch_tokens", "tokens")
        upright = axis_labels.upright(report, "learning rate", "lr")
        figure, axes = panel(title, across, upright, height=0.25 + 0.24 * len(rates))
        above = np.full((len(rates), len(batches)), np.nan)
        for c in m["cells"]:
            above[rates.index(c["lr"]), batches.index(c["global_batch_tokens"])] = 100 * c["relative"]
        # Ink over the page, so that what is worse stands out on a white page and on a dark one.
        shade = 0.08 * (np.log10(np.clip(np.nan_to_num(above, nan=30.0), 0.05, 30.0)) - np.log10(0.05))
        for (i, j), value in np.ndenumerate(above):
            axes.add_patch(Rectangle((j - 0.5, i - 0.5), 1, 1, color=INK, alpha=shade[i, j], linewidth=0))
            if np.isfinite(value):
                best = value == 0
                text = "best" if best else f"{value:.1f}" if value < 10 else f"{value:.0f}"
                axes.text(j, i, text, ha="center", va="center", fontsize=7.5, fontweight="bold" if best else "normal")
        axes.set_xticks(range(len(batches)), [count(b) for b in batches], fontsize=7.5)
        axes.set_yticks(range(len(rates)), [number(r) for r in rates], fontsize=7.5)
        axes.set(xlim=(-0.5, len(batches) - 0.5), ylim=(-0.5, len(rates) - 0.5))
        axes.grid(visible=False)
        finish(figure, axes)
        alt = f"Percent by which the loss of {m['series']} lies above its best, over learning rate and batch."
        out.append(Drawing(f"map_{series_slug(m['series'])}", title, alt, figure))
    return out


def _plot(report: dict[str, Any], styles: Styles) -> list[Drawing]:
    return [*plot_learning_rates(report, styles), *plot_maps(report, styles)]


def section(report: dict[str, Any], drawn: bool) -> list[Block] | str:
    """Curves and maps."""
    if not drawn:
        return "no series was trained with two learning rates at one batch"
    plateau = number(report["settings"]["plateau"])
    return [
        "A best learning rate on the edge of its grid is a lower bound on how good the method can be. On a grid of "
        f"factors the best is quantised: the plateau, the range within {plateau} times the best loss, says how much "
        "that matters. Each point of a curve is the best of the other hyper-parameters: a mean over seeds with its "
        "standard error. Maps show the losses that settings are compared by, means over the seeds that all have.",
        Figures(),
        Shown("hyper_parameters", folded=True),
    ]


PART = Part(
    "hyper_parameters",
    TunedRates,
    tuned_rates,
    lambda report: [_hyper_parameters(report)],
    _plot,
    "Hyper-parameters",
    section,
)
