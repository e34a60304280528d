"""Scales and ticks of an axis, and what is drawn beside curves: bars and arrows."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Literal

import numpy as np
from matplotlib.ticker import Formatter, LogLocator, MaxNLocator, NullFormatter, NullLocator

from analysis.page.numbers import count

_HIGHEST = 1.1
"""Losses above this multiple of the worst series' best are not drawn against batch or learning rate."""
_NARROW = 0.3
"""Decades below which a log axis holds too few powers of ten and their halves."""
_MOST_DIGITS = 8


class Numbers(Formatter):
    """Labels of ticks, with more digits where two of them would read the same."""

    def __init__(self, numbers: Callable[[float], str]) -> None:
        self._numbers = numbers

    def __call__(self, value: float, pos: int | None = None) -> str:
        return self._numbers(value)

    def format_ticks(self, values: Sequence[float]) -> list[str]:
        labels = [self._numbers(value) for value in values]
        digits = 4
        while len(set(labels)) < len(set(values)) and digits <= _MOST_DIGITS:
            labels = [f"{value:.{digits}g}" for value in values]
            digits += 1
        return labels


def log_axis(axis: Any, values: list[float], numbers: Callable[[float], str]) -> None:
    """Ticks at powers of ten, at rounder steps where the data span less, at even ones where they hardly differ."""
    axis.axes.set(**{f"{axis.axis_name}scale": "log"})
    span = np.log10(max(values) / min(values)) if values else 0
    if span == 0 and values:
        axis.axes.set(**{f"{axis.axis_name}lim": (values[0] / 1.5, values[0] * 1.5)})
        axis.axes.set(**{f"{axis.axis_name}ticks": values[:1]})
    else:
        subs: tuple[float, ...] = (1.0,) if span > 2.5 else (1.0, 2.0, 5.0) if span > 0.7 else (1.0, 2.0, 3.0, 5.0, 7.0)
        narrow = span < _NARROW
        axis.set_major_locator(MaxNLocator(5) if narrow else LogLocator(base=10, subs=subs, numticks=8))
    axis.set_major_formatter(Numbers(numbers))
    axis.set_minor_locator(NullLocator())
    axis.set_minor_formatter(NullFormatter())


def tried_axis(axis: Any, values: Sequence[float], numbers: Callable[[float], str] = count) -> None:
    """Powers of two, labelled at the values that were tried."""
    axis.axes.set(**{f"{axis.axis_name}scale": "log"})
    axis.axes.set(**{f"{axis.axis_name}ticks": sorted(set(values))})
    axis.set_major_formatter(Numbers(numbers))
    axis.set_minor_locator(NullLocator())


def loss_axis(axes: Any, axis: Literal["x", "y"] = "y") -> None:
    """At most six ticks with all of their digits."""
    (axes.yaxis if axis == "y" else axes.xaxis).set_major_locator(MaxNLocator(6 if axis == "y" else 4))
    axes.ticklabel_format(axis=axis, style="plain", useOffset=False)


def upper_end(axes: Any, losses: Sequence[float]) -> None:
    """The panel ends a little above and below `losses`; what lies beyond leaves it."""
    room = 0.06 * (max(losses) - min(losses)) or 0.05 * max(losses)
    axes.set_ylim(min(losses) - room, max(losses) + room)


def cut_above(axes: Any, curves: Sequence[Sequence[float]]) -> None:
    """Losses a tenth above the best of the worst curve leave the panel, which says so: each curve shows its low end."""
    low, high = min(map(min, curves)), max(map(max, curves))
    limit = _HIGHEST * max(map(min, curves))
    if high > limit:
        room = 0.04 * (limit - low)
        axes.set_ylim(low - room, limit + room)
        axes.set_title(f"{axes.get_title(loc='left')}, losses up to {limit:.3g}", loc="left")


def power_of_ten(value: float) -> str:
    exponent = int(np.floor(np.log10(value) + 1e-9))
    lead = value / 10.0**exponent
    return f"1e{exponent}" if abs(lead - 1) < 1e-6 else f"{lead:g}e{exponent}"


def error_bars(axes: Any, x: Sequence[float], y: Sequence[float], se: Sequence[float | None], color: str) -> None:
    """Upright bars of one standard error to each side, where there is one."""
    bars = [(at, value - error, value + error) for at, value, error in zip(x, y, se, strict=True) if error]
    if bars:
        at, low, high = zip(*bars, strict=True)
        axes.vlines(at, low, high, colors=color, linewidth=1.0, alpha=0.8)


def arrow(axes: Any, start: tuple[float, float], end: tuple[float, float], color: str) -> None:
    """An arrow inside the panel; its ends count for the limits, unless these were set."""
    style = {"arrowstyle": "-|>", "color": color, "linewidth": 1.3, "shrinkA": 0, "shrinkB": 0, "mutation_scale": 9}
    axes.annotate("", xy=end, xytext=start, arrowprops=style, annotation_clip=True)
    axes.update_datalim([start, end])
    axes.autoscale_view()
