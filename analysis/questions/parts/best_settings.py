"""The best of every series and size, compared with the baseline, and the order at the largest size."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from analysis.optima import RunsBehind
from analysis.page.figures.overview import plot_overview
from analysis.page.numbers import count
from analysis.page.page_table import Column, Table
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
        flags.append("only one batch" if row["batch_edge"] == "only one batch" else f"batch {row['batch_edge']}")
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


BEST = Part("best", list[BestSetting], best_settings, _tables, (plot_overview,))
RANKING = Part("ranking", Ranking, ranking, lambda report: [])
