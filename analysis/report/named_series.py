"""Which series figures name, and which rows a table opens with, where a study has more than a reader can tell apart."""

from __future__ import annotations

from typing import Any

MOST_NAMED = 12
"""Figures name all series up to so many."""
OF_MANY = 8
"""And so many where there are more."""


def named_series(report: dict[str, Any]) -> list[str]:
    """All series, or `OF_MANY`: the baseline, those that a user coloured, the best of each algorithm, and the best.

    The best by the loss at the largest size; in the report's order.
    """
    series = report["series"]
    if len(series) <= MOST_NAMED:
        return list(series)
    ranked = list(dict.fromkeys([*report["ranking"]["series"], *series]))
    best_of_algorithm: dict[str, str] = {}
    for name in ranked:
        best_of_algorithm.setdefault(report["style"]["algorithms"][name], name)
    coloured = [name for name in series if name in report["style"]["colours"]]
    first = [report["settings"]["baseline"], *coloured, *best_of_algorithm.values(), *ranked]
    chosen = list(dict.fromkeys(first))[:OF_MANY]
    return [name for name in series if name in chosen]
