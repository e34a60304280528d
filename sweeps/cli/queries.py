"""The commands that look at a sweep and change nothing: status, watch, explain, logs, and `quota` without limits."""

from __future__ import annotations

import argparse
import contextlib
import json
import shutil
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from muloco_runner.config import ConfigError
from muloco_runner.record import ExitCode
from sweeps.cli.explain import explain, row
from sweeps.cli.live_snapshot import Snapshot
from sweeps.cli.named_sweeps import find_run, find_sweeps, only_one, sweep_arguments
from sweeps.cli.status_table import status_lines, status_table
from sweeps.cli.study_lines import study_lines
from sweeps.cli.terminal import WIDEST, make_console, wrapped
from sweeps.formatting import in_bytes, plural
from sweeps.node.last_words import last_words
from sweeps.store.folder import SweepFolder
from sweeps.training.best import best_results, training_runs_of
from sweeps.training.weights import kept_weights

Arguments = argparse.Namespace
_WATCH_SECONDS = 2.0
_LOG_SECONDS = 0.5
_WATCHED = ("controlled", "is_over", "paused", "own_limits", "counts", "waiting", "submitted")
"""Keys of `status --json` whose change is worth a line of `watch --json`, besides the runs'."""
_MAX_RUNNING_SHOWN = 20
"""Running runs that `status` lists."""
_MAX_COMPARED = 1000
"""Finished runs whose results `status` reads to name the best; of more the report tells, which takes its time."""


def status(arguments: Arguments) -> ExitCode:
    for folder, filters in find_sweeps(arguments):
        snapshot = Snapshot(folder)
        chosen = snapshot.selected(filters) if filters else None
        if arguments.json:
            print(json.dumps(snapshot.to_dict(chosen)))
            continue
        console, command = make_console(), sweep_arguments(folder)
        console.print(status_table(snapshot.status(chosen), _MAX_RUNNING_SHOWN, command, console.width))
        # Of a large sweep most runs have no history, and are not looked at one by one.
        known = snapshot.state.runs.with_history() if chosen is None else chosen
        done = [run.work for run in known if run.done]
        if len(done) <= _MAX_COMPARED:
            for line in best_results(training_runs_of(done), folder.root):
                print(line)
        if kept := kept_weights(done):
            print(
                f"weights of {plural(len(kept), 'finished run')} take {in_bytes(sum(one.num_bytes for one in kept))}; "
                f"free: {in_bytes(shutil.disk_usage(folder.root).free)}\n  muloco-sweep clean {command}"
            )
        if snapshot.definition.study is not None:
            print(*study_lines(snapshot.definition.study, snapshot.state), sep="\n")
    return ExitCode.FINISHED


@contextlib.contextmanager
def _only_looking(words: str) -> Iterator[None]:
    """Let Ctrl-C, whenever it comes, say that nothing but the looking has ended."""
    try:
        yield
    except KeyboardInterrupt:
        raise KeyboardInterrupt(words) from None


@_only_looking("no longer watching; the sweep goes on")
def watch(arguments: Arguments) -> ExitCode:
    """`status`, redrawn until the sweep is over or has no controller."""
    from rich.live import Live

    ((folder, filters),) = only_one(find_sweeps(arguments))
    if arguments.json:
        return _watch_as_lines(folder, filters)
    with Live(console=make_console(), auto_refresh=False, vertical_overflow="crop") as live:
        while True:
            snapshot = Snapshot(folder)
            found = snapshot.status(snapshot.selected(filters) if filters else None)
            # The running runs get the lines of the terminal that are left.
            width, command = live.console.width, sweep_arguments(folder)
            num_lines = sum(1 + wrapped(line, width).count("\n") for line in status_lines(found, command))
            num_running = live.console.height - len(found.counters.groups) - num_lines - 8
            table = status_table(found, max(1, min(_MAX_RUNNING_SHOWN, num_running)), command, width)
            live.update(table, refresh=True)
            if snapshot.state.is_over or not snapshot.is_controlled:
                break
            time.sleep(_WATCH_SECONDS)
    print(
        "The sweep is over."
        if snapshot.state.is_over
        else "No controller is running: launch the sweep again to continue."
    )
    return ExitCode.FINISHED


