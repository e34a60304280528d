"""Laws over compute and size, what they say of compute and time, and how far other choices would move that."""

from __future__ import annotations

from typing import Any

import numpy as np
from matplotlib.ticker import MaxNLocator

from analysis.page import axis_labels
from analysis.page.axes import error_bars, log_axis, power_of_ten
from analysis.page.drawing import INK, Drawing, finish, panel, series_slug
from analysis.page.numbers import count, flops, hours
from analysis.page.styles import Styles

_FELT = 1.1
"""A slower link that lengthens no training by more than this factor is no finding."""


def plot_loss_compute(report: dict[str, Any], styles: Styles) -> list[Drawing]:
    """Reducible loss against compute with its laws, and the residuals."""
    iso = report["iso_loss"]
    if iso.get("reason"):
        return []
    names = [name for name in report["series"] if any(p["series"] == name for p in iso["points"])]
    flops_seen = [p["flops"] for p in iso["points"]]
    grid = np.geomspace(min(flops_seen), max(flops_seen), 50)
    parameters = iso["fit"]["parameters"]
    title = "Loss above the shared irreducible loss"
    across = axis_labels.compute(report)
    upright = axis_labels.upright(report, "L - E", "loss", "nats per token")
    figure, axes = panel(title, across, upright)
    residuals, lower = panel("Residuals of the laws", across, "fitted / observed loss - 1 (%)")
    values: list[float] = []
    for name in names:
        rows = [p for p in iso["points"] if p["series"] == name]
        at, above = [p["flops"] for p in rows], [p["reducible"] for p in rows]
        axes.plot(at, above, **styles.points(name))
        error_bars(axes, at, above, [p["loss_se"] for p in rows], styles.points(name)["color"])
        fitted = parameters[f"A[{name}]"]["value"] * grid ** -parameters[f"alpha[{name}]"]["value"]
        axes.plot(grid, fitted, **styles.curve(name))
        values += [p["reducible"] for p in rows]
        lower.plot([p["flops"] for p in rows], [100 * p["residual"] for p in rows], **styles.points(name))
    lower.axhline(0, color=INK, linewidth=0.8)
    log_axis(axes.xaxis, flops_seen, power_of_ten)
    log_axis(lower.xaxis, flops_seen, power_of_ten)
    log_axis(axes.yaxis, values, lambda v: f"{v:g}")
    finish(figure, axes)
    finish(residuals, lower)
    return [
        Drawing(
            "loss_compute",
            "loss_compute",
            title,
            "Reducible loss against compute on log axes, with fitted laws.",
            figure,
        ),
        Drawing(
            "residuals",
            "loss_compute",
            "Residuals of the laws",
            "Residuals of the laws in percent against compute.",
            residuals,
        ),
    ]


def plot_ratios(report: dict[str, Any], styles: Styles) -> list[Drawing]:
    """Compute and time ratios over compute, with intervals at the sizes trained; dotted beyond the data."""
    baseline = report["settings"]["baseline"]
    out = []
    for key, word, published in (
        ("iso_loss", "Compute", "compute_ratio"),
        ("time_ratio", "Training time", "time_ratio"),
    ):
        part = report[key]
        if part.get("reason") or not part["curves"]:
            continue
        title = f"{word} of {baseline} for the same loss"
        y = f"{word.lower()} of {baseline} / series"
        figure, axes = panel(title, axis_labels.across(report, "compute C of the series", "flops", "flops"), y)
        for name in report["series"]:
            if name in part["curves"]:
                _ratio_curve(
                    axes, part["curves"][name], [r for r in part["ratios"] if r["series"] == name], styles, name
                )
        axes.axhline(1, color=INK, linewidth=0.8)
        reach = [r["flops"] for curve in part["curves"].values() for r in curve]
        shown = [r["value"] for curve in part["curves"].values() for r in curve]
        if report["published"]:
            for name, curve in report["published"]["curves"][published].items():
                reach += [p["flops"] for p in curve]
                shown += [p["value"] for p in curve]
                style = {**styles.published(name), "markevery": 6}
                axes.plot([p["flops"] for p in curve], [p["value"] for p in curve], **style)
        log_axis(axes.xaxis, reach, power_of_ten)
        _ratio_axis(axes, shown)
        finish(figure, axes)
        alt = f"{word} {baseline} needs over that of each series at the same loss; dotted beyond the data."
        out.append(Drawing(key, "iso_loss", title, alt, figure))
    return out


def _ratio_curve(axes: Any, curve: list[Any], own: list[Any], styles: Styles, name: str) -> None:
    color = styles.line(name)["color"]
    inside = [r for r in curve if not r["extrapolated"]]
    beyond = inside[-1:] + [r for r in curve if r["extrapolated"]]
    axes.plot([r["flops"] for r in inside], [r["value"] for r in inside], **styles.curve(name))
    dotted = (0, (1, 2.5))
    axes.plot([r["flops"] for r in beyond], [r["value"] for r in beyond], color=color, linestyle=dotted, linewidth=1.2)
    if name in styles.named and all(r["ci"] for r in curve):
        low, high = zip(*(r["ci"] for r in curve), strict=True)
        axes.fill_between([r["flops"] for r in curve], low, high, color=color, alpha=0.08, linewidth=0)
    axes.plot([r["flops"] for r in own], [r["value"] for r in own], **styles.points(name))
    for r in own:
        if name in styles.named and r["ci"]:
            axes.plot([r["flops"]] * 2, r["ci"], color=color, linewidth=0.8, alpha=0.7)


