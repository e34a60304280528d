"""Every figure of a report, drawn from report.json's content alone."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace
from typing import Any

import matplotlib as mpl

from analysis.page.drawing import RC, Drawing
from analysis.page.styles import Styles
from analysis.questions.registry import REGISTRY
from analysis.report.named_series import named_series


def draw_all(report: dict[str, Any]) -> list[Drawing]:
    """Every figure for which the report has points."""
    styles = Styles(report["series"], **report["style"], named=named_series(report))
    with mpl.rc_context(RC):
        return _with_own_names([drawing for one in REGISTRY for drawing in one.drawings_in(report, styles)])


def _with_own_names(drawings: list[Drawing]) -> list[Drawing]:
    """The drawings, a number after a name that was given before: names are names of files and ids of a page."""
    seen: Counter[str] = Counter()
    out = []
    for drawing in drawings:
        seen[drawing.name] += 1
        again = seen[drawing.name]
        out.append(drawing if again == 1 else replace(drawing, name=f"{drawing.name}__{again}"))
    return out
