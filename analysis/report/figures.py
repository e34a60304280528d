"""Figures of a report, drawn from report.json's content alone. One panel a figure, so that a phone can stack them.

Colour tells algorithms apart, marker and line style tell them apart again, and K changes the marker's filling.
"""

from __future__ import annotations

import io
import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import matplotlib as mpl
import numpy as np
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, LogLocator, MaxNLocator, NullFormatter, NullLocator

from analysis.report.numbers import count

INK = "#1b1f24"
"""Text and axes; on a page it is replaced by the page's own text colour."""
_STYLES = {
    "DDP-AdamW": ("#0072B2", "o", "-"),
    "DDP-Muon": ("#D55E00", "s", "--"),
    "DiLoCo": ("#009E73", "^", "-."),
    "MuLoCo": ("#CC79A7", "D", ":"),
}
_OTHERS = (("#E69F00", "v", "-"), ("#56B4E9", "P", "--"), ("#8C6BB1", "X", "-."), ("#7F7F7F", "h", ":"))
_FILLS = ("full", "none", "left", "top", "right", "bottom")
_RC: Any = {
    "svg.fonttype": "none",
    "svg.hashsalt": "report",
    "pdf.fonttype": 42,
    "font.family": "DejaVu Sans",
    "font.size": 9.0,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "text.color": INK,
    "axes.labelcolor": INK,
    "axes.edgecolor": INK,
    "xtick.color": INK,
    "ytick.color": INK,
    "grid.color": INK,
    "grid.alpha": 0.15,
    "grid.linewidth": 0.6,
    "axes.grid": True,
    "lines.linewidth": 1.4,
    "lines.markersize": 5.0,
    "legend.frameon": False,
    "legend.fontsize": 8.0,
    "axes.titlesize": 9.5,
    "axes.titlelocation": "left",
}


@dataclass(frozen=True)
class Drawing:
    """One figure with the text that stands for it where it cannot be seen."""

    name: str
    section: str
    title: str
    alt: str
    figure: Figure

    def svg(self) -> str:
        out = io.StringIO()
        with mpl.rc_context({**_RC, "svg.hashsalt": self.name}):
            self.figure.savefig(out, format="svg", transparent=True, metadata={"Date": None, "Title": self.title})
        return out.getvalue()

    def pdf(self) -> bytes:
        out = io.BytesIO()
        with mpl.rc_context(_RC):
            self.figure.savefig(out, format="pdf", metadata={"CreationDate": None, "Title": self.title})
        return out.getvalue()

    def inline_svg(self) -> str:
        """For a page: ids of its own, the page's text colour, an accessible name, and a width that follows the page."""
        text = self.svg()
        text = text[text.index("<svg") :]
        text = re.sub(r"<metadata>.*?</metadata>\s*", "", text, flags=re.S)
        text = re.sub(r"<title>.*?</title>\s*", "", text, flags=re.S)
        text = re.sub(r'\bid="', f'id="{self.name}-', text)
        text = text.replace('xlink:href="#', f'xlink:href="#{self.name}-').replace("url(#", f"url(#{self.name}-")
        text = text.replace(INK, "currentColor")
        return re.sub(
            r"<svg [^>]*?viewBox=\"([^\"]*)\"[^>]*>",
            rf'<svg xmlns="http://www.w3.org/2000/svg" xmlns:xlink="http://www.w3.org/1999/xlink" viewBox="\1" '
            rf'role="img" aria-label="{_escape(self.alt)}">',
            text,
            count=1,
        )


def _escape(text: str) -> str:
    return text.replace("&", "&amp;").replace('"', "&quot;").replace("<", "&lt;")


class Styles:
    """Colour, marker, line and filling of each series, the same in every figure of a report."""

    def __init__(self, series: list[str]) -> None:
        self._styles: dict[str, dict[str, Any]] = {}
        members: dict[str, int] = {}
        others = 0
        for name in series:
            algorithm = name.split(" ")[0]
            if algorithm not in _STYLES and algorithm not in members:
                others += 1
            base = _STYLES.get(algorithm) or _OTHERS[(others - 1) % len(_OTHERS)]
            position = members.get(algorithm, 0)
            members[algorithm] = position + 1
            self._styles[name] = {
                "color": base[0],
                "marker": base[1],
                "linestyle": base[2],
                "fillstyle": _FILLS[position % len(_FILLS)],
                "label": name,
                "linewidth": max(0.7, 1.5 - 0.3 * position),
            }

    def line(self, name: str) -> dict[str, Any]:
        return dict(self._styles[name])

    def points(self, name: str) -> dict[str, Any]:
        return {**self._styles[name], "linestyle": "none"}

    def curve(self, name: str) -> dict[str, Any]:
        return {**self._styles[name], "marker": "none", "label": None}


