"""The best of every series and size, compared with the baseline, and the order at the largest size."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from matplotlib.ticker import MaxNLocator

from analysis.optima import RunsBehind
from analysis.page import axis_labels
from analysis.page.axes import error_bars, log_axis, loss_axis, power_of_ten
from analysis.page.drawing import INK, Drawing, finish, fitted, panel, panel_below
from analysis.page.numbers import count
from analysis.page.page_table import Column, Table
from analysis.page.styles import Styles
from analysis.page.table_fields import (
    LOSS,
    LOSS_SE,
    SEEDS,
    SERIES,
    SIZE,
    Entry,
    Field,
    against,
    batch,
    estimate,
    inside,
    stands_on,
    table,
)
from analysis.questions.iso_loss import IsoLoss, Ratio
from analysis.questions.question import Inputs, Part
from analysis.questions.time_ratio import TimeRatios
from analysis.seeds import Comparison, compare_seeds
from muloco_runner.record import ONLY_ONE_BATCH


@dataclass(frozen=True)
class SeedLoss:
    """A loss of one seed."""

    seed: int
    loss: float


@dataclass(frozen=True)
class ValueAndInterval:
    """A ratio with its 95% interval."""

    value: float
    ci: tuple[float | None, float | None] | None


@dataclass(frozen=True)
class BestSetting:
    """The best of a series at one size."""

    series: str
    num_params: int
    num_tokens: float
    flops: float
    loss: float
    """Mean over seeds: those that took no part in choosing the setting, where it has such seeds."""
    loss_se: float | None
    """Standard error of the mean over seeds; null for one seed."""
    seeds: int
    """Seeds behind the loss."""
    selection_loss: float
    """Mean by which settings were compared."""
    selection_seeds: int
    """Seeds behind selection_loss."""
    shared_seeds: bool
    """Whether all settings of this series and size have those seeds."""
    unbiased: bool
    """Whether the seeds behind loss took no part in choosing the setting."""
    global_batch_tokens: int
    num_steps: int
    lr: float | None
    outer_lr: float | None
    outer_momentum: float | None
    weight_decay: float | None
    edges: list[str]
    """Hyper-parameters whose best value is the smallest (low) or largest (high) tried."""
    batch_edge: str | None
    """low, high or only one batch."""
    settings: int
    """Hyper-parameter settings tried at that batch."""
    num_workers: int
    """K."""
    train_seconds: float | None
    memory_bytes: float | None
    """Peak memory of the main rank in the run behind the setting: of its device, or of its process without one."""
    bytes_sent: float | None
    """By one worker."""
    pseudogradient_cosine: float | None
    stands_on: RunsBehind
    seed_losses: list[SeedLoss]
    """The losses behind loss."""
    plateau_lr: list[float | None]
    """Smallest and largest learning rate of the plateau."""
    weight_decay_timescale: float | None
    """tau = B/(lr wd D), a share of the run (arXiv 2505.13738); null without weight decay."""
    against_baseline: Comparison | None
    """A mean loss over another, minus one; null without another."""
    compute_ratio: ValueAndInterval | None
    time_ratio: ValueAndInterval | None


@dataclass(frozen=True)
class Ranking:
    """The largest size."""

    num_params: int
    series: list[str]
    """From the lowest loss to the highest."""
    gap: Comparison | None
    """The second's loss against the first's."""
    stands_on: RunsBehind


_NAME_POINTS = 120.0
"""Widest name of a series beside its row."""
_FROM_THE_ROW = (
    "series", "num_params", "num_tokens", "flops", "loss", "loss_se", "seeds", "selection_loss", "selection_seeds",
    "shared_seeds", "unbiased", "global_batch_tokens", "num_steps", "lr", "outer_lr", "outer_momentum", "weight_decay",
    "edges", "batch_edge", "settings", "num_workers", "train_seconds", "memory_bytes", "bytes_sent",
    "pseudogradient_cosine",
)  # fmt: skip


def best_settings(inputs: Inputs) -> list[BestSetting]:
    """A row a series and size, in the order of series."""
    best, optima = inputs.best, inputs.optima
    of_baseline = best[best["series"] == inputs.baseline].set_index("num_params")["seed_losses"]
    compute = _by_place(inputs.iso_loss.ratios if isinstance(inputs.iso_loss, IsoLoss) else [])
    time = _by_place(inputs.time_ratios.ratios if isinstance(inputs.time_ratios, TimeRatios) else [])
    runs = optima.settings.groupby("series", observed=True)["runs"].sum()
    out = []
    for row in best.to_dict("records"):
        key = (row["series"], row["flops"])
        reference = None if row["series"] == inputs.baseline else of_baseline.get(row["num_params"])
        out.append(
            BestSetting(
                **{name: row[name] for name in _FROM_THE_ROW},
                stands_on=RunsBehind(row["runs"], runs[row["series"]]),
                seed_losses=[SeedLoss(seed, loss) for seed, loss in row["seed_losses"].items()],
                plateau_lr=list(row["plateau_lr"]),
                weight_decay_timescale=_timescale(row),
                against_baseline=None if reference is None else compare_seeds(row["seed_losses"], reference),
                compute_ratio=compute.get(key),
                time_ratio=time.get(key),
            )
        )
    return out


def _by_place(ratios: list[Ratio] | Any) -> dict[tuple[str, float], ValueAndInterval]:
    """Ratios by series and its compute."""
    return {(ratio.series, ratio.flops): ValueAndInterval(ratio.value, ratio.ci) for ratio in ratios}


def _timescale(row: Mapping[Any, Any]) -> float | None:
    decay = float(row["lr"]) * float(row["weight_decay"])
    return float(row["global_batch_tokens"]) / (decay * float(row["num_tokens"])) if decay > 0 else None


def ranking(inputs: Inputs) -> Ranking:
    """Series at the largest size from the lowest loss to the highest, and the second's loss over the first's."""
    largest = inputs.best[inputs.best["num_params"] == inputs.best["num_params"].max()]
    rows = largest.sort_values("loss", kind="stable").to_dict("records")
    gap = compare_seeds(rows[1]["seed_losses"], rows[0]["seed_losses"]) if len(rows) > 1 else None
    names = [row["series"] for row in rows]
    return Ranking(rows[0]["num_params"], names, gap, inputs.optima.runs_behind(largest))


def _overview(report: Entry) -> Table:
    """A row a series: its best loss at each size, and the compute ratio at the largest size it has one for.

    Where there are no such ratios, its loss over the baseline's at the largest size.
    """
    best = {(row["series"], row["num_params"]): row for row in report["best"]}
    sizes = sorted({n for _, n in best}, reverse=True)
    largest = {name: row for (name, n), row in best.items() if n == sizes[0]}
    entries = []
    for name in report["series"]:
        mine = [best[name, n] for n in sizes if (name, n) in best]
        ratio = next((row["compute_ratio"] for row in mine if row["compute_ratio"]), None)
        if mine:
            over = largest[name]["against_baseline"] if name in largest else None
            by_size = {str(n): best.get((name, n)) for n in sizes}
            entries.append({"series": name, "ratio": ratio, "against_baseline": over, **by_size})
    losses: list[Field] = []
    for n in sizes:
        losses += [
            (Column(count(n), "loss"), inside(str(n), "loss")),
            (Column(f"{count(n)}, standard error", "standard_error", joint=" ± "), inside(str(n), "loss_se")),
        ]
    baseline, told = report["settings"]["baseline"], ""
    compared: list[Field] = []
    if any(entry["ratio"] for entry in entries):
        told = f"; ratio: compute of {baseline} over the series', at equal loss"
        compared += estimate(Column("ratio", "ratio"), "ratio")
    elif any(row["against_baseline"] for row in largest.values()):
        told = f"; ratio: loss over {baseline}'s, less one, at {count(sizes[0])}"
        compared += against(Column("ratio", "percent"))
    return table(
        "overview",
        f"Best loss by size (parameters) in nats per token{told}",
        entries,
        SERIES,
        *compared,
        *losses,
    )


def _verdict(report: Entry) -> Table:
    return table(
        "verdict",
        "Best loss of every series at each size, and the compute and time that the baseline needs for it",
        sorted(report["best"], key=lambda row: (row["num_params"], report["series"].index(row["series"]))),
        SIZE,
        SERIES,
        LOSS,
        LOSS_SE,
        SEEDS,
        *against(Column("against baseline", "percent")),
        *estimate(Column("compute ratio", "ratio"), "compute_ratio"),
        *estimate(Column("time ratio", "ratio"), "time_ratio"),
        batch(report, "best batch"),
        (Column("best lr", "number"), "lr"),
        *stands_on(),
        (Column("on a grid's edge"), _edges_of_best),
    )


def _edges_of_best(row: Entry) -> str:
    flags = [*row["edges"]]
    if row["batch_edge"]:
        flags.append(ONLY_ONE_BATCH if row["batch_edge"] == ONLY_ONE_BATCH else f"batch {row['batch_edge']}")
    return ", ".join(flags) or "–"


def _cost(report: Entry) -> Table:
    """Steps, tokens and time of the best run at the largest size, and what tuning its series took."""
    largest = max(row["num_params"] for row in report["best"])
    tuning = {entry["series"]: entry for entry in report["audit"]["by_series"]}
    entries = [{**row, "tuning": tuning[row["series"]]} for row in report["best"] if row["num_params"] == largest]
    return table(
        "cost",
        f"What the best of each series at {count(largest)} parameters took, and what tuning the series took over all "
        "sizes",
        sorted(entries, key=lambda entry: report["series"].index(entry["series"])),
        SERIES,
        LOSS,
        LOSS_SE,
        (Column("steps", "integer"), "num_steps"),
        (Column("tokens", "count"), "num_tokens"),
        (Column("training time", "seconds", "s"), "train_seconds"),
        (Column("peak memory", "bytes"), "memory_bytes"),
        (Column("tau = B/(lr wd D)", "number", "share of the run"), "weight_decay_timescale"),
        (Column("runs of the series", "integer"), inside("tuning", "runs")),
        (Column("settings tried", "integer"), inside("tuning", "settings")),
        (Column("device-hours of the series", "hours"), inside("tuning", "device_hours")),
    )


def _tables(report: Entry) -> list[Table]:
    return [_overview(report), _verdict(report), _cost(report)]


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
    return Drawing("overview", title, alt, figure)


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
    return Drawing("overview", title, alt, figure)


BEST = Part("best", list[BestSetting], best_settings, _tables, plot_overview)
RANKING = Part("ranking", Ranking, ranking)
