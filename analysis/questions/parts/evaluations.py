"""Accuracy against compute: scores of tasks and losses on named validation sets, of the best runs that have them.

`muloco-model eval` leaves scores in a run's folder, under `evaluations/`; the losses on sets of `data.validation` stand
in its result as well. Those of a run's last step count. Scores are put side by side that are of the same task, version,
number of examples and content, and apart where these differ.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, cast

from pydantic import TypeAdapter

from analysis.input.columns import listed as named
from analysis.page.axes import error_bars, log_axis, loss_axis, power_of_ten
from analysis.page.drawing import Drawing, finish, panel, series_slug
from analysis.page.listed import listed
from analysis.page.page_table import Column, Table
from analysis.page.section import Block, Figures, Shown
from analysis.page.styles import Styles
from analysis.questions.question import Inputs, Part
from muloco_runner.record import RecordError, RunFolder

_METRICS = ("acc_norm", "acc", "exact_match")
"""Of the scores of a task, the first of these that it has is shown; else the first of all."""
_UNIT_OF_LOSS = "bits per byte"


@dataclass(frozen=True)
class Score:
    """One run's."""

    series: str
    num_params: int
    tokens_per_parameter: float
    flops: float
    """6ND, or what the model states."""
    run_id: str
    """Of the runs with this score, that with the lowest validation loss of its series, size and token budget."""
    is_best: bool
    """Whether no other run of these has a lower loss, with or without the score."""
    value: float
    se: float | None
    """Standard error over examples, as the harness states it."""


@dataclass(frozen=True)
class Measure:
    """A task's metric, or the loss on a named validation set."""

    name: str
    metric: str
    content: str
    """What tells it from others of its name: examples, version of the task, hash of its files or text."""
    scores: list[Score]


@dataclass(frozen=True)
class Evaluations:
    """Every measure of which a run has the score, or why there is none."""

    measures: list[Measure]
    budget: float
    """Tokens per parameter of what is drawn."""
    unreadable: list[str]
    """Files of scores that are damaged."""
    reason: str | None


@dataclass(frozen=True)
class _Found:
    name: str
    metric: str
    content: str
    value: float
    se: float | None = None


def compute(inputs: Inputs) -> Evaluations:
    """The scores of every series, size and budget."""
    study = inputs.study
    if study.folder is None:
        return Evaluations([], inputs.budget, [], "a table has no evaluations; run folders do")
    finished = study.runs[~study.runs["diverged"]].sort_values(["loss", "run_id"], kind="stable")
    measures: dict[tuple[str, str, str], list[Score]] = {}
    unreadable: list[str] = []
    for _, runs in finished.groupby(["series", "num_params", "tokens_per_parameter"], sort=True, observed=True):
        taken = set()
        for number, row in enumerate(runs.to_dict("records")):
            folder = RunFolder(study.folder / row["run_id"])
            # Of runs that were not evaluated the best alone may say something: its result may.
            if number > 0 and not folder.evaluations_at(row["num_steps"]).is_dir():
                continue
            for found in _found(folder, int(row["num_steps"]), unreadable):
                key = (found.name, found.metric, found.content)
                if key not in taken:
                    taken.add(key)
                    measures.setdefault(key, []).append(_score(cast("dict[str, Any]", row), number == 0, found))
    order = sorted(measures.items(), key=lambda item: (item[0][1] == _UNIT_OF_LOSS, item[0]))
    reason = None if order else "no run has scores: `muloco-model eval ROOT --tasks ...` makes them"
    return Evaluations([Measure(*key, scores) for key, scores in order], inputs.budget, unreadable, reason)


def _score(row: dict[str, Any], is_best: bool, found: _Found) -> Score:
    return Score(
        str(row["series"]), int(row["num_params"]), float(row["tokens_per_parameter"]), float(row["flops"]),
        str(row["run_id"]), is_best, found.value, found.se,
    )  # fmt: skip


def _found(folder: RunFolder, last_step: int, unreadable: list[str]) -> Iterator[_Found]:
    """What a run's evaluations after its last step say, then its result; damaged files are added to `unreadable`."""
    for file in sorted(folder.evaluations_at(last_step).glob("*.json")):
        try:
            values = json.loads(file.read_text())
        except (OSError, ValueError):
            unreadable.append(f"{folder.run_id}/{file.name}")
            continue
        if "scores" in values:
            name = file.name.removesuffix(".json").removesuffix(f"-limit-{values.get('limit')}")
            yield from _of_task(name, values)
        elif "set" in values:
            yield from _of_set(str(values["set"]), values)
    try:
        result = folder.read_result()
    except RecordError:
        return
    for name, values in ((result and result.named_validation) or {}).items():
        yield from _of_set(name, values)