def draw_all(report: dict[str, Any]) -> list[Drawing]:
    """Every figure for which the report has points."""
    styles = Styles(report["series"])
    with mpl.rc_context(_RC):
        drawings: list[Drawing] = []
        for plot in _PLOTS:
            drawings += plot(report, styles)
        return drawings


def _panel(title: str, x: str, y: str, num_series: int) -> tuple[Figure, Any]:
    """Axes of 4.6 by 3 inches with the legend below them, as many rows of it as the series need."""
    rows = (num_series + 1) // 2
    height = 3.15 + 0.19 * rows
    figure = Figure(figsize=(4.6, height))
    bottom = (0.52 + 0.19 * rows) / height
    axes = figure.add_axes((0.155, bottom, 0.815, 1 - bottom - 0.3 / height))
    axes.set_title(title)
    axes.set_xlabel(x)
    axes.set_ylabel(y)
    return figure, axes


def _legend(figure: Figure, axes: Any) -> None:
    handles, labels = axes.get_legend_handles_labels()
    seen = dict(zip(labels, handles, strict=True))
    if seen:
        figure.legend(seen.values(), seen.keys(), loc="lower center", ncols=2, handlelength=3.2, borderaxespad=0.15)


def _log_axis(axis: Any, values: list[float], numbers: Callable[[float], str]) -> None:
    """Ticks at powers of ten, or at rounder steps where the data span less than a decade and a half."""
    axis.axes.set(**{f"{axis.axis_name}scale": "log"})
    span = np.log10(max(values) / min(values)) if values else 0
    subs: tuple[float, ...] = (
        (1.0,) if span > 2.5 else (1.0, 2.0, 5.0) if span > 0.7 else tuple(np.arange(1.0, 10.0, 1.0))
    )
    axis.set_major_locator(LogLocator(base=10, subs=subs, numticks=8))
    axis.set_major_formatter(FuncFormatter(lambda v, _: numbers(v)))
    axis.set_minor_locator(NullLocator())
    axis.set_minor_formatter(NullFormatter())


