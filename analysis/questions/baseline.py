"""Which series ratios are relative to, and by which rule it was chosen."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass

import pandas as pd

from analysis.runs import Study
from analysis.style import Style
from muloco_runner.config import ConfigError
from muloco_runner.config.method import WITH_INNER_NAMED

DEFAULT = "DDP-AdamW"


@dataclass(frozen=True)
class Baseline:
    """The series, and why it is this one."""

    series: str
    rule: str
    """In words, for the page."""


def choose_baseline(
    study: Study, there: Collection[str], asked: str | None = None, style: Style | None = None
) -> Baseline:
    """`asked`, else the style's, else by a rule that looks at no loss.

    there: series with a run where sizes are compared. asked: as the page or as the data calls it. style: as `styled`
    returns it. Without either: DDP-AdamW; where there is none, of the series that are data parallel the one with the
    most sizes, of these the one with the most runs; of all series where none is. The first in the report's order goes
    before its equals. Raises `ConfigError` where `asked` is no series of the study, or it or the style's has no run
    where sizes are compared.
    """
    style = style or Style()
    names = [name for name in study.series if name in there]
    if asked is not None:
        shown = asked if asked in study.series else style.shown(asked)
        if shown not in study.series:
            raise ConfigError(f"--baseline {asked}: no such series; these runs have: {', '.join(study.series)}")
        return Baseline(_compared(f"--baseline {asked}", shown, names), "as --baseline says")
    if style.baseline is not None:
        return Baseline(_compared(f"--style: baseline {style.baseline}", style.baseline, names), "as --style says")
    default = style.shown(DEFAULT)
    if default in names:
        return Baseline(default, "the default")
    if len(names) == 1:
        return Baseline(names[0], "the only series")
    parallel = [name for name in names if _is_data_parallel(study.runs[study.runs["series"] == name])]
    used = study.runs[~study.runs["diverged"]]

    def extent(name: str) -> tuple[int, int]:
        runs = used[used["series"] == name]
        return int(runs["num_params"].nunique()), len(runs)

    of = "data-parallel series" if parallel else "series"
    why = f"{default} has no run where sizes are compared" if default in study.series else f"none is {DEFAULT}"
    chosen = max(parallel or names, key=extent)
    return Baseline(chosen, f"of the {of} the one with the most sizes, then runs, as {why}")


def _compared(where: str, name: str, names: list[str]) -> str:
    if name not in names:
        raise ConfigError(
            f"{where}: has no finished run at the tokens per parameter that sizes are compared at, where there are "
            f"{', '.join(names)}: choose one of these, or other tokens per parameter with --budget"
        )
    return name


def _is_data_parallel(runs: pd.DataFrame) -> bool:
    """Whether workers exchange every step, as far as the runs of a series say."""
    apart = runs["algorithm"].str.startswith(("MuLoCo", *WITH_INNER_NAMED)) | (runs["num_workers"] > 1)
    return not bool((apart | runs["sync_interval"].notna()).any())
