"""Figures of a report, drawn from report.json's content alone."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

import matplotlib as mpl
import numpy as np
from matplotlib.ticker import FuncFormatter, MaxNLocator, NullLocator

from analysis.report.drawing import INK, RC, Drawing, Styles, batch_axis, legend, log_axis, panel, power_of_ten
from analysis.report.numbers import count, flops, hours, number

_HIGHEST = 1.1
"""Of the best loss: what is above it is not drawn against batch or learning rate."""


def draw_all(report: dict[str, Any]) -> list[Drawing]:
    """Every figure for which the report has points."""
    styles = Styles(report["series"])
    with mpl.rc_context(RC):
        drawings: list[Drawing] = []
        for plot in _PLOTS:
            drawings += plot(report, styles)
        return drawings


def plot_loss_vs_batch(report: dict[str, Any], styles: Styles) -> list[Drawing]:
    """Loss against batch at each size; a bar marks where the critical batch lies, an arrow that it lies beyond."""
    out = []
    marks = {(p["series"], p["num_params"]): p for p in report["critical_batch"]["points"]}
    for n in sorted({curve["num_params"] for curve in report["loss_vs_batch"]}):
        curves = [curve for curve in report["loss_vs_batch"] if curve["num_params"] == n]
        if max(len(curve["points"]) for curve in curves) < 2:
            continue
        title = f"{count(n)} parameters"
        figure, axes = panel(title, "global batch B (tokens)", "validation loss (nats per token)", len(curves))
        tried: list[float] = []
        for name in report["series"]:
            for curve in curves:
                if curve["series"] != name:
                    continue
                batch = [p["global_batch_tokens"] for p in curve["points"]]
                loss = [p["loss"] for p in curve["points"]]
                tried += batch
                axes.plot(batch, loss, **styles.line(name))
                mark = marks.get((name, n))
                if mark:
                    threshold = report["settings"]["cbs_threshold"]
                    _mark_critical(axes, mark, styles.line(name)["color"], threshold)
        batch_axis(axes, tried)
        axes.yaxis.set_major_locator(MaxNLocator(6))
        _cut_above(axes, [p["loss"] for curve in curves for p in curve["points"]])
        legend(figure, axes)
        alt = f"Validation loss against global batch in tokens, models of {count(n)} parameters, one curve a series."
        out.append(Drawing(f"loss_vs_batch_{_slug(n)}", "loss_vs_batch", title, alt, figure))
    return out


def _cut_above(axes: Any, losses: list[float]) -> None:
    """Losses a tenth above the best leave the panel: what matters lies below, and the table holds them."""
    low, high = min(losses), max(losses)
    if high > _HIGHEST * low:
        room = 0.04 * (_HIGHEST - 1) * low
        axes.set_ylim(low - room, _HIGHEST * low + room)


def _mark_critical(axes: Any, mark: dict[str, Any], color: str, threshold: float) -> None:
    """A bar at the critical batch; arrows to where it lies beyond the batches tried."""
    censored, level = mark["censored"] or "", threshold * mark["best_loss"]
    if not censored:
        axes.plot([mark["interpolated"]], [level], marker="|", markersize=13, markeredgewidth=1.8, color=color)
    if "right" in censored:
        _arrow(axes, (mark["largest_good_batch"], level), (mark["largest_good_batch"] * 1.45, level), color)
    if "left" in censored:
        _arrow(axes, (mark["best_batch"], level), (mark["best_batch"] / 1.45, level), color)


def _arrow(axes: Any, start: tuple[float, float], end: tuple[float, float], color: str) -> None:
    style = {"arrowstyle": "-|>", "color": color, "linewidth": 1.3, "shrinkA": 0, "shrinkB": 0, "mutation_scale": 9}
    axes.annotate("", xy=end, xytext=start, arrowprops=style, annotation_clip=False)


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
    figure, axes = panel(title, "training tokens D", "critical batch (tokens)", len(names) + bool(published))
    values: list[float] = []
    tokens: list[float] = []
    for i, name in enumerate(names):
        style = styles.points(name)
        axes.plot([], [], **style)
        for p in (p for p in points if p["series"] == name):
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
    legend(figure, axes)
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
        _arrow(axes, (x, p["largest_good_batch"]), (x, p["largest_good_batch"] * 1.6), color)
        axes.plot([x], [p["largest_good_batch"]], marker="_", markersize=9, color=color)
    if "left" in censored:
        drawn += [p["largest_good_batch"], p["largest_good_batch"] / 1.6]
        _arrow(axes, (x, p["largest_good_batch"]), (x, p["largest_good_batch"] / 1.6), color)
        axes.plot([x], [p["largest_good_batch"]], marker="_", markersize=9, color=color)
    return drawn


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
    figure, axes = panel(title, "compute C = 6ND (flops)", "L - E (nats per token)", len(names))
    residuals, lower = panel(
        "Residuals of the laws", "compute C = 6ND (flops)", "fitted / observed loss - 1 (%)", len(names)
    )
    values: list[float] = []
    for name in names:
        rows = [p for p in iso["points"] if p["series"] == name]
        axes.plot([p["flops"] for p in rows], [p["reducible"] for p in rows], **styles.points(name))
        fitted = parameters[f"A[{name}]"]["value"] * grid ** -parameters[f"alpha[{name}]"]["value"]
        axes.plot(grid, fitted, **styles.curve(name))
        values += [p["reducible"] for p in rows]
        lower.plot([p["flops"] for p in rows], [100 * p["residual"] for p in rows], **styles.points(name))
    lower.axhline(0, color=INK, linewidth=0.8)
    log_axis(axes.xaxis, flops_seen, power_of_ten)
    log_axis(lower.xaxis, flops_seen, power_of_ten)
    log_axis(axes.yaxis, values, lambda v: f"{v:g}")
    legend(figure, axes)
    legend(residuals, lower)
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
        figure, axes = panel(
            title, "compute C of the series (flops)", y, len(part["curves"]) + bool(report["published"])
        )
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
        legend(figure, axes)
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
    if all(r["ci"] for r in curve):
        low, high = zip(*(r["ci"] for r in curve), strict=True)
        axes.fill_between([r["flops"] for r in curve], low, high, color=color, alpha=0.08, linewidth=0)
    axes.plot([r["flops"] for r in own], [r["value"] for r in own], **styles.points(name))
    for r in own:
        if r["ci"]:
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
    for name in report["series"]:
        mine = [b for b in budgets if b["series"] == name]
        if not mine:
            continue
        figure, axes = panel(f"{name} at equal compute", "parameters N", "validation loss (nats per token)", len(mine))
        for i, b in enumerate(mine):
            sizes, losses = zip(*b["points"], strict=True)
            style = {**styles.nth(i), "label": f"{flops(b['flops'])} flops"}
            axes.plot(sizes, losses, **{**style, "linestyle": "none"})
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
        legend(figure, axes)
        alt = (
            f"Loss of {name} against size at equal compute; rings mark the minima of parabolas inside the sizes tried."
        )
        out.append(Drawing(f"isoflop_{_series_slug(name)}", "isoflop", f"{name} at equal compute", alt, figure))
    return out


def plot_wall_clock(report: dict[str, Any], styles: Styles) -> list[Drawing]:
    """Hours against bandwidth at the largest size, idealised model, each series at its critical batch."""
    clock = report["wall_clock"]
    title = f"Training time, {count(clock['num_params'])} parameters"
    names = [name for name in report["series"] if name in clock["curves"]]
    figure, axes = panel(title, "link between workers (Gbit/s)", "hours (idealised)", len(names))
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
    legend(figure, axes)
    alt = "Hours of training against the bandwidth of the link between workers, one curve a series."
    return [Drawing("wall_clock", "wall_clock", title, alt, figure)]


def plot_learning_rates(report: dict[str, Any], styles: Styles) -> list[Drawing]:
    """Loss against learning rate at each series' best batch, a figure a size."""
    out = []
    for n in sorted({h["num_params"] for h in report["hyper_parameters"]["curves"]}):
        rows = [h for h in report["hyper_parameters"]["curves"] if h["num_params"] == n and len(h["points"]) > 1]
        if not rows:
            continue
        title = f"{count(n)} parameters, each series at its best batch"
        figure, axes = panel(
            title, "peak learning rate of the inner steps", "validation loss (nats per token)", len(rows)
        )
        rates: list[float] = []
        for name in report["series"]:
            for h in rows:
                if h["series"] == name:
                    rates += [p["lr"] for p in h["points"]]
                    axes.plot([p["lr"] for p in h["points"]], [p["loss"] for p in h["points"]], **styles.line(name))
        log_axis(axes.xaxis, rates, number)
        _cut_above(axes, [p["loss"] for h in rows for p in h["points"]])
        legend(figure, axes)
        alt = f"Validation loss against peak learning rate for models of {count(n)} parameters."
        out.append(Drawing(f"learning_rate_{_slug(n)}", "hyper_parameters", title, alt, figure))
    return out


