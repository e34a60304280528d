"""A status on a terminal or in a log: a table of counts, the running runs, then one line for each further fact."""

from __future__ import annotations

import shlex
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from sweeps.cli.goodput_lines import goodput_lines
from sweeps.cli.status import Basis, RunningRun, Status
from sweeps.cli.terminal import wrapped
from sweeps.engine.counters import Finished
from sweeps.engine.run_states import STATUSES
from sweeps.engine.work import Work
from sweeps.engine.works import Group as RowGroup
from sweeps.engine.works import group_of
from sweeps.formatting import about, duration, plural
from sweeps.progress_lines import slow_line
from sweeps.training.model_names import model_name

_TITLES = {"num_params": "size"}
"""Columns whose values are sizes of models."""
_COLOURS = {"done": "green", "running": "cyan", "submitted": "blue", "waiting": "", "held": "red", "stopped": "yellow"}


def status_table(status: Status, max_running: int, command: str, width: int) -> RenderableType:
    """Draw a status with at most `max_running` running runs, its lines at most `width` columns wide.

    `command` ends the commands that are proposed: root and sweep.
    """
    return Group(
        _title(status),
        _counts(status),
        *([_running(status, max_running)] if status.running and max_running > 0 else []),
        Text(),
        *(Text(wrapped(line, width)) for line in status_lines(status, command)),
    )


def _title(status: Status) -> Text:
    controller = f"controller {status.controller}" if status.controller else "no controller is running"
    return Text.assemble(
        (status.name, "bold"),
        f" on {status.cluster_name}: {plural(sum(status.counters.counts.values()), 'run')}"
        + ("" if status.is_over else f"; {controller}"),
    )


def _counts(status: Status) -> Table:
    counters = status.counters
    labels = status.group_labels if any(any(group) for group in counters.groups) else ()
    words = [word for word in STATUSES if counters.counts[word] or word == "done"]
    table = Table(box=None, pad_edge=False)
    for label in labels:
        table.add_column(_TITLES.get(label, label), justify="right" if label in _TITLES else "left", no_wrap=True)
    for word in words:
        table.add_column(word, justify="right", style=_COLOURS[word], no_wrap=True)
    for name in ("took", "expected") if counters.finished_in_all.count else ():
        table.add_column(name, justify="right", no_wrap=True)
    rows = sorted((group for group, counts in counters.groups.items() if any(counts.values())), key=_order)
    for group in rows if labels else []:
        finished = counters.finished.get(group, Finished())
        table.add_row(*_names(labels, group), *_numbers(counters.groups[group], words), *_means(finished))
    if len(rows) > 1 or not labels:
        total = ["all", *[""] * len(labels)][: len(labels)]
        table.add_row(*total, *_numbers(counters.counts, words), *_means(counters.finished_in_all), style="bold")
    return table


def _order(group: RowGroup) -> list[tuple[bool, Any]]:
    """Rows by their labels' values; those without a value last."""
    return [(value is None, value or 0) for value in group]


def _names(labels: Sequence[str], group: RowGroup) -> list[str]:
    shown = zip(labels, group, strict=True)
    return ["" if value is None else model_name(value) if label in _TITLES else str(value) for label, value in shown]


def _numbers(counts: Mapping[str, int], words: Sequence[str]) -> Iterator[str]:
    return (f"{counts[word]:,}" if counts.get(word) else "" for word in words)


def _means(finished: Finished) -> tuple[str, ...]:
    """Return the mean time of a finished run, and what was expected of it at first."""
    if not finished.count:
        return ()
    minutes = (finished.actual_minutes, finished.expected_minutes)
    return tuple(about(60 * total / finished.count) for total in minutes)


def _running(status: Status, most: int) -> Table:
    table = Table(box=None, pad_edge=False)
    table.add_column("running", no_wrap=True)
    table.add_column("on", no_wrap=True, overflow="ellipsis")
    for name in ("attempt", "for", "of about", "done", "loss"):
        table.add_column(name, justify="right", no_wrap=True)
    shown = sorted(status.running, key=lambda one: -one.minutes)
    for one in shown[:most]:
        table.add_row(*_row(one))
    if len(shown) > most:
        table.add_row(f"and {len(shown) - most:,} more", style="dim")
    return table


def _row(one: RunningRun) -> tuple[str, ...]:
    run, attempt, progress = one.run, one.run.attempts[-1], one.progress
    return (
        " ".join([run.work.name, *(_names(run.work.adapter.group_labels, group_of(run.work)) or _overrides(run.work))]),
        _nodes(attempt.nodes),
        str(attempt.number),
        about(60 * one.minutes),
        about(60 * one.left.attempt_minutes),
        f"{100 * progress.share:.0f}%" if progress is not None and progress.share is not None else "",
        f"{progress.figures['loss']:.3f}" if progress is not None and "loss" in progress.figures else "",
    )


def _overrides(work: Work) -> list[str]:
    """Return what tells a piece of work apart whose kind has no labels of its own: what was set for it."""
    return [f"{key}={value}" for key, value in work.labels.items()]


def _nodes(names: Sequence[str]) -> str:
    return names[0] + (f" +{len(names) - 1}" if len(names) > 1 else "") if names else ""


def status_lines(status: Status, command: str) -> Iterator[str]:
    """Yield what there is to know besides the counts, one line each."""
    counters = status.counters
    yield from _cost(status)
    yield from goodput_lines(status.goodput, "of jobs that have ended")
    if counters.resubmitted:
        yield f"{plural(counters.resubmitted, 'attempt')} followed an earlier one of the same run."
    if status.waits_for:
        yield f"The controller {status.waits_for}."
    for why, count in status.waiting.items():
        yield f"{count:,} waiting: {why or 'for the next tick'}"
    for why, count in status.submitted.items():
        yield f"{count:,} submitted, in the scheduler's queue" + (f": {why}" if why else "")
    for why, names in counters.held.items():
        first = next(iter(names))
        yield f"{len(names):,} held: {why}"
        yield f"  muloco-sweep explain {shlex.quote(first)} {command}"
    for node, slow in status.slow_nodes.items():
        yield f"Slow: {slow_line(node, slow)}."
    for unsent in status.unsent:
        yield f"{unsent.to_text()}."
    for one in status.damage:
        where = f"line {one.line} of the ledger" if one.line else "the ledger"
        yield f"Damage in {where}: {one.why}; ignored."


def _by(status: Status) -> str:
    """Return how many runs the time that is left is from, where some have measured theirs."""
    measured, unfinished = status.minutes_left_by[Basis.PROGRESS], sum(status.minutes_left_by.values())
    return f", {measured:,} of {plural(unfinished, 'run')} by their own progress" if measured else ""


def _cost(status: Status) -> Iterator[str]:
    parts = []
    used, left, cap = status.gpu_hours_used, status.gpu_hours_left, status.gpu_hours_cap
    if used or left or cap is not None:
        of_cap = f" of at most {cap:,g}" if cap is not None else ""
        parts.append(f"{used:,.1f} GPU-hours used{of_cap}, about {left:,.1f} left")
    if status.minutes_left is not None and not status.is_over:
        parts.append(f"at least {duration(60 * status.minutes_left)} left{_by(status)}")
    if parts:
        text = "; ".join(parts)
        yield text[0].upper() + text[1:] + "."
