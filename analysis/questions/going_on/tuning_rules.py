"""How the series were tuned: the rules by which their sweeps went on by results, and what came of them.

Sweeps say it in their folders (`muloco_runner.record.SweepTuning`); fixed grids and tables say nothing.
"""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import Any

from analysis.page.numbers import hours
from analysis.page.page_table import Column, Table
from analysis.questions.question import Inputs, Question
from muloco_runner.record import RecordError, SweepTuning, read_all_tuning


@dataclass(frozen=True)
class TuningRules:
    """What the sweeps behind the runs say."""

    sweeps: list[SweepTuning]
    problem: str | None
    """Why a sweep's rules are not readable."""

    @property
    def by_rules(self) -> list[SweepTuning]:
        return [sweep for sweep in self.sweeps if sweep.rules]


def compute(inputs: Inputs) -> TuningRules:
    """Of every sweep under the folder that the runs came from."""
    if inputs.study.folder is None:
        return TuningRules([], None)
    found: list[SweepTuning] = []
    try:
        found.extend(read_all_tuning(inputs.study.folder.parent))
    except RecordError as error:
        return TuningRules(found, str(error))
    return TuningRules(found, None)


def section(result: TuningRules) -> list[str]:
    """The rules of each sweep, the same for all of its series, and its budget."""
    problem = [result.problem] if result.problem else []
    if not result.by_rules:
        return problem or ["no sweep of these runs went on by its results"]
    return [*problem, *(_rules(sweep) for sweep in result.by_rules)]


def _rules(sweep: SweepTuning) -> str:
    cap = (
        f" The budget of the sweep: {hours(sweep.max_gpu_hours)} GPU-hours." if sweep.max_gpu_hours is not None else ""
    )
    rules = " ".join(f"{rule[0].upper()}{rule[1:]}." for rule in sweep.rules)
    return (
        f"Sweep {sweep.sweep} went on by its results, by the same rules for all of its series and sizes. {rules}{cap}"
        f"{_open_words(sweep)}"
    )


def _open_words(sweep: SweepTuning) -> str:
    """That what is said of a sweep may not be its end."""
    if sweep.is_final:
        return ""
    return (
        f" What stands here of it is as of {_when(sweep)}, and not its end: `muloco-sweep status` tells how it stands "
        "now, and `muloco-sweep launch` takes it there."
    )


def _when(sweep: SweepTuning) -> str:
    """The moment that its standings are of."""
    if sweep.is_final:
        return "its end"
    if sweep.as_of is None:
        return "a time that its version did not note"
    return time.strftime("%Y-%m-%d %H:%M:%S UTC", time.gmtime(sweep.as_of))


def rows(result: TuningRules) -> list[Table]:
    """A row for each series and size, and one for each pair or target that was decided."""
    groups = Table(
        "tuning_groups",
        "What the rules added, and how each series and size stands",
        [
            Column("sweep"), Column("series and size"), Column("runs added", "integer"), Column("as it stands"),
            Column("as of"),
        ],
        [
            [sweep.sweep, one.label, one.added, one.standing, _when(sweep)]
            for sweep in result.by_rules
            for one in sweep.groups
        ],
    )  # fmt: skip
    contests = Table(
        "tuning_contests",
        "What seeds decided, by the rule stated beforehand",
        [
            Column("sweep"), Column("size"), Column("seeds", "integer"), Column("sigma", "number", "nats"),
            Column("outcome"), Column("as of"),
        ],
        [
            [sweep.sweep, one.scale, one.seeds, one.sigma, one.outcome, _when(sweep)]
            for sweep in result.by_rules
            for one in sweep.contests
        ],
    )  # fmt: skip
    return [table for table in (contests, groups) if table.rows]


def findings(result: TuningRules) -> list[str]:
    """What was decided, a sentence each."""
    return [
        f"By the rule stated beforehand (decide, sweep {sweep.sweep}), at {one.scale}: {one.outcome}"
        f"{'' if sweep.is_final else f' (as of {_when(sweep)})'}."
        for sweep in result.by_rules
        for one in sweep.contests
    ]


QUESTION: Question[Any] = Question(
    name="tuning_rules",
    title="Tuning",
    result=TuningRules,
    compute=compute,
    section=section,
    rows=rows,
    findings=findings,
)