def _batch_axis(axes: Any, batches: list[float]) -> None:
    """Powers of two, labelled at the batches that were tried, thinned to at most seven."""
    axes.set_xscale("log", base=2)
    ticks = sorted(set(batches))
    axes.set_xticks(ticks[:: -(-len(ticks) // 7)])
    axes.xaxis.set_major_formatter(FuncFormatter(lambda v, _: count(v)))
    axes.xaxis.set_minor_locator(NullLocator())
    axes.margins(x=0.08)


def plot_loss_vs_batch(report: dict[str, Any], styles: Styles) -> list[Drawing]:
    """Loss against batch at each size; a bar marks where the critical batch lies, an arrow that it lies beyond."""
    out = []
    marks = {(p["series"], p["num_params"]): p for p in report["critical_batch"]["points"]}
    for n in sorted({curve["num_params"] for curve in report["loss_vs_batch"]}):
        curves = [curve for curve in report["loss_vs_batch"] if curve["num_params"] == n]
        if max(len(curve["points"]) for curve in curves) < 2:
            continue
        title = f"{count(n)} parameters"
        figure, axes = _panel(title, "global batch B (tokens)", "validation loss (nats per token)", len(curves))
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
                    _mark_critical(axes, mark, styles.line(name)["color"])
        _batch_axis(axes, tried)
        axes.yaxis.set_major_locator(MaxNLocator(6))
        _legend(figure, axes)
        alt = f"Validation loss against global batch in tokens, models of {count(n)} parameters, one curve a series."
        out.append(Drawing(f"loss_vs_batch_{count(n).replace('.', 'p')}", "loss_vs_batch", title, alt, figure))
    return out


def _mark_critical(axes: Any, mark: dict[str, Any], color: str) -> None:
    level = 1.01 * mark["best_loss"]
    if mark["interpolated"] is not None:
        axes.plot([mark["interpolated"]], [level], marker="|", markersize=13, markeredgewidth=1.8, color=color)
    else:
        axes.annotate(
            "",
            xy=(mark["largest_good_batch"] * 1.35, level),
            xytext=(mark["largest_good_batch"], level),
            arrowprops={"arrowstyle": "->", "color": color, "linewidth": 1.2},
            annotation_clip=False,
        )


def plot_critical_batch(report: dict[str, Any], styles: Styles) -> list[Drawing]:
    """Interpolated critical batch against tokens, with laws; bars span the tested batches it lies between."""
    points = report["critical_batch"]["points"]
    if len({p["num_params"] for p in points}) < 2:
        return []
    title = "Critical batch, 1% rule"
    figure, axes = _panel(title, "training tokens D", "critical batch (tokens)", len({p["series"] for p in points}))
    values: list[float] = []
    names = [name for name in report["series"] if any(p["series"] == name for p in points)]
    for i, name in enumerate(names):
        shift = 1.04 ** (i - (len(names) - 1) / 2)
        style = styles.points(name)
        axes.plot([], [], **style)
        for p in (p for p in points if p["series"] == name):
            x = p["num_tokens"] * shift
            values += [p["largest_good_batch"], p["next_batch"] or p["largest_good_batch"] * 2]
            if p["interpolated"] is None:
                axes.annotate(
                    "",
                    xy=(x, p["largest_good_batch"] * 1.5),
                    xytext=(x, p["largest_good_batch"]),
                    arrowprops={"arrowstyle": "->", "color": style["color"], "linewidth": 1.4},
                )
                axes.plot([x], [p["largest_good_batch"]], marker="_", markersize=9, color=style["color"])
                continue
            axes.plot([x, x], [p["largest_good_batch"], p["next_batch"]], color=style["color"], linewidth=1, alpha=0.6)
            axes.plot([x], [p["interpolated"]], **{**style, "label": None})
        law = next(
            law
            for law in report["critical_batch"]["laws"]
            if law["series"] == name and law["definition"] == "cbs_1pct_interpolated"
        )
        if law["fit"]:
            low, high = law["fit"]["inputs"]["num_tokens"]
            tokens = np.geomspace(low, high, 20)
            parameters = law["fit"]["parameters"]
            fitted = parameters["A"]["value"] * tokens ** parameters["alpha"]["value"]
            axes.plot(tokens, fitted, **styles.curve(name))
    _log_axis(axes.xaxis, [float(p["num_tokens"]) for p in points], count)
    axes.set_yscale("log", base=2)
    axes.yaxis.set_major_formatter(FuncFormatter(lambda v, _: count(v)))
    axes.set_ylim(min(values) / 1.3, max(values) * 1.3)
    _legend(figure, axes)
    alt = "Critical batch size against training tokens; arrows are lower bounds where no tested batch was too large."
    return [Drawing("critical_batch", "critical_batch", title, alt, figure)]


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
    figure, axes = _panel(title, "compute C = 6ND (flops)", "L - E (nats per token)", len(names))
    residuals, lower = _panel(
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
    _log_axis(axes.xaxis, flops_seen, _power_of_ten)
    _log_axis(lower.xaxis, flops_seen, _power_of_ten)
    _log_axis(axes.yaxis, values, lambda v: f"{v:g}")
    for one, panel in ((figure, axes), (residuals, lower)):
        _legend(one, panel)
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


def plot_iso_loss(report: dict[str, Any], styles: Styles) -> list[Drawing]:
    """Compute ratios over compute, with intervals at the sizes trained; dotted beyond the data."""
    iso = report["iso_loss"]
    if iso.get("reason") or not iso["curves"]:
        return []
    title = f"Compute of {iso['baseline']} for the same loss"
    figure, axes = _panel(title, "compute C of the series (flops)", f"C of {iso['baseline']} / C", len(iso["curves"]))
    for name in report["series"]:
        curve = iso["curves"].get(name)
        if not curve:
            continue
        style = styles.line(name)
        inside = [r for r in curve if not r["extrapolated"]]
        beyond = [r for r in curve if r["extrapolated"]]
        axes.plot([r["flops"] for r in inside], [r["value"] for r in inside], **styles.curve(name))
        axes.plot(
            [r["flops"] for r in inside[-1:] + beyond],
            [r["value"] for r in inside[-1:] + beyond],
            color=style["color"],
            linestyle=(0, (1, 2.5)),
            linewidth=1.2,
        )
        own = [r for r in iso["ratios"] if r["series"] == name]
        axes.plot([r["flops"] for r in own], [r["value"] for r in own], **styles.points(name))
        for r in own:
            if r["ci"]:
                axes.plot([r["flops"]] * 2, r["ci"], color=style["color"], linewidth=0.8, alpha=0.7)
    axes.axhline(1, color=INK, linewidth=0.8)
    _log_axis(axes.xaxis, [r["flops"] for c in iso["curves"].values() for r in c], _power_of_ten)
    shown = [r["value"] for c in iso["curves"].values() for r in c]
    centre, reach = 1.0, max(abs(v - 1) for v in shown)
    axes.set_ylim(max(0, centre - 3 * reach - 0.05), centre + 3 * reach + 0.05)
    _legend(figure, axes)
    alt = f"Compute {iso['baseline']} needs over compute of each series at the same loss; dotted beyond the data."
    return [Drawing("iso_loss", "iso_loss", title, alt, figure)]


def plot_learning_rates(report: dict[str, Any], styles: Styles) -> list[Drawing]:
    """Loss against learning rate at each series' best batch, a figure a size."""
    out = []
    for n in sorted({h["num_params"] for h in report["hyper_parameters"]}):
        rows = [h for h in report["hyper_parameters"] if h["num_params"] == n and len(h["points"]) > 1]
        if not rows:
            continue
        title = f"{count(n)} parameters, each series at its best batch"
        figure, axes = _panel(
            title, "peak learning rate of the inner steps", "validation loss (nats per token)", len(rows)
        )
        rates: list[float] = []
        for name in report["series"]:
            for h in rows:
                if h["series"] == name:
                    rates += [p["lr"] for p in h["points"]]
                    axes.plot([p["lr"] for p in h["points"]], [p["loss"] for p in h["points"]], **styles.line(name))
        _log_axis(axes.xaxis, rates, lambda v: f"{v:.3g}")
        _legend(figure, axes)
        alt = f"Validation loss against peak learning rate for models of {count(n)} parameters."
        out.append(Drawing(f"learning_rate_{count(n).replace('.', 'p')}", "hyper_parameters", title, alt, figure))
    return out


def plot_num_workers(report: dict[str, Any], styles: Styles) -> list[Drawing]:
    """Loss relative to data parallel against K, a figure a size."""
    out = []
    for n in sorted({r["num_params"] for r in report["num_workers"]}):
        rows = [r for r in report["num_workers"] if r["num_params"] == n]
        if len({r["num_workers"] for r in rows}) < 2:
            continue
        algorithms = sorted({r["algorithm"] for r in rows})
        title = f"{count(n)} parameters"
        figure, axes = _panel(title, "workers K", "loss over data parallel's - 1 (%)", len(algorithms))
        for algorithm in algorithms:
            mine = sorted((r for r in rows if r["algorithm"] == algorithm), key=lambda r: r["num_workers"])
            style = styles.line(mine[0]["series"])
            style["label"] = f"{algorithm}, against {mine[0]['baseline']}"
            axes.plot([r["num_workers"] for r in mine], [100 * r["relative"] for r in mine], **style)
        axes.axhline(0, color=INK, linewidth=0.8)
        axes.set_xscale("log", base=2)
        axes.set_xticks(sorted({r["num_workers"] for r in rows}))
        axes.xaxis.set_major_formatter(FuncFormatter(lambda v, _: f"{v:g}"))
        axes.xaxis.set_minor_locator(NullLocator())
        _legend(figure, axes)
        alt = f"Loss relative to data parallel against the number of workers, models of {count(n)} parameters."
        out.append(Drawing(f"num_workers_{count(n).replace('.', 'p')}", "num_workers", title, alt, figure))
    return out


def _power_of_ten(value: float) -> str:
    exponent = int(np.floor(np.log10(value) + 1e-9))
    lead = value / 10.0**exponent
    return f"1e{exponent}" if abs(lead - 1) < 1e-6 else f"{lead:g}e{exponent}"


_PLOTS: tuple[Callable[[dict[str, Any], Styles], list[Drawing]], ...] = (
    plot_loss_vs_batch,
    plot_critical_batch,
    plot_loss_compute,
    plot_iso_loss,
    plot_learning_rates,
    plot_num_workers,
)