def _watch_as_lines(folder: SweepFolder, filters: Sequence[str]) -> ExitCode:
    """Print a line of JSON for each change: `status --json`, with the runs that have changed since the line before."""
    printed: dict[str, Any] = {}
    rows: dict[str, Any] = {}
    while True:
        snapshot = Snapshot(folder)
        now = snapshot.to_dict(snapshot.selected(filters) if filters else None)
        # Hours and minutes change all the time.
        changed = [one for one in now["runs"] if rows.get(one["run"]) != {**one, "minutes_left": None}]
        rows |= {one["run"]: {**one, "minutes_left": None} for one in changed}
        facts = {key: now[key] for key in _WATCHED}
        if changed or facts != printed:
            printed = facts
            print(json.dumps({**now, "runs": changed}), flush=True)
        if snapshot.state.is_over or not snapshot.is_controlled:
            return ExitCode.FINISHED
        time.sleep(_WATCH_SECONDS)


def explain_run(arguments: Arguments) -> ExitCode:
    folder, run, snapshot = find_run(arguments)
    reason = snapshot.reason(run)
    longest = max(allocation.max_wall_minutes for allocation in snapshot.config.allocations)
    added = snapshot.state.added.get(run.work.name)
    why = added.why if added is not None else ""
    left = snapshot.time_left(run)
    words = last_words(run, folder.cluster_dir)
    command = sweep_arguments(folder)
    lines = explain(run, reason, words, time.time(), longest, snapshot.config.retries, command, left, why)
    if arguments.json:
        print(json.dumps({"sweep": folder.name, **row(run, reason, left), "added": why, "history": lines}))
    else:
        console = make_console()
        for line in lines:
            console.print(wrapped(line, console.width), soft_wrap=True, markup=False)
    return ExitCode.FINISHED


@_only_looking("no longer reading; the run goes on")
def logs(arguments: Arguments) -> ExitCode:
    """Print the newest attempt's output, errors last; with -f also what is added to it until the attempt ends.

    For programs one line of JSON holds both, and with -f one more each time that something is added.
    """
    folder, run, _ = find_run(arguments)
    attempts = sorted((Path(run.work.folder) / "attempts").glob("[0-9]*"), key=lambda path: int(path.name))
    if not attempts:
        raise ConfigError(f"run {run.work.name} has no attempt yet, so there is no output")
    number = int(attempts[-1].name)
    attempt = {"sweep": folder.name, "run": run.work.name, "attempt": number}
    offsets = dict.fromkeys(("stdout", "stderr"), 0)
    is_first = True
    # Reading a sweep of many runs takes seconds, and only what is in the ledger can end the attempt.
    length = -1
    while True:
        goes_on = arguments.follow and run.in_flight and run.attempts[-1].number == number
        texts = {name: _read_on(attempts[-1] / f"{name}.log", name, offsets) for name in offsets}
        if not arguments.json:
            print(*texts.values(), sep="", end="", flush=True)
        elif is_first or any(texts.values()):
            print(json.dumps({**attempt, **texts}), flush=True)
        if not goes_on:
            return ExitCode.FINISHED
        is_first = False
        time.sleep(_LOG_SECONDS)
        before, length = length, folder.ledger_file.stat().st_size
        if length != before:
            run = Snapshot(folder).state.runs[run.work.name]


def _read_on(path: Path, name: str, offsets: dict[str, int]) -> str:
    """Return what was added to the file since the last time; nothing where it is not there."""
    with contextlib.suppress(FileNotFoundError), open(path, errors="replace") as file:
        file.seek(offsets[name])
        text = file.read()
        offsets[name] = file.tell()
        return text
    return ""


def show_quota(arguments: Arguments) -> ExitCode:
    """Print every limit on the sweep, whoever set it, and what is used of it now."""
    for folder, _ in find_sweeps(arguments):
        limits = Snapshot(folder).limits()
        if arguments.json:
            print(json.dumps({"sweep": folder.name, "limits": limits}))
        else:
            table = Table("in", "limit", "of", box=None, pad_edge=False)
            for title in ("used", "by others", "most"):
                table.add_column(title, justify="right")
            for one in limits:
                numbers = [f"{one[key]:,.6g}" for key in ("used", "used_by_others", "most")]
                table.add_row(one["allocation"], one["limit"], one["resource"], *numbers)
            # Names of limits stay whole: a terminal that is narrower wraps the line.
            Console(highlight=False, width=WIDEST).print(table)
            print(f"Change one with, for example, muloco-sweep quota {sweep_arguments(folder)} --nodes 12")
    return ExitCode.FINISHED
