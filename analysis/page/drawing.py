"""How a figure is laid out and written: panels with room for their labels and legend, SVG and PDF.

One panel a figure, or two with one horizontal axis, so that a phone can stack figures.
"""

from __future__ import annotations

import io
import re
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import matplotlib as mpl
import numpy as np
from markupsafe import escape
from matplotlib.figure import Figure
from matplotlib.font_manager import FontProperties
from matplotlib.textpath import text_to_path
from matplotlib.ticker import FixedLocator, ScalarFormatter

from analysis.page.axes import Numbers
from analysis.page.numbers import count

INK = "#1b1f24"
"""Text and axes; on a page it is replaced by the page's own text colour."""
WIDTH = 4.0
"""Inches of a figure: on a phone its text is as large as the page's small print."""
_TOP, _HEIGHT, _BOTTOM, _GAP, _RIGHT = 0.3, 2.3, 0.5, 0.32, 0.16
_POINTS = 72.0
"""Points an inch."""
_LEGEND_SIZE, _LEGEND_ROW = 8.0, 0.172
_HANDLE = 31.0
"""Points that a legend's line takes, with the space after it."""
_BETWEEN = 4.0
"""Fewest points between the labels of two ticks."""
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
    "legend.fontsize": _LEGEND_SIZE,
    "axes.titlesize": 9.5,
    "axes.titley": 1.0,
}


@dataclass(frozen=True)
class Drawing:
    """One figure with the text that stands for it where it cannot be seen."""

    name: str
    title: str
    alt: str
    figure: Figure
    section: str = ""
    """Name of the part or question it belongs to, which that sets."""

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


def panel(title: str, x: str, y: str, height: float = _HEIGHT) -> tuple[Figure, Any]:
    """Axes for one figure. `finish` makes room for what turns out to stand around them; sizes are in inches."""
    figure = Figure(figsize=(WIDTH, _TOP + height + _BOTTOM))
    axes = figure.add_axes((0.2, _BOTTOM / (_TOP + height + _BOTTOM), 0.77, height / (_TOP + height + _BOTTOM)))
    axes.set_title(title, loc="left")
    axes.set_xlabel(x)
    axes.set_ylabel(y)
    return figure, axes


def panel_below(figure: Figure, axes: Any, title: str, height: float) -> Any:
    """A second panel below the first, over the same horizontal axis, which only the lower one labels."""
    _grow(figure, height + _GAP)
    (left, _, width, _), total = axes.get_position().bounds, figure.get_figheight()
    lower = figure.add_axes((left, _BOTTOM / total, width, height / total), sharex=axes)
    lower.set_xlabel(axes.get_xlabel())
    lower.set_title(fitted(title, 8.5, 0.75 * WIDTH * _POINTS), loc="left", fontsize=8.5)
    axes.set_xlabel("")
    axes.tick_params(labelbottom=False)
    return lower


def finish(figure: Figure, *panels: Any) -> None:
    """Room for labels left of the panels and for the legend below; ticks that do not overlap, text that fits."""
    upper, lower = panels[0], panels[-1]
    left = max(_room_left(axes) for axes in panels) / _POINTS
    for axes in panels:
        _, bottom, _, height = axes.get_position().bounds
        axes.set_position((left / WIDTH, bottom, 1 - (left + _RIGHT) / WIDTH, height))
        _thin(axes.yaxis)
        # Labels may reach beyond a panel, but not into a title that begins left of it.
        beyond = 0 if axes is upper and _title_beyond(upper, left) > 0 else 24
        axes.set_ylabel(
            "\n".join(fitted(line, 9.0, _height_of(axes) + beyond) for line in axes.get_ylabel().split("\n"))
        )
    _thin(lower.xaxis)
    _place_x_label(figure, lower, left)
    _place_title(upper, left)
    _add_legend(figure, upper)


def _room_left(axes: Any) -> float:
    """Points that labels of the ticks and of the axis take."""
    labels = axes.yaxis.get_major_formatter().format_ticks(_ticks(axes.yaxis))
    size = _tick_size(axes.yaxis)
    lines = 1 + axes.get_ylabel().count("\n") if axes.get_ylabel() else 0
    return max([20.0, *(text_width(line, size) for label in labels for line in label.split("\n"))]) + 12 + 13 * lines


def _height_of(axes: Any) -> float:
    return float(axes.get_position().height * axes.figure.get_figheight() * _POINTS)


def _tick_size(axis: Any) -> float:
    return float(next((label.get_fontsize() for label in axis.get_ticklabels()), 9.0))


def _ticks(axis: Any) -> list[float]:
    """Places of the ticks in view, in order."""
    low, high = sorted(axis.get_view_interval())
    room = 1e-9 * (high - low)
    return sorted(tick for tick in axis.get_majorticklocs() if low - room <= tick <= high + room)