def plot_maps(report: dict[str, Any], styles: Styles) -> list[Drawing]:
    """Percent above the best loss over batch and learning rate, a map a series, at the largest size."""
    out = []
    for m in report["hyper_parameters"]["maps"]:
        rates = sorted({c["lr"] for c in m["cells"]})
        batches = sorted({c["global_batch_tokens"] for c in m["cells"]})
        if len(rates) < 2 or len(batches) < 2:
            continue
        title = f"{m['series']}, {count(m['num_params'])}: % above its best loss"
        height = 1.5 + 0.26 * len(rates)
        figure, axes = panel(title, "global batch B (tokens)", "peak learning rate", 0, height=height)
        above = np.full((len(rates), len(batches)), np.nan)
        for c in m["cells"]:
            above[rates.index(c["lr"]), batches.index(c["global_batch_tokens"])] = 100 * c["relative"]
        shade = np.log10(np.clip(np.nan_to_num(above, nan=30.0), 0.05, 30.0))
        axes.imshow(shade, cmap="Greys", vmin=-1.3, vmax=2.6, aspect="auto", origin="lower", alpha=0.55)
        for (i, j), value in np.ndenumerate(above):
            if np.isfinite(value):
                best = value == 0
                text = "best" if best else f"{value:.1f}" if value < 10 else f"{value:.0f}"
                axes.text(j, i, text, ha="center", va="center", fontsize=7.5, fontweight="bold" if best else "normal")
        axes.set_xticks(range(len(batches)), [count(b) for b in batches], fontsize=7.5)
        axes.set_yticks(range(len(rates)), [number(r) for r in rates], fontsize=7.5)
        axes.grid(visible=False)
        alt = f"Percent by which the loss of {m['series']} lies above its best, over learning rate and batch."
        out.append(Drawing(f"map_{_series_slug(m['series'])}", "maps", title, alt, figure))
    return out


