"""How a figure looks and is written: styles of series, panels, axes, SVG and PDF.

One panel a figure, so that a phone can stack them. Colour tells algorithms apart, marker and line style tell them apart
again, and K changes the marker's filling.
"""

from __future__ import annotations

import io
import re
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import matplotlib as mpl
import numpy as np
from markupsafe import escape
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter, NullLocator

from analysis.page.numbers import count

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
_HIGHEST = 1.1
"""Losses above this multiple of the best are not drawn against batch or learning rate."""
RC: Any = {
    "text.parse_math": False,
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
    "axes.titley": 1.0,
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
        with mpl.rc_context({**RC, "svg.hashsalt": self.name}), _without_glyph_warnings():
            self.figure.savefig(out, format="svg", transparent=True, metadata={"Date": None, "Title": self.title})
        return out.getvalue()

    def pdf(self) -> bytes:
        out = io.BytesIO()
        with mpl.rc_context(RC), _without_glyph_warnings():
            self.figure.savefig(out, format="pdf", metadata={"CreationDate": None, "Title": self.title})
        return out.getvalue()

    def inline(self, svg: str) -> str:
        """`svg` for a page: ids of its own, the page's text colour, a name, and a width that follows the page."""
        text = svg[svg.index("<svg") :]
        text = re.sub(r"<metadata>.*?</metadata>\s*", "", text, flags=re.S)
        text = re.sub(r"<title>.*?</title>\s*", "", text, flags=re.S)
        text = re.sub(r"<[^>]*>", lambda tag: self._inline_tag(tag[0]), text)
        (box,) = re.findall(r'^<svg [^>]*?viewBox="([^"]*)"', text)
        head = (
            '<svg xmlns="http://www.w3.org/2000/svg" xmlns:xlink="http://www.w3.org/1999/xlink" '
            f'viewBox="{box}" role="img" aria-label="{escape(self.alt)}">'
        )
        return head + text[text.index(">") + 1 :]

    def _inline_tag(self, tag: str) -> str:
        tag = re.sub(r'\bid="', f'id="{self.name}-', tag)
        tag = tag.replace('xlink:href="#', f'xlink:href="#{self.name}-').replace("url(#", f"url(#{self.name}-")
        return tag.replace(INK, "currentColor")


@contextmanager
def _without_glyph_warnings() -> Iterator[None]:
    """An SVG leaves letters to the fonts of whoever looks at it; a PDF shows those that its font lacks as boxes."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", r"Glyph \d+ .* missing from font", UserWarning)
        yield


class Styles:
    """Colour, marker, line and filling of each series, the same in every figure of a report."""

    def __init__(self, series: list[str]) -> None:
        self._styles: dict[str, dict[str, Any]] = {}
        members: dict[str, int] = {}
        others: dict[str, int] = {}
        for name in series:
            algorithm = name.split(" ")[0]
            position = members.get(algorithm, 0)
            members[algorithm] = position + 1
            if algorithm in _STYLES:
                base, turn = _STYLES[algorithm], 0
            else:
                base, turn = _other_style(others.setdefault(algorithm, len(others)))
            self._styles[name] = {
                "color": base[0],
                "marker": base[1],
                "linestyle": base[2],
                "fillstyle": _FILLS[(position + turn) % len(_FILLS)],
                "label": legend_label(name),
                "linewidth": max(0.7, 1.5 - 0.3 * position),
                "alpha": 1.0 if position == 0 else 0.7,
            }

    def line(self, name: str) -> dict[str, Any]:
        return dict(self._styles[name])

    def points(self, name: str) -> dict[str, Any]:
        return {**self._styles[name], "linestyle": "none"}

    def published(self, name: str) -> dict[str, Any]:
        """Points that others published: the series' marker, hollow and grey; one entry in the legend for all."""
        marker = self._marker(name)
        return {"marker": marker, "linestyle": "none", "fillstyle": "none", "color": "#808080", "label": "published"}

    def nth(self, i: int) -> dict[str, Any]:
        """For curves that are no series: the i-th of all styles."""
        color, marker, line = (*_STYLES.values(), *_OTHERS)[i % (len(_STYLES) + len(_OTHERS))]
        return {"color": color, "marker": marker, "linestyle": line}

    def filling(self, i: int) -> dict[str, Any]:
        """For sizes of one algorithm: the i-th filling and width."""
        return {"fillstyle": _FILLS[i % len(_FILLS)], "linewidth": max(0.7, 1.5 - 0.25 * i)}

    def _marker(self, name: str) -> str:
        algorithm = name.split(" ", maxsplit=1)[0]
        return _STYLES[algorithm][1] if algorithm in _STYLES else "o"

    def curve(self, name: str) -> dict[str, Any]:
        return {**self._styles[name], "marker": "none", "label": None}


def _other_style(i: int) -> tuple[tuple[str, str, str], int]:
    """Colour, marker and line of the i-th algorithm that has none of its own, and how often all of them came before."""
    kinds = len(_OTHERS)
    color, _, _ = _OTHERS[i % kinds]
    _, marker, line = _OTHERS[(i + i // kinds) % kinds]
    return (color, marker, line), i // kinds**2


def legend_label(name: str) -> str:
    """The name in a legend. Matplotlib drops labels that begin with an underscore."""
    return f" {name}" if name.startswith("_") else name


def panel(
    title: str, x: str, y: str, num_entries: int, left: float = 0.155, height: float = 3.15
) -> tuple[Figure, Any]:
    """Axes 4.6 inches wide with the legend below them, as many rows of it as its entries need."""
    rows = (num_entries + 1) // 2
    total = height + 0.19 * rows
    figure = Figure(figsize=(4.6, total))
    left += 0.035 * y.count("\n")
    bottom = (0.52 + 0.19 * rows) / total
    axes = figure.add_axes((left, bottom, 0.97 - left, 1 - bottom - 0.3 / total))
    axes.set_title(title)
    axes.set_xlabel(x)
    axes.set_ylabel(y)
    return figure, axes


def legend(figure: Figure, axes: Any) -> None:
    handles, labels = axes.get_legend_handles_labels()
    seen = dict(zip(labels, handles, strict=True))
    if seen:
        figure.legend(seen.values(), seen.keys(), loc="lower center", ncols=2, handlelength=3.2, borderaxespad=0.15)


def log_axis(axis: Any, values: list[float], numbers: Callable[[float], str]) -> None:
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


def batch_axis(axes: Any, batches: list[float]) -> None:
    """Powers of two, labelled at the batches that were tried, thinned to at most seven."""
    axes.set_xscale("log", base=2)
    ticks = sorted(set(batches))
    axes.set_xticks(ticks[:: -(-len(ticks) // 7)])
    axes.xaxis.set_major_formatter(FuncFormatter(lambda v, _: count(v)))
    axes.xaxis.set_minor_locator(NullLocator())
    axes.margins(x=0.08)


def power_of_ten(value: float) -> str:
    exponent = int(np.floor(np.log10(value) + 1e-9))
    lead = value / 10.0**exponent
    return f"1e{exponent}" if abs(lead - 1) < 1e-6 else f"{lead:g}e{exponent}"


def cut_above(axes: Any, losses: list[float]) -> None:
    """Losses a tenth above the best leave the panel: what matters lies below, and the table holds them."""
    low, high = min(losses), max(losses)
    if high > _HIGHEST * low:
        room = 0.04 * (_HIGHEST - 1) * low
        axes.set_ylim(low - room, _HIGHEST * low + room)


def error_bars(axes: Any, x: Sequence[float], y: Sequence[float], se: Sequence[float | None], color: str) -> None:
    """Upright bars of one standard error to each side, where there is one."""
    bars = [(at, value - error, value + error) for at, value, error in zip(x, y, se, strict=True) if error]
    if bars:
        at, low, high = zip(*bars, strict=True)
        axes.vlines(at, low, high, colors=color, linewidth=1.0, alpha=0.8)


def arrow(axes: Any, start: tuple[float, float], end: tuple[float, float], color: str) -> None:
    style = {"arrowstyle": "-|>", "color": color, "linewidth": 1.3, "shrinkA": 0, "shrinkB": 0, "mutation_scale": 9}
    axes.annotate("", xy=end, xytext=start, arrowprops=style, annotation_clip=False)


def series_slug(name: str) -> str:
    """The name for a file, at most 40 characters; two names may give the same (`draw_all` tells figures apart)."""
    return re.sub(r"[^a-z0-9]+", "_", name.lower())[:40].strip("_")


def size_slug(num_params: float) -> str:
    return count(num_params).replace(".", "p")