def _thin(axis: Any) -> None:
    """Leaves out ticks whose labels would overlap one before; names of rows all stay."""
    across = axis.axis_name == "x"
    if not across and not isinstance(axis.get_major_formatter(), (Numbers, ScalarFormatter)):
        return
    ticks, size = _ticks(axis), _tick_size(axis)
    labels = axis.get_major_formatter().format_ticks(ticks)
    points = [(tick, 0) if across else (0, tick) for tick in ticks]
    at = [place[0 if across else 1] for place in axis.axes.transData.transform(points)] if ticks else []
    kept: list[float] = []
    end = -np.inf
    for tick, label, middle in zip(ticks, labels, at, strict=True):
        half = (text_width(label, size) if across else size) / 2 * axis.figure.dpi / _POINTS
        if middle - half > end:
            kept.append(tick)
            end = middle + half + _BETWEEN * axis.figure.dpi / _POINTS
    if len(kept) < len(ticks):
        axis.set_major_locator(FixedLocator(kept))


def _place_x_label(figure: Figure, axes: Any, left: float) -> None:
    """In the middle of the panel, or up to its right end where it is long; in two lines where one does not hold it."""
    lines, widest = [axes.get_xlabel()], (WIDTH - _RIGHT) * _POINTS - 12
    words = lines[0].split(" ")
    starts = [i for i in range(1, len(words)) if text_width(" ".join(words[:i]), 9.0) <= widest]
    if text_width(lines[0], 9.0) > widest and starts:
        lines = [" ".join(words[: starts[-1]]), " ".join(words[starts[-1] :])]
        _grow(figure, 0.16)
    label = "\n".join(fitted(line, 9.0, widest) for line in lines)
    room = (WIDTH - left + _RIGHT) * _POINTS
    fits = max(text_width(line, 9.0) for line in label.split("\n")) < room - 4
    axes.set_xlabel(label, loc="center" if fits else "right")


def _place_title(axes: Any, left: float) -> None:
    """Begins at the panel, or further left where it is long; the middle of one that is too long is left out."""
    width = (WIDTH - left - _RIGHT) * _POINTS
    axes.set_title(_fitted_title(axes), loc="left", x=-max(0.0, _title_beyond(axes, left)) / width)


def _fitted_title(axes: Any) -> str:
    return fitted(axes.get_title(loc="left"), 9.5, WIDTH * _POINTS - 12)


def _title_beyond(axes: Any, left: float) -> float:
    """Points by which the title, begun at the panel, would leave the figure."""
    return left * _POINTS + text_width(_fitted_title(axes), 9.5) + 4 - WIDTH * _POINTS


def _add_legend(figure: Figure, axes: Any) -> None:
    """Below the panels, in as many columns as fit."""
    handles, labels = axes.get_legend_handles_labels()
    seen = dict(zip(labels, handles, strict=True))
    if not seen:
        return
    # The crowd behind the named series comes last.
    seen = dict(sorted(seen.items(), key=lambda entry: -entry[1].get_zorder()))
    names = [fitted(label, _LEGEND_SIZE, WIDTH * _POINTS - _HANDLE - 6) for label in seen]
    columns = _columns([text_width(name, _LEGEND_SIZE) + _HANDLE for name in names])
    _grow(figure, _LEGEND_ROW * -(-len(names) // columns) + 0.12)
    figure.legend(
        seen.values(), names, loc="lower center", ncols=columns, handlelength=3.0, borderaxespad=0.1, borderpad=0.2,
        columnspacing=1.0,
    )  # fmt: skip


def _columns(widths: list[float]) -> int:
    """The most columns, three at most, that names filled in column by column fit in."""
    for columns in (3, 2):
        # Matplotlib gives the first columns one name more where they do not come out even.
        parts = np.array_split(np.array(widths), columns)
        if len(widths) >= columns and sum(part.max() for part in parts) + 8 * (columns - 1) < WIDTH * _POINTS - 6:
            return columns
    return 1


def _grow(figure: Figure, below: float) -> None:
    """Adds inches at the bottom of a figure and leaves its panels as they are."""
    before = figure.get_figheight()
    figure.set_figheight(before + below)
    for axes in figure.axes:
        left, bottom, width, height = axes.get_position().bounds
        axes.set_position(
            (left, (bottom * before + below) / (before + below), width, height * before / (before + below))
        )


def text_width(text: str, size: float) -> float:
    """Points that a line of text takes in the figures' font."""
    with _without_glyph_warnings():
        width, _, _ = text_to_path.get_text_width_height_descent(text, FontProperties(size=size), ismath=False)
    return float(width)


def fitted(text: str, size: float, points: float) -> str:
    """The text, its middle left out where it is wider; both ends tell methods apart."""
    if text_width(text, size) <= points:
        return text

    def shorter(kept: int) -> str:
        return f"{text[: -(-kept // 2)]}…{text[len(text) - kept // 2 :]}"

    few, many = 1, min(len(text), int(4 * points / size))
    while many - few > 1:
        middle = (few + many) // 2
        few, many = (middle, many) if text_width(shorter(middle), size) <= points else (few, middle)
    return shorter(few)


def series_slug(name: str) -> str:
    """The name for a file, at most 40 characters; two names may give the same (`draw_all` tells figures apart)."""
    return re.sub(r"[^a-z0-9]+", "_", name.lower())[:40].strip("_")


def size_slug(num_params: float) -> str:
    return count(num_params).replace(".", "p")
