"""Which series ratios are relative to, and by which rule it was chosen."""

from __future__ import annotations

from dataclasses import dataclass

import pandas as pd

from analysis.runs import Study
from muloco_runner.config import ConfigError

DEFAULT = "DDP-AdamW"


@dataclass(frozen=True)
class Baseline:
    """The series, and why it is this one."""

    series: str
    rule: str
    """In words, for the page."""


def choose_baseline(study: Study, asked: str | None = None, of_style: str | None = None) -> Baseline:
    """`asked`, else `of_style`, else by a rule that looks at no loss.

    Without either: DDP-AdamW; where there is none, of the series that are data parallel the one with the most sizes,
    of these the one with the most runs; of all series where none is. The first in the report's order goes before its
    equals. Raises `ConfigError` where `asked` is no series of the study.
    """
    names = study.series
    if asked is not None and asked not in names:
        raise ConfigError(f"--baseline {asked}: no such series; these runs have: {', '.join(names)}")
    if asked is not None:
        return Baseline(asked, "as --baseline says")
    if of_style is not None:
        return Baseline(of_style, "as --style says")
    if DEFAULT in names:
        return Baseline(DEFAULT, "the default")
    if len(names) == 1:
        return Baseline(names[0], "the only series")
    parallel = [name for name in names if _is_data_parallel(study.runs[study.runs["series"] == name])]
    used = study.runs[~study.runs["diverged"]]

    def extent(name: str) -> tuple[int, int]:
        runs = used[used["series"] == name]
        return int(runs["num_params"].nunique()), len(runs)

    of = "data-parallel series" if parallel else "series"
    chosen = max(parallel or names, key=extent)
    return Baseline(chosen, f"of the {of} the one with the most sizes, then runs, as none is {DEFAULT}")


def _is_data_parallel(runs: pd.DataFrame) -> bool:
    """Whether workers exchange every step, as far as the runs of a series say."""
    apart = runs["algorithm"].str.startswith(("DiLoCo", "MuLoCo")) | (runs["num_workers"] > 1)
    return not bool((apart | runs["sync_interval"].notna()).any())
