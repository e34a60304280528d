"""What would settle what is open: runs, as a sweep file beside the report, and what no sweep can be written of."""

from __future__ import annotations

import itertools
import json
import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd

from analysis.page.escape import printable
from analysis.page.numbers import integer
from analysis.page.page_table import Column, Table
from analysis.questions import pairwise_tests
from analysis.questions.going_on.new_sizes import sizes
from analysis.questions.going_on.wishes import BATCH, Kind, Unwritten, Wish, batches, edges, seeds
from analysis.questions.question import Inputs, Question
from analysis.runs import SETTING
from analysis.seeds import run_folders
from muloco_runner.config import ConfigError, RunConfig
from muloco_runner.record import LEAST_STEPS, RecordError, RunFolder, read_all_tuning

FILE = "next.yaml"


@dataclass(frozen=True)
class NextRuns:
    """Runs like one that is there, with other values."""

    kind: Kind
    why: str
    like: str
    """A run's id."""
    values: dict[str, list[int | float]]
    """Keys of a sweep file; every combination is a run."""
    runs: int


@dataclass(frozen=True)
class WhatNext:
    """What is open."""

    root: str | None
    """The folder that holds runs/; None for a table."""
    cluster: str | None
    """That all sweeps of these runs were launched with; None where it is not known."""
    steps: list[NextRuns]
    unwritten: list[str]
    """What no sweep can be written of, and why."""
    wanted_width: float
    """Of the intervals of exponents."""

    @property
    def runs(self) -> int:
        return sum(step.runs for step in self.steps)


def compute(inputs: Inputs) -> WhatNext:
    """At the budget that sizes are compared at; in the order edges, batches, seeds, sizes."""
    wanted, folder = inputs.options.interval_width, inputs.study.folder
    if inputs.study.withheld:
        return WhatNext(None, None, [], [], wanted)
    if folder is None:
        found = [wish.why for wish in _wishes(inputs, [])]
        return WhatNext(None, None, [], found, wanted)
    configs: list[RunConfig] = []
    unreadable: list[str] = []
    try:
        configs = [RunConfig.from_dict(one.read_config()) for one in run_folders(inputs.study, inputs.best[SETTING])]
    except (ConfigError, RecordError, OSError) as error:
        unreadable.append(f"No sizes are proposed, as a config is not readable: {error}")
    steps: dict[str, NextRuns] = {}
    unwritten: dict[str, None] = dict.fromkeys(unreadable)
    wishes = [*_wishes(inputs, configs)]
    likes = pd.DataFrame([wish.like for wish in wishes if isinstance(wish, Wish)], columns=SETTING)
    folders = iter(run_folders(inputs.study, likes))
    for wish in wishes:
        made = wish.why if isinstance(wish, Unwritten) else _written(next(folders), wish)
        if isinstance(made, str):
            unwritten[made] = None
        else:
            steps.setdefault(json.dumps([made.like, made.values]), made)
    return WhatNext(str(folder.parent), _cluster(folder.parent), [*steps.values()], [*unwritten], wanted)


def _wishes(inputs: Inputs, configs: list[RunConfig]) -> Iterator[Wish | Unwritten]:
    yield from edges(inputs)
    yield from batches(inputs)
    yield from seeds(inputs, pairwise_tests.compute(inputs).pairs)
    if configs:
        yield from sizes(inputs, inputs.options.interval_width, configs)


def _written(folder: RunFolder, wish: Wish) -> NextRuns | str:
    """The wish as runs like that of `folder`, or why there are none."""
    try:
        before = RunConfig.from_dict(folder.read_config())
        combinations = itertools.product(*wish.values.values())
        every = [before.with_values(dict(zip(wish.values, values, strict=True))) for values in combinations]
    except (ConfigError, RecordError, OSError) as error:
        return f"{wish.why}; beyond it there is no run: {' '.join(str(error).split())}"
    made = every[-1]
    if all((folder.path.parent / one.run_id).is_dir() for one in every):
        return f"{wish.why}; the runs that would tell are there, without a result"
    if BATCH in wish.values and made.global_batch_tokens > before.global_batch_tokens and made.num_steps < LEAST_STEPS:
        return f"{wish.why}; a larger one has fewer than {LEAST_STEPS} steps"
    values = {key: list(found) for key, found in wish.values.items()}
    return NextRuns(wish.kind, wish.why, folder.run_id, values, len(every))


def _cluster(root: Path) -> str | None:
    try:
        found = {tuning.cluster for tuning in read_all_tuning(root)}
    except RecordError:
        return None
    return found.pop() if len(found) == 1 else None


def plan_command(result: WhatNext, path: str) -> str:
    """The line that tells what the runs take."""
    return f"muloco-sweep plan {path}" + ("" if result.cluster else " cluster=NAME")


def to_sweep_file(result: WhatNext, out: Path) -> str | None:
    """`next.yaml` for the folder `out`; None where there is nothing to run."""
    if not result.steps or result.root is None:
        return None
    root = os.path.relpath(Path(result.root).resolve(), out.resolve())
    lines = [
        f"# {integer(result.runs)} runs that would settle what is open in the report beside this file. What they take:",
        f"#   {plan_command(result, FILE)}",
        "# `launch` in place of `plan` runs them; what is finished is found, not trained again.",
        f"root: {json.dumps(root)}",
        *([f"cluster: {json.dumps(result.cluster)}"] if result.cluster else []),
        "grids:",
    ]
    for step in result.steps:
        lines += [f"  # {printable(step.why)}", f"  - fixed: {{like: {json.dumps(step.like)}}}", "    product:"]
        lines += [f"      {key}: {json.dumps(values)}" for key, values in step.values.items()]
    return "\n".join([*lines, ""])


def section(result: WhatNext) -> list[str]:
    """The command, and what stays open."""
    text = []
    if result.steps:
        text.append(
            f"{FILE}, beside this page, holds {integer(result.runs)} runs: {plan_command(result, FILE)} tells the "
            f"GPU-hours, and launch in place of plan runs them. New sizes are for intervals of exponents "
            f"{result.wanted_width:g} wide (--interval-width). After them a report says what is open then."
        )
    if result.unwritten:
        why = "" if result.root else " These runs come from a table, so that there are no runs to differ from."
        lines = "; ".join(result.unwritten)
        text.append(f"No sweep can be written of the following.{why} {lines}.")
    return text or ["nothing that more runs of this study would settle"]


def rows(result: WhatNext) -> list[Table]:
    """A row for each line of the sweep file."""
    table = Table(
        "next_runs",
        "The lines of the sweep file",
        [Column("what"), Column("why"), Column("like run"), Column("values"), Column("runs", "integer")],
        [[step.kind, step.why, step.like, _values(step), step.runs] for step in result.steps],
    )
    return [table] if table.rows else []


def _values(step: NextRuns) -> str:
    return "; ".join(f"{key}={', '.join(f'{value:.4g}' if isinstance(value, float) else str(value) for value in found)}"
                     for key, found in step.values.items())  # fmt: skip


QUESTION: Question[Any] = Question(
    name="next_runs",
    title="What would settle what is open",
    result=WhatNext,
    compute=compute,
    section=section,
    rows=rows,
)
