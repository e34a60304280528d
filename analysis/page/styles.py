"""How each series looks, the same in every figure of a report.

Colour and line tell algorithms apart, shade and marker what else of a method differs (K, H, bits), so that every series
stands for itself in grey. Of many series the figures name some; the others are one grey crowd behind them.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Any

from matplotlib.colors import to_hex, to_rgb

COLOURS = (
    "#0072B2", "#D55E00", "#009E73", "#CC79A7", "#DD9900", "#45A5DC",
    "#6A4FC9", "#8A4B20", "#8C8C1A", "#9E1F4F", "#2F6E6E", "#F0706E",
)  # fmt: skip
"""One an algorithm, in the order in which a report shows them. The first six follow Okabe and Ito's, which the
colour-blind tell apart; all can be seen on a white page and on a dark one."""
CROWD = "#9aa1a9"
"""Series that a figure does not name."""
_MARKERS = ("o", "s", "^", "D", "v", "P", "X", "h", "<", "p", ">", "d")
_LINES = ("-", "--", "-.", ":")
_FILLS = ("full", "none", "left", "top", "right", "bottom")
_DARKER, _LIGHTER = -0.4, 0.45
"""How far the first and last of several series of one algorithm may lie from its colour towards black and white."""
_DARKEST, _LIGHTEST = 0.05, 0.40
"""Relative luminance between which a shade is legible on both pages."""
_WIDTHS = {":": 1.9}
"""Of lines that would look weaker than the others, in points."""


class Styles:
    """Colour, marker, line and filling of each series.

    Args:
        series: In the report's order.
        algorithms: Of each series (default: the first word of its name).
        colours: Those that a user chose, by series or by algorithm; one of an algorithm is shaded over its series.
        named: Series that figures name, as `named_series` chooses them (default: all).
    """

    def __init__(
        self,
        series: list[str],
        algorithms: Mapping[str, str] | None = None,
        colours: Mapping[str, str] | None = None,
        named: Collection[str] | None = None,
    ) -> None:
        chosen = colours or {}
        self.named = [name for name in series if named is None or name in named]
        of = {name: (algorithms or {}).get(name) or name.split(" ")[0] for name in series}
        kinds = list(dict.fromkeys(of[name] for name in self.named))
        members = {kind: [name for name in self.named if of[name] == kind] for kind in kinds}
        crowd = {
            "color": CROWD, "marker": ".", "markersize": 3.0, "linestyle": "-", "fillstyle": "full", "linewidth": 0.6,
            "zorder": 1.5, "label": f"{len(series) - len(self.named)} others",
        }  # fmt: skip
        self._styles: dict[str, dict[str, Any]] = dict.fromkeys(series, crowd)
        self._of_algorithm: dict[str, dict[str, Any]] = {}
        self._algorithms = of
        for i, name in enumerate(self.named):
            kind, mine = kinds.index(of[name]), members[of[name]]
            colour = chosen.get(of[name], COLOURS[kind % len(COLOURS)])
            again, rounds = i // len(_MARKERS), i // (len(_MARKERS) * len(_FILLS))
            line = _LINES[(kind + rounds) % len(_LINES)]
            self._styles[name] = {
                "color": chosen.get(name, shaded(colour, mine.index(name), len(mine))),
                "marker": _MARKERS[i % len(_MARKERS)],
                "linestyle": line,
                "fillstyle": _FILLS[again % len(_FILLS)],
                "label": legend_label(name),
                "linewidth": _WIDTHS.get(line, 1.4),
            }
            self._of_algorithm.setdefault(of[name], {**self._styles[name], "color": colour, "fillstyle": "full"})

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
        """For the i-th of several sizes of the algorithm of a series: a shade of its colour, and a marker."""
        style = self._of_algorithm.get(self._algorithms[name], self._styles[name])
        return {**style, "color": shaded(style["color"], i, sizes), "marker": _MARKERS[i % len(_MARKERS)]}

    def curve(self, name: str) -> dict[str, Any]:
        return {**self._styles[name], "marker": "none", "label": None}


def shaded(colour: str, i: int, of: int) -> str:
    """The i-th of `of` shades of a colour, from dark to light, all legible; the colour itself where there is one."""
    if of < 2:
        return colour
    dark, light = _reach(colour, _DARKER), _reach(colour, _LIGHTER)
    return _blended(colour, dark + (light - dark) * i / (of - 1))


def _reach(colour: str, most: float) -> float:
    """The share of `most` by which the colour can be blended towards black (negative) or white and stay legible."""
    steps = [most * step / 20 for step in range(20, 0, -1)]
    return next((r for r in steps if _DARKEST <= luminance(_blended(colour, r)) <= _LIGHTEST), 0.0)


def _blended(colour: str, reach: float) -> str:
    target = 1.0 if reach > 0 else 0.0
    red, green, blue = (part + abs(reach) * (target - part) for part in to_rgb(colour))
    return to_hex((red, green, blue))


def luminance(colour: str) -> float:
    """Relative luminance of sRGB, 0 for black and 1 for white (WCAG 2.2)."""
    linear = (part / 12.92 if part <= 0.04045 else ((part + 0.055) / 1.055) ** 2.4 for part in to_rgb(colour))
    return sum(weight * part for weight, part in zip((0.2126, 0.7152, 0.0722), linear, strict=True))


def legend_label(name: str) -> str:
    """The name in a legend. Matplotlib drops labels that begin with an underscore."""
    return f" {name}" if name.startswith("_") else name