def _ratio_axis(axes: Any, shown: list[float]) -> None:
    """The curves with room for intervals; those of an uncertain ratio may leave the panel."""
    low, high = min(*shown, 1.0), max(*shown, 1.0)
    if high / low > 4:
        axes.set_ylim(low / 1.6, high * 1.6)
        log_axis(axes.yaxis, [low / 1.6, high * 1.6], lambda v: f"{v:g}")
    else:
        room = 0.5 * (high - low) + 0.03
        axes.set_ylim(max(0.0, low - room), high + room)


def plot_isoflop(report: dict[str, Any], styles: Styles) -> list[Drawing]:
    """Loss against size at equal compute, with parabolas; a ring at a minimum inside the sizes tried."""
    budgets = report["size_and_data"]["budgets"]
    out = []
    for name in styles.named:
        mine = [b for b in budgets if b["series"] == name]
        if not mine:
            continue
        across = axis_labels.across(report, "parameters N", "num_params")
        upright = axis_labels.upright(report, "validation loss", "loss", "nats per token")
        figure, axes = panel(f"{name} at equal compute", across, upright)
        for i, b in enumerate(mine):
            sizes, losses = zip(*b["points"], strict=True)
            style = {**styles.nth(i), "label": f"{flops(b['flops'])} flops"}
            axes.plot(sizes, losses, **{**style, "linestyle": "none"})
            error_bars(axes, sizes, losses, b["loss_se"], style["color"])
            if b["parabola"]:
                grid = np.geomspace(min(sizes), max(sizes), 40)
                x = np.log(grid) - b["centre"]
                c0, c1, c2 = b["parabola"]
                axes.plot(grid, np.exp(c0 + c1 * x + c2 * x**2), **{**style, "marker": "none", "label": None})
                if b["best_num_params"]:
                    x = np.log(b["best_num_params"]) - b["centre"]
                    axes.plot([b["best_num_params"]], [np.exp(c0 + c1 * x + c2 * x**2)], marker="o", markersize=11,
                              fillstyle="none", color=style["color"])  # fmt: skip
        log_axis(axes.xaxis, [float(n) for b in mine for n, _ in b["points"]], count)
        axes.yaxis.set_major_locator(MaxNLocator(6))
        finish(figure, axes)
        alt = (
            f"Loss of {name} against size at equal compute; rings mark the minima of parabolas inside the sizes tried."
        )
        out.append(Drawing(f"isoflop_{series_slug(name)}", "isoflop", f"{name} at equal compute", alt, figure))
    return out


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
    return [Drawing("wall_clock", "wall_clock", title, alt, figure)]


def _links_matter(curves: dict[str, Any]) -> bool:
    """Whether the link changes what a series takes by a tenth, and series differ by as much at some link."""
    hours_of = [[p["idealised_hours"] for p in curve] for curve in curves.values()]
    at_links = list(zip(*hours_of, strict=True))
    return all(any(max(each) > _FELT * min(each) for each in some) for some in (hours_of, at_links))


def plot_sensitivity(report: dict[str, Any], styles: Styles) -> list[Drawing]:
    """The compute ratio of each series under every choice, one row a choice."""
    rows = [v for v in report["sensitivity"]["loss"] if v["ratio"] is not None]
    if not rows:
        return []
    choices = list(dict.fromkeys(v["name"] for v in rows))
    names = [name for name in report["series"] if any(v["series"] == name for v in rows)]
    title = f"Compute ratio at {flops(rows[0]['flops'])} flops under other choices"
    x = f"compute of {report['settings']['baseline']} / series"
    figure, axes = panel(title, x, "choice", height=0.3 + 0.3 * len(choices))
    for i, name in enumerate(names):
        shift = 0.5 * ((i + 0.5) / len(names) - 0.5)
        mine = [v for v in rows if v["series"] == name]
        axes.plot([v["ratio"] for v in mine], [choices.index(v["name"]) + shift for v in mine], **styles.points(name))
    axes.axvline(1, color=INK, linewidth=0.8)
    axes.set_yticks(range(len(choices)), [_wrapped(c) for c in choices], fontsize=8)
    axes.set_ylim(len(choices) - 0.5, -0.5)
    finish(figure, axes)
    alt = "The compute ratio of each series under other loss functions, irreducible losses and subsets of the data."
    return [Drawing("sensitivity", "sensitivity", title, alt, figure)]


def _wrapped(text: str) -> str:
    return text.replace(" (", "\n(")
