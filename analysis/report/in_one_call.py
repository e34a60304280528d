"""A report from Python: `from analysis import load_study, report`."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

from analysis.questions.options import Options
from analysis.report.content import build_report
from analysis.report.render import write_report
from analysis.runs import Study
from analysis.style import read_style


def report(
    study: Study,
    out: str | os.PathLike[str],
    *,
    title: str = Options.title,
    baseline: str | None = None,
    budget: float | None = None,
    bootstrap: int = Options.bootstrap,
    seed: int = Options.seed,
    style: str | os.PathLike[str] | None = None,
) -> dict[str, Any]:
    """Write report.html, report.md, report.json, figures and tables below `out`, as `muloco-report` does.

    Args:
        study: The runs, of `load_study`.
        out: A folder, made where it is not there.
        title: Of the page.
        baseline: Series that ratios are relative to; None for DDP-AdamW; where there is none, of the
            data-parallel series the one with the most sizes, then runs.
        budget: Tokens per parameter to compare at; None for that at which most sizes were trained.
        bootstrap: Resamples behind each interval; 0 for none.
        seed: Of the resampling.
        style: A YAML file with the order, colours, labels, partners and baseline of the series.

    Returns:
        The content of report.json (`muloco-report schema`); `["verdict"]["findings"]` are sentences.

    A name that is no series of the study, and a style file that cannot be read, raise `ConfigError`.
    """
    options = Options(
        title=title, baseline=baseline, budget=budget, bootstrap=bootstrap, seed=seed,
        style=read_style(None if style is None else Path(style)),
    )  # fmt: skip
    content = build_report(study, options)
    write_report(content, Path(out))
    return content
