"""Hours of training over links of several speeds, each series at its critical batch at the largest size."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np

from analysis.page.axes import log_axis
from analysis.page.drawing import Drawing, finish, panel
from analysis.page.numbers import count, flops, hours, integer, number
from analysis.page.page_table import Column, Table
from analysis.page.section import Block, Figures, Shown
from analysis.page.styles import Styles
from analysis.page.table_fields import SERIES, batch, table
from analysis.questions import wall_clock
from analysis.questions.question import Inputs, Part
from analysis.questions.wall_clock import Assumptions

_FELT = 1.1
"""A slower link that lengthens no training by more than this factor is no finding."""


@dataclass(frozen=True)
class LinkHours:
    """One series over one link."""

    series: str
    bandwidth_gbits: float
    """Gbit/s."""
    global_batch_tokens: float
    """Critical batch, 1% rule."""
    num_steps: float
    num_exchanges: float
    """Across the link."""
    compression: float
    idealised_hours: float
    charles_hours: float
    """Fixed number of devices."""
    measured_hours: float | None
    """Recorded step time and bytes of the best run."""


@dataclass(frozen=True)
class LinkPoint:
    """Of the figure."""

    bandwidth_gbits: float
    idealised_hours: float


@dataclass(frozen=True)
class WallClock:
    """Hours at the largest size."""

    num_params: int
    assumptions: Assumptions
    rows: list[LinkHours]
    curves: dict[str, list[LinkPoint]]
    measured: bool


def link_hours(inputs: Inputs) -> WallClock:
    """Hours at the largest size, each series at its critical batch (1% rule, the largest tested batch within it)."""
    assume, best = inputs.options.machine, inputs.best
    largest = int(best["num_params"].max())
    if inputs.optima.reason_against("num_params", "num_tokens", "global_batch_tokens"):
        return WallClock(largest, assume, [], {}, False)
    critical = {(p.series, p.num_params): p.largest_good_batch for p in inputs.critical_batches}
    rows: list[LinkHours] = []
    curves: dict[str, list[LinkPoint]] = {}
    at_largest = {row["series"]: row for row in best[best["num_params"] == largest].to_dict("records")}
    for name in [name for name in inputs.study.series if name in at_largest]:
        row = at_largest[name]
        run = _training(row, critical.get((name, largest), int(row["global_batch_tokens"])), assume)
        rows += [_over(name, row, run, gigabits, assume) for gigabits in inputs.options.bandwidths]
        grid = np.geomspace(min(inputs.options.bandwidths), max(inputs.options.bandwidths), 61)
        curves[name] = [
            LinkPoint(float(g), wall_clock.idealised_seconds(run, g * wall_clock.GIGABIT, assume) / 3600) for g in grid
        ]
    return WallClock(largest, assume, rows, curves, any(row.measured_hours is not None for row in rows))


def _over(name: str, row: Any, run: wall_clock.Training, gigabits: float, assume: Assumptions) -> LinkHours:
    bandwidth = gigabits * wall_clock.GIGABIT
    return LinkHours(
        series=name,
        bandwidth_gbits=gigabits,
        global_batch_tokens=run.global_batch_tokens,
        num_steps=run.num_steps,
        num_exchanges=run.num_exchanges,
        compression=run.bits_divisor,
        idealised_hours=wall_clock.idealised_seconds(run, bandwidth, assume) / 3600,
        charles_hours=wall_clock.charles_seconds(run, bandwidth, assume) / 3600,
        measured_hours=_measured_hours(row, assume, bandwidth, _measured(row, assume)),
    )


def _training(row: Any, batch: int, assume: Assumptions) -> wall_clock.Training:
    bits, interval = float(row["bits_per_value"]), row["sync_interval"]
    return wall_clock.Training(
        num_params=int(row["num_params"]),
        num_tokens=float(row["num_tokens"]),
        global_batch_tokens=float(batch),
        num_workers=int(row["num_workers"]),
        sync_interval=1 if interval is None or math.isnan(interval) else int(interval),
        compression=1.0 if math.isnan(bits) else assume.bits_per_value / bits,
        num_fragments=int(row["num_fragments"]),
        delay_steps=int(row["delay_steps"]),
    )


def _measured(row: Any, assume: Assumptions) -> wall_clock.Measured | None:
    """Seconds and bytes a step of the best run itself; None where its record lacks one of them."""
    seconds, sent, steps = (float(row[name]) for name in ("train_seconds", "bytes_sent", "num_steps"))
    if not (seconds > 0 and sent > 0):
        return None
    waited = float(row["wait_seconds"])
    computed = seconds if math.isnan(waited) else max(0.0, seconds - waited)
    return wall_clock.Measured(computed / steps, _bytes_per_step(row, assume))


def _bytes_per_step(row: Any, assume: Assumptions) -> float:
    """Bytes across the slow link at each step: what several workers send, or what the replicas of one exchange.

    `bytes_sent` has a worker's pseudogradients. One worker has nobody to send them to, but replicas that average
    float32 gradients at every step. Where they share Muon's work, its matrices' go one way alone, which is half of it,
    and the results come back.
    """
    sent = float(row["bytes_sent"]) / float(row["num_steps"])
    if row["num_workers"] > 1:
        return sent
    interval = row["sync_interval"]
    gradients = sent if interval is None or math.isnan(interval) else 4.0 * float(row["num_params"])
    return gradients + (assume.bits_per_value / 8 - 4.0) * float(row["gathered_values"]) / 2


def _measured_hours(
    row: Any, assume: Assumptions, bandwidth: float, measured: wall_clock.Measured | None
) -> float | None:
    if measured is None:
        return None
    return (
        wall_clock.measured_seconds(_training(row, int(row["global_batch_tokens"]), assume), bandwidth, measured) / 3600
    )


def _wall_clock(report: dict[str, Any]) -> Table:
    return table(
        "wall_clock",
        "Hours of training at the largest size and each series' critical batch",
        report["wall_clock"]["rows"],
        SERIES,
        (Column("link", "number", "Gbit/s"), "bandwidth_gbits"),
        batch(report),
        (Column("steps", "integer"), "num_steps"),
        (Column("exchanges", "integer"), "num_exchanges"),
        (Column("compression", "number"), "compression"),
        (Column("idealised", "hours"), "idealised_hours"),
        (Column("fixed devices", "hours"), "charles_hours"),
        (Column("best run as recorded", "hours"), "measured_hours"),
    )


def plot_wall_clock(report: dict[str, Any], styles: Styles) -> list[Drawing]:
    """Hours against bandwidth at the largest size, idealised model, each series at its critical batch."""
    clock = report["wall_clock"]
    if not _links_matter(clock["curves"]):
        return []
    title = f"Training time, {count(clock['num_params'])} parameters"
    names = [name for name in report["series"] if name in clock["curves"]]
    figure, axes = panel(title, "link between workers (Gbit/s)", "hours (idealised)")
    values: list[float] = []
    links: list[float] = []
    for name in names:
        curve = clock["curves"][name]
        links += [p["bandwidth_gbits"] for p in curve]
        values += [p["idealised_hours"] for p in curve]
        axes.plot(
            [p["bandwidth_gbits"] for p in curve],
            [p["idealised_hours"] for p in curve],
            **{**styles.line(name), "markevery": 10},
        )
    log_axis(axes.xaxis, links, lambda v: f"{v:g}")
    axes.set_xlim(min(links) / 1.2, max(links) * 1.2)
    log_axis(axes.yaxis, values, hours)
    finish(figure, axes)
    alt = "Hours of training against the bandwidth of the link between workers, one curve a series."
    return [Drawing("wall_clock", title, alt, figure)]


def _links_matter(curves: dict[str, Any]) -> bool:
    """Whether the link changes what a series takes by a tenth, and series differ by as much at some link."""
    hours_of = [[p["idealised_hours"] for p in curve] for curve in curves.values()]
    at_links = list(zip(*hours_of, strict=True))
    return all(any(max(each) > _FELT * min(each) for each in some) for some in (hours_of, at_links))


def section(report: dict[str, Any], drawn: bool) -> list[Block] | str:
    """Hours against the link, with what the two models assume."""
    clock = report["wall_clock"]
    if not clock["rows"]:
        return "the columns that hours would follow from cannot be used"
    if not drawn:
        return (
            "no link considered lengthens a series' training by a tenth, or all series take the same "
            "(tables/wall_clock.csv)"
        )
    assume = clock["assumptions"]
    recorded = (
        " As recorded: step time and bytes of the best run itself, over such a link." if clock["measured"] else ""
    )
    return [
        f"Hours to train {count(clock['num_params'])} parameters at each series' critical batch. Data parallel and one "
        "worker exchange every step, several workers every H steps, divided by what compression saves. Idealised: "
        f"devices grow with the batch, a step computes for {number(assume['step_seconds'])} s and an exchange moves "
        f"{number(assume['bits_per_value'])} bits a parameter. Fixed devices (Charles et al. 2025): "
        f"{integer(assume['num_devices'])} devices of {flops(assume['device_flops'])} flop/s, an all-reduce each "
        f"exchange, {number(assume['latency_seconds'])} s of latency.{recorded}",
        Figures(),
        Shown("wall_clock", folded=True),
    ]


PART = Part(
    "wall_clock",
    WallClock,
    link_hours,
    lambda report: [_wall_clock(report)],
    plot_wall_clock,
    "Wall clock under a bandwidth",
    section,
)