def _of_task(name: str, values: dict[str, Any]) -> Iterator[_Found]:
    # Names of metrics end with their filter; counts have none.
    scores = {key.partition(",")[0]: value for key, value in values["scores"].items() if "," in key}
    means = [key for key in scores if not key.endswith("_stderr")]
    metric = next((key for key in (*_METRICS, *means) if key in means), None)
    if metric is None:
        return
    limit = values.get("limit")
    content = [
        "all examples" if limit is None else f"first {limit:,} examples",
        f"version {values.get('task_version')}",
        *([f"files {values['include']}"] if values.get("include") else []),
    ]
    yield _Found(name, metric, ", ".join(content), float(scores[metric]), _number(scores.get(f"{metric}_stderr")))


def _of_set(name: str, values: dict[str, Any]) -> Iterator[_Found]:
    loss = _number(values.get("bits_per_byte"))
    if loss is not None:
        content = f"{values.get('validation_tokens'):,} tokens of {values.get('content_hash')}"
        yield _Found(name, _UNIT_OF_LOSS, content, loss)


def _number(value: Any) -> float | None:
    return float(value) if isinstance(value, int | float) else None


def section(report: dict[str, Any], drawn: bool) -> list[Block] | str:
    """What the scores are of, and which are not of a best run."""
    result = _read(report)
    damaged = f" Damaged, and left out: {named(result.unreadable)}." if result.unreadable else ""
    if result.reason:
        return result.reason + damaged.removesuffix(".")
    scores = [score for measure in result.measures for score in measure.scores]
    others = sorted({score.run_id for score in scores if not score.is_best})
    names = [measure.name for measure in result.measures]
    twice = sorted({name for name in names if names.count(name) > 1})
    return [
        "Scores of the weights after the last step, of each series, size and token budget the run with the lowest "
        "validation loss among those that have the score; ± is the standard error over a task's examples, as the "
        f"harness states it, and holds nothing of the spread between seeds.{damaged}",
        *([f"A run with a lower loss has no such score beside {listed(others)}."] if others else []),
        *([f"Not side by side, as their examples or versions differ: scores of {listed(twice)}."] if twice else []),
        Figures(),
        Shown("evaluations"),
    ]


def _read(report: dict[str, Any]) -> Evaluations:
    return TypeAdapter(Evaluations).validate_python(report["evaluations"])


def rows(report: dict[str, Any]) -> list[Table]:
    """One row a score."""
    result = _read(report)
    table = Table(
        "evaluations",
        "Scores of the best evaluated runs",
        [
            Column("task or set"), Column("metric"), Column("series"), Column("size", "count", "parameters"),
            Column("tokens per parameter", "number"), Column("compute", "flops", "FLOPs"), Column("score", "loss"),
            Column("standard error", "loss", joint=" ± "), Column("run"), Column("of"),
        ],
        [
            [
                measure.name, measure.metric, one.series, one.num_params, one.tokens_per_parameter, one.flops,
                one.value, one.se, one.run_id, measure.content,
            ]
            for measure in result.measures
            for one in measure.scores
        ],
    )  # fmt: skip
    return [table] if table.rows else []


def plot(report: dict[str, Any], styles: Styles) -> list[Drawing]:
    """A measure against compute, at the budget at which sizes are compared; those with two sizes alone."""
    result = _read(report)
    out = []
    for number, measure in enumerate(result.measures):
        drawn = [one for one in measure.scores if one.tokens_per_parameter == result.budget]
        if len({one.num_params for one in drawn}) < 2:
            continue
        title = f"{measure.name}: {measure.metric} against compute"
        figure, axes = panel(title, "compute C = 6ND (FLOPs)", measure.metric)
        for series in dict.fromkeys(one.series for one in drawn):
            mine = sorted((one for one in drawn if one.series == series), key=lambda one: one.flops)
            style = styles.line(series)
            at, values = [one.flops for one in mine], [one.value for one in mine]
            axes.plot(at, values, **style)
            error_bars(axes, at, values, [one.se for one in mine], style["color"])
        log_axis(axes.xaxis, [one.flops for one in drawn], power_of_ten)
        loss_axis(axes)
        finish(figure, axes)
        alt = f"{measure.metric} of {measure.name} against compute, by series ({measure.content})."
        name = f"evaluation_{number}_{series_slug(measure.name)}"
        out.append(Drawing(name, title, alt, figure))
    return out


PART = Part("evaluations", Evaluations, compute, rows, plot, "Tasks and named validation sets", section)
