"""How a figure looks and is written: styles of series, panels, axes, SVG and PDF.

One panel a figure, so that a phone can stack them. Colour and line tell algorithms apart, shade and marker what else of
a method differs (K, H, bits), so that every series stands for itself in grey.
"""

from __future__ import annotations

import io
import re
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Literal

import matplotlib as mpl
import numpy as np
from markupsafe import escape
from matplotlib.colors import to_hex, to_rgb
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, LogLocator, MaxNLocator, NullFormatter, NullLocator

from analysis.page.numbers import count

INK = "#1b1f24"
"""Text and axes; on a page it is replaced by the page's own text colour."""
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#8C6BB1", "#7F7F7F")
"""One an algorithm, in the order in which a report shows them; told apart by the colour-blind (Okabe and Ito)."""
_MARKERS = ("o", "s", "^", "D", "v", "P", "X", "h", "<", "p", ">", "d")
_LINES = ("-", "--", "-.", ":")
_FILLS = ("full", "none", "left", "top", "right", "bottom")
_DARKER, _LIGHTER = -0.3, 0.45
"""How far the first and last of several series of one algorithm lie from its colour towards black and white."""
_HIGHEST = 1.1
"""Losses above this multiple of the worst series' best are not drawn against batch or learning rate."""
_NARROW = 0.3
"""Decades below which a log axis holds too few powers of ten and their halves."""
_MOST_TICKS = 7
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
    """Colour, marker, line and filling of each series, the same in every figure of a report.

    `algorithms` has the algorithm of each series (default: the first word of its name). `colours` has those that a user
    chose, by series or by algorithm; one of an algorithm is shaded over its series.
    """

    def __init__(
        self,
        series: list[str],
        algorithms: Mapping[str, str] | None = None,
        colours: Mapping[str, str] | None = None,
    ) -> None:
        chosen = colours or {}
        of = {name: (algorithms or {}).get(name) or name.split(" ")[0] for name in series}
        kinds = list(dict.fromkeys(of.values()))
        members = {kind: [name for name in series if of[name] == kind] for kind in kinds}
        self._styles: dict[str, dict[str, Any]] = {}
        for i, name in enumerate(series):
            kind, mine = kinds.index(of[name]), members[of[name]]
            colour = chosen.get(of[name], COLOURS[kind % len(COLOURS)])
            shade = shaded(colour, mine.index(name), len(mine))
            again, rounds = i // len(_MARKERS), i // (len(_MARKERS) * len(_FILLS))
            self._styles[name] = {
                "color": chosen.get(name, shade),
                "marker": _MARKERS[i % len(_MARKERS)],
                "linestyle": _LINES[(kind + rounds) % len(_LINES)],
                "fillstyle": _FILLS[again % len(_FILLS)],
                "label": legend_label(name),
                "linewidth": 1.4,
            }

    def line(self, name: str) -> dict[str, Any]:
        return dict(self._styles[name])

    def points(self, name: str) -> dict[str, Any]:
        return {**self._styles[name], "linestyle": "none"}

    def published(self, name: str) -> dict[str, Any]:
        """Points that others published: the series' marker, hollow and grey; one entry in the legend for all."""
        marker = self._styles[name]["marker"] if name in self._styles else "o"
        return {"marker": marker, "linestyle": "none", "fillstyle": "none", "color": "#808080", "label": "published"}

    def nth(self, i: int) -> dict[str, Any]:
        """For curves that are no series: the i-th of all styles."""
        return {
            "color": COLOURS[i % len(COLOURS)],
            "marker": _MARKERS[i % len(_MARKERS)],
            "linestyle": _LINES[i % len(_LINES)],
        }

    def of_size(self, name: str, i: int, sizes: int) -> dict[str, Any]:
        """For the i-th of several sizes of one algorithm: a shade of the series' colour and a marker."""
        color = shaded(self._styles[name]["color"], i, sizes)
        return {**self._styles[name], "color": color, "marker": _MARKERS[i % len(_MARKERS)], "fillstyle": "full"}

    def curve(self, name: str) -> dict[str, Any]:
        return {**self._styles[name], "marker": "none", "label": None}


def shaded(colour: str, i: int, of: int) -> str:
    """The i-th of `of` shades of a colour, from dark to light; the colour itself where there is one."""
    if of < 2:
        return colour
    reach = _DARKER + (_LIGHTER - _DARKER) * i / (of - 1)
    target = 1.0 if reach > 0 else 0.0
    red, green, blue = (part + abs(reach) * (target - part) for part in to_rgb(colour))
    return to_hex((red, green, blue))


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
    """Ticks at powers of ten, at rounder steps where the data span less, at even ones where they hardly differ."""
    axis.axes.set(**{f"{axis.axis_name}scale": "log"})
    span = np.log10(max(values) / min(values)) if values else 0
    subs: tuple[float, ...] = (1.0,) if span > 2.5 else (1.0, 2.0, 5.0) if span > 0.7 else (1.0, 2.0, 3.0, 5.0, 7.0)
    narrow = span < _NARROW
    axis.set_major_locator(MaxNLocator(5) if narrow else LogLocator(base=10, subs=subs, numticks=8))
    axis.set_major_formatter(FuncFormatter(lambda v, _: numbers(v)))
    axis.set_minor_locator(NullLocator())
    axis.set_minor_formatter(NullFormatter())


def batch_axis(axes: Any, batches: Sequence[float]) -> None:
    """Powers of two, labelled at the batches that were tried, those that would overlap left out."""
    axes.set_xscale("log", base=2)
    axes.set_xticks(_apart(batches))
    axes.xaxis.set_major_formatter(FuncFormatter(lambda v, _: count(v)))
    axes.xaxis.set_minor_locator(NullLocator())
    axes.margins(x=0.12)


def _apart(values: Sequence[float]) -> list[float]:
    """Values in order, on a log axis at least a seventh of their span apart."""
    ticks: list[float] = []
    for value in sorted(set(values)):
        if not ticks or np.log(value / ticks[-1]) >= np.log(max(values) / min(values)) / _MOST_TICKS:
            ticks.append(value)
    return ticks


def loss_axis(axes: Any, axis: Literal["x", "y"] = "y") -> None:
    """At most six ticks with all of their digits."""
    (axes.yaxis if axis == "y" else axes.xaxis).set_major_locator(MaxNLocator(6 if axis == "y" else 4))
    axes.ticklabel_format(axis=axis, style="plain", useOffset=False)


def upper_end(axes: Any, losses: Sequence[float]) -> None:
    """The panel ends a little above and below `losses`; what lies beyond leaves it."""
    room = 0.06 * (max(losses) - min(losses)) or 0.05 * max(losses)
    axes.set_ylim(min(losses) - room, max(losses) + room)


def power_of_ten(value: float) -> str:
    exponent = int(np.floor(np.log10(value) + 1e-9))
    lead = value / 10.0**exponent
    return f"1e{exponent}" if abs(lead - 1) < 1e-6 else f"{lead:g}e{exponent}"


def cut_above(axes: Any, curves: Sequence[Sequence[float]]) -> None:
    """Losses a tenth above the best of the worst curve leave the panel: each curve shows its low end."""
    low, high = min(map(min, curves)), max(map(max, curves))
    limit = _HIGHEST * max(map(min, curves))
    if high > limit:
        room = 0.04 * (limit - low)
        axes.set_ylim(low - room, limit + room)


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
