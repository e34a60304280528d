"""The study's headline figure: each difference with its interval, beside the paper's at all of its sizes."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import matplotlib as mpl
from differences import CONTRASTS, Found, found, published
from matplotlib.figure import Figure
from numbers_in_words import thousands

from analysis.page.drawing import RC

_ROW, _HEAD, _FOOT, _WIDTH = 0.42, 0.35, 0.75, 8.0
"""Inches."""
_COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7")
"""Of sizes."""
_PAPER = "#9aa1a9"


def write(report: Mapping[str, Any], path: Path) -> None:
    """Draw the contrasts that have an interval to an SVG file; equal reports give equal bytes."""
    rows = [(one, published(one), [size for size in found(report, one) if size.low > -1]) for one in CONTRASTS]
    rows = [row for row in rows if row[2]]
    sizes = sorted({one.num_params for _, _, found_here in rows for one in found_here})
    with mpl.rc_context({**RC, "svg.hashsalt": path.stem, "axes.spines.left": False}):
        height = _HEAD + _ROW * len(rows) + _FOOT
        figure = Figure(figsize=(_WIDTH, height))
        axes = figure.add_axes((0.45, _FOOT / height, 0.53, _ROW * len(rows) / height))
        axes.axvline(0, color="#1b1f24", linewidth=0.8)
        for place, (_, paper, found_here) in enumerate(rows):
            axes.plot(
                [100 * one for one in paper], [place + 0.22] * len(paper), "|", color=_PAPER, markersize=7,
                label="paper, a line a size" if place == 0 else None,
            )  # fmt: skip
            for one in found_here:
                _draw(axes, place, one, sizes)
        axes.set_yticks(range(len(rows)), [contrast.title for contrast, _, _ in rows])
        axes.set_ylim(len(rows) - 0.5, -0.6)
        axes.tick_params(axis="y", length=0)
        axes.set_xlabel("difference of the loss in percent; bars are 95% intervals")
        handles = dict(zip(*reversed(axes.get_legend_handles_labels()), strict=True))
        figure.legend(handles.values(), handles.keys(), loc="lower left", ncols=len(handles))
        figure.savefig(path, format="svg", facecolor="white", metadata={"Date": None, "Title": "Differences found"})


def _draw(axes: Any, place: int, one: Found, sizes: list[int]) -> None:
    number = sizes.index(one.num_params)
    axes.errorbar(
        100 * (one.mean or 0.0), place - 0.5 * number / len(sizes), xerr=100 * (one.high - one.low) / 2, fmt="o",
        color=_COLOURS[number], capsize=2.5, label=f"found at {thousands(one.num_params)}",
    )  # fmt: skip