def plot_num_workers(report: dict[str, Any], styles: Styles) -> list[Drawing]:
    """Loss relative to data parallel against K, a figure a size; and how alike the workers' pseudogradients are."""
    out = []
    points, published = report["num_workers"]["points"], report["published"]
    for n in sorted({r["num_params"] for r in points}):
        rows = [r for r in points if r["num_params"] == n]
        if len({r["num_workers"] for r in rows}) < 2:
            continue
        title = f"{count(n)} parameters"
        by = sorted({r["algorithm"] for r in rows})
        figure, axes = panel(title, "workers K", "loss over data parallel's - 1 (%)", len(by) + bool(published))
        for algorithm in by:
            mine = sorted((r for r in rows if r["algorithm"] == algorithm), key=lambda r: r["num_workers"])
            style = {**styles.line(mine[0]["series"]), "label": f"{algorithm}, against {mine[0]['baseline']}"}
            axes.plot([r["num_workers"] for r in mine], [100 * r["relative"] for r in mine], **style)
        if published:
            nearest = min((p["num_params"] for p in published["num_workers"]), key=lambda m: abs(np.log(m / n)))
            for p in (p for p in published["num_workers"] if p["num_params"] == nearest):
                axes.plot([p["num_workers"]], [100 * p["relative"]], **styles.published(f"{p['algorithm']} K=1"))
        axes.axhline(0, color=INK, linewidth=0.8)
        _workers_axis(axes, [r["num_workers"] for r in rows])
        legend(figure, axes)
        alt = f"Loss relative to data parallel against the number of workers, models of {count(n)} parameters."
        out.append(Drawing(f"num_workers_{_slug(n)}", "num_workers", title, alt, figure))
    return out + _plot_cosines(points, styles)


def _plot_cosines(points: list[dict[str, Any]], styles: Styles) -> list[Drawing]:
    known = [r for r in points if r["pseudogradient_cosine"] is not None]
    if not known:
        return []
    title = "Mean cosine between workers' pseudogradients"
    sizes = sorted({r["num_params"] for r in known})
    keys = [(a, n) for a in sorted({r["algorithm"] for r in known}) for n in sizes]
    figure, axes = panel(title, "workers K", "cosine, last quarter of the run", len(keys))
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


def plot_sensitivity(report: dict[str, Any], styles: Styles) -> list[Drawing]:
    """The compute ratio of each series under every choice, one row a choice."""
    rows = [v for v in report["sensitivity"]["loss"] if v["ratio"] is not None]
    if not rows:
        return []
    choices = list(dict.fromkeys(v["name"] for v in rows))
    names = [name for name in report["series"] if any(v["series"] == name for v in rows)]
    title = f"Compute ratio at {flops(rows[0]['flops'])} flops under other choices"
    x = f"compute of {report['settings']['baseline']} / series"
    figure, axes = panel(title, x, "choice made otherwise", len(names), left=0.45, height=1.2 + 0.27 * len(choices))
    for i, name in enumerate(names):
        shift = 0.5 * ((i + 0.5) / len(names) - 0.5)
        mine = [v for v in rows if v["series"] == name]
        axes.plot([v["ratio"] for v in mine], [choices.index(v["name"]) + shift for v in mine], **styles.points(name))
    axes.axvline(1, color=INK, linewidth=0.8)
    axes.set_yticks(range(len(choices)), [_wrapped(c) for c in choices], fontsize=8)
    axes.set_ylim(len(choices) - 0.5, -0.5)
    legend(figure, axes)
    alt = "The compute ratio of each series under other loss functions, irreducible losses and subsets of the data."
    return [Drawing("sensitivity", "sensitivity", title, alt, figure)]


def _wrapped(text: str) -> str:
    return text.replace(" (", "\n(")


def _series_slug(name: str) -> str:
    return re.sub(r"[^a-z0-9]+", "_", name.lower()).strip("_")


def _slug(num_params: float) -> str:
    return count(num_params).replace(".", "p")


_PLOTS: tuple[Callable[[dict[str, Any], Styles], list[Drawing]], ...] = (
    plot_loss_vs_batch,
    plot_critical_batch,
    plot_loss_compute,
    plot_ratios,
    plot_isoflop,
    plot_wall_clock,
    plot_learning_rates,
    plot_maps,
    plot_num_workers,
    plot_sensitivity,
)
