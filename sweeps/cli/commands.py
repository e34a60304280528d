"""The commands on a sweep that exists: status, explain, logs, pause, quota, cancel, retry."""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import shlex
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from muloco_runner.config import ConfigError
from muloco_runner.record import ExitCode
from sweeps.cli.explain import explain, row
from sweeps.cli.live_snapshot import Snapshot
from sweeps.cli.status_table import status_lines, status_table
from sweeps.clusters import make_cluster
from sweeps.controller import Controller
from sweeps.engine.run_states import RunState
from sweeps.engine.sweep_state import SweepState
from sweeps.formatting import plural
from sweeps.node.attempt_files import is_finished
from sweeps.node.last_words import last_words
from sweeps.store.definition import Definition
from sweeps.store.folder import SweepFolder
from sweeps.store.lease import LeaseHeld

Arguments = argparse.Namespace
_WATCH_SECONDS = 2.0
_LOG_SECONDS = 0.5
_WATCHED = ("controlled", "is_over", "paused", "own_limits", "counts", "waiting", "submitted")
"""Keys of `status --json` whose change is worth a line of `watch --json`, besides the runs'."""
_MAX_RUNNING_SHOWN = 20
"""Running runs that `status` lists."""
_MAX_NAMES_SHOWN = 8
_WIDEST_TABLE = 1000
_KEEP_FROM_STARTING = ("pause", "hold", "cancel", "quota")


def status(arguments: Arguments) -> ExitCode:
    for folder, filters in find_sweeps(arguments):
        snapshot = Snapshot(folder)
        chosen = snapshot.selected(filters) if filters else None
        if arguments.json:
            print(json.dumps(snapshot.to_dict(chosen)))
        else:
            Console(highlight=False).print(
                status_table(snapshot.status(chosen), _MAX_RUNNING_SHOWN, sweep_arguments(folder))
            )
    return ExitCode.FINISHED


def watch(arguments: Arguments) -> ExitCode:
    """`status`, redrawn until the sweep is over or has no controller."""
    from rich.live import Live

    ((folder, filters),) = only_one(find_sweeps(arguments))
    if arguments.json:
        return _watch_as_lines(folder, filters)
    with Live(console=Console(highlight=False), auto_refresh=False, vertical_overflow="crop") as live:
        while True:
            snapshot = Snapshot(folder)
            found = snapshot.status(snapshot.selected(filters) if filters else None)
            # The running runs get the lines of the terminal that are left.
            others = len(found.counters.groups) + len(list(status_lines(found, ""))) + 8
            table = status_table(
                found, max(1, min(_MAX_RUNNING_SHOWN, live.console.height - others)), sweep_arguments(folder)
            )
            live.update(table, refresh=True)
            if snapshot.state.is_over or not snapshot.is_controlled:
                break
            _sleep_watching()
    print(
        "The sweep is over."
        if snapshot.state.is_over
        else "No controller is running: launch the sweep again to continue."
    )
    return ExitCode.FINISHED


def _sleep_watching() -> None:
    try:
        time.sleep(_WATCH_SECONDS)
    except KeyboardInterrupt:
        raise KeyboardInterrupt("no longer watching; the sweep goes on") from None


def _watch_as_lines(folder: SweepFolder, filters: Sequence[str]) -> ExitCode:
    """Print a line of JSON for each change: `status --json`, with the runs that have changed since the line before."""
    printed: dict[str, Any] = {}
    rows: dict[str, Any] = {}
    while True:
        snapshot = Snapshot(folder)
        now = snapshot.to_dict(snapshot.selected(filters) if filters else None)
        changed = [one for one in now["runs"] if rows.get(one["run"]) != one]
        rows |= {one["run"]: one for one in changed}
        # Hours and minutes grow all the time.
        facts = {key: now[key] for key in _WATCHED}
        if changed or facts != printed:
            printed = facts
            print(json.dumps({**now, "runs": changed}), flush=True)
        if snapshot.state.is_over or not snapshot.is_controlled:
            return ExitCode.FINISHED
        _sleep_watching()


def sweep_arguments(folder: SweepFolder) -> str:
    """Return the arguments by which a proposed command finds the sweep."""
    root = shlex.quote(str(folder.root))
    return f"{root} --sweep {shlex.quote(folder.name)}" if len(SweepFolder.all_under(folder.root)) > 1 else root


def explain_run(arguments: Arguments) -> ExitCode:
    folder, run, snapshot = find_run(arguments)
    reason = snapshot.reason(run)
    longest = max(allocation.max_wall_minutes for allocation in snapshot.config.allocations)
    lines = explain(run, reason, last_words(run, folder.cluster_dir), time.time(), longest, snapshot.config.retries)
    if arguments.json:
        print(json.dumps({"sweep": folder.name, **row(run, reason), "history": lines}))
    else:
        print("\n".join(lines))
    return ExitCode.FINISHED


def logs(arguments: Arguments) -> ExitCode:
    """Print the newest attempt's output, errors last; with -f also what is added to it until the attempt ends.

    For programs one line of JSON holds both, and with -f one more each time that something is added.
    """
    folder, run, _ = find_run(arguments)
    attempts = sorted((Path(run.work.folder) / "attempts").glob("[0-9]*"), key=lambda path: int(path.name))
    if not attempts:
        raise ConfigError(f"run {run.work.name} has no attempt yet, so there is no output")
    attempt = {"sweep": folder.name, "run": run.work.name, "attempt": int(attempts[-1].name)}
    offsets = dict.fromkeys(("stdout", "stderr"), 0)
    is_first = True
    while True:
        goes_on = arguments.follow and run.in_flight
        texts = {name: _read_on(attempts[-1] / f"{name}.log", name, offsets) for name in offsets}
        if not arguments.json:
            print(*texts.values(), sep="", end="", flush=True)
        elif is_first or any(texts.values()):
            print(json.dumps({**attempt, **texts}), flush=True)
        if not goes_on:
            return ExitCode.FINISHED
        is_first = False
        time.sleep(_LOG_SECONDS)
        run = Snapshot(folder).state.runs[run.work.name]


def _read_on(path: Path, name: str, offsets: dict[str, int]) -> str:
    """Return what was added to the file since the last time; nothing where it is not there."""
    with contextlib.suppress(FileNotFoundError), open(path, errors="replace") as file:
        file.seek(offsets[name])
        text = file.read()
        offsets[name] = file.tell()
        return text
    return ""


def pause(arguments: Arguments) -> ExitCode:
    return _send_for_sweep(
        arguments, "paused", {"paused": True}, "paused: running jobs continue", "`hold` puts single runs aside"
    )


def resume(arguments: Arguments) -> ExitCode:
    return _send_for_sweep(arguments, "paused", {"paused": False}, "resumed", "`retry` releases single runs")


def quota(arguments: Arguments) -> ExitCode:
    names = ("nodes", "gpus", "jobs", "submitted_jobs", "gpu_hours", "max_gpu_hours")
    limits = {name: getattr(arguments, name) for name in names if getattr(arguments, name) is not None}
    for name, value in limits.items():
        if not value >= 0:
            raise ConfigError(f"--{name.replace('_', '-')} {value}: must be zero or more")
    if not limits:
        return _show_quota(arguments)
    text = ", ".join(f"{name}={value:g}" for name, value in limits.items())
    return _send_for_sweep(
        arguments, "own_limits", {"limits": limits}, f"limits set: {text}", "`hold` puts single runs aside"
    )


def _show_quota(arguments: Arguments) -> ExitCode:
    """Print every limit on the sweep, whoever set it, and what is used of it now."""
    for folder, _ in find_sweeps(arguments):
        limits = Snapshot(folder).limits()
        if arguments.json:
            print(json.dumps({"sweep": folder.name, "limits": limits}))
        else:
            table = Table("allocation", "limit", "of", box=None, pad_edge=False)
            for title in ("used here", "used outside", "most"):
                table.add_column(title, justify="right")
            for one in limits:
                numbers = [f"{one[key]:,.6g}" for key in ("used", "used_by_others", "most")]
                table.add_row(one["allocation"], one["limit"], one["resource"], *numbers)
            console = Console(highlight=False)
            # Names of limits stay whole: a terminal that is narrower wraps the line.
            Console(highlight=False, width=_WIDEST_TABLE).print(table)
            example = f"Change one with, for example, muloco-sweep quota {sweep_arguments(folder)} --nodes 12"
            console.print(example, soft_wrap=True)
    return ExitCode.FINISHED


def cancel(arguments: Arguments) -> ExitCode:
    """End runs and hold them. Others that share a job with them end too and are submitted again."""

    def concerns(run: RunState, state: SweepState) -> bool:
        return not run.done and run.held is None and not (run.in_flight and is_finished(run.work))

    return _send_for_runs(arguments, "cancel", "cancelled", concerns, True, in_their_jobs)


def in_their_jobs(runs: Sequence[RunState], state: SweepState) -> list[str]:
    """Return the names of the other runs that are in flight in the jobs of `runs`."""
    named = {run.work.name for run in runs}
    jobs = [state.jobs[run.attempts[-1].tag] for run in runs if run.in_flight and run.attempts[-1].tag in state.jobs]
    together = [attempt.work.name for job in jobs for attempt in job.request.attempts]
    others = [state.runs[name] for name in dict.fromkeys(together) if name not in named]
    return [run.work.name for run in others if run.in_flight and not is_finished(run.work)]


def hold(arguments: Arguments) -> ExitCode:
    def concerns(run: RunState, state: SweepState) -> bool:
        return run.is_waiting or run in state.runs_behind()

    return _send_for_runs(arguments, "held", "held", concerns, True, why="held by hand")


def retry(arguments: Arguments) -> ExitCode:
    return _send_for_runs(arguments, "released", "released", lambda run, state: run.held is not None, False)


def _send_for_sweep(arguments: Arguments, event: str, values: Mapping[str, Any], done: str, for_runs: str) -> ExitCode:
    """Send a command that is about a whole sweep. `for_runs` says what acts on some of its runs."""

    def command(snapshot: Snapshot, filters: Sequence[str]) -> _Command:
        if filters:
            raise ConfigError(
                f"{arguments.name} {' '.join(filters)}: {arguments.name} is about the whole sweep and takes no "
                f"filters: leave them out; {for_runs}"
            )
        return _Command(event, dict(values), not _is_so(snapshot.state, values))

    return _send(arguments, command, done)


def _is_so(state: SweepState, values: Mapping[str, Any]) -> bool:
    """Whether the sweep is as a command about the whole of it asks."""
    limits = values.get("limits", {})
    return state.paused == values.get("paused", state.paused) and state.own_limits == {**state.own_limits, **limits}


def _send_for_runs(
    arguments: Arguments,
    event: str,
    done: str,
    concerns: Callable[[RunState, SweepState], bool],
    holds: bool,
    also_ends: Callable[[Sequence[RunState], SweepState], list[str]] | None = None,
    **values: Any,
) -> ExitCode:
    """Send a command about the chosen runs that it concerns.

    `holds` says whether they are held afterwards; `also_ends` names the runs that it stops besides.
    """

    def command(snapshot: Snapshot, filters: Sequence[str]) -> _Command:
        if not filters and not arguments.all:
            raise ConfigError(
                f"{arguments.name}: name runs by filters such as algorithm=muloco or run=3fa, or say --all"
            )
        chosen = snapshot.selected(filters)
        runs = [run for run in chosen if concerns(run, snapshot.state)]
        others = {} if also_ends is None else {"also_ends": also_ends(runs, snapshot.state)}
        so = [run.work.name for run in chosen if not run.done and (run.held is not None) is holds]
        return _Command(event, {"runs": [run.work.name for run in runs], **values, **others}, bool(runs), so)

    return _send(arguments, command, done, "held already" if holds else "not held")


@dataclass(frozen=True)
class _Command:
    """What a command asks of the controller."""

    event: str
    values: dict[str, Any]
    changes: bool
    """Whether anything is not yet as it asks."""
    already: Sequence[str] = ()
    """Runs that are."""


def _send(
    arguments: Arguments, command: Callable[[Snapshot, Sequence[str]], _Command], done: str, already: str = ""
) -> ExitCode:
    """Send a command to the controller; where none is running, apply it here."""
    for folder, filters in only_one(find_sweeps(arguments)):
        # Read before the state: one that is carried out meanwhile is in the state then, and known there.
        pending = [event for _, event in folder.received()]
        snapshot = Snapshot(folder)
        snapshot.foresee(pending)
        asked = command(snapshot, filters)
        result = CommandResult(folder.name, arguments.name, asked.values, asked.changes, asked.already)
        result.at_next_tick = bool(pending) and snapshot.is_controlled
        if asked.changes:
            result.num_behind = len(snapshot.state.jobs_behind())
            others = [snapshot.state.runs[name] for name in asked.values.get("also_ends", ())]
            result.resumes = bool(others) and all(run.work.adapter.resumes for run in others)
            try:
                result.at_next_tick = _carry_out(folder, snapshot.definition, asked.event, asked.values)
            except PermissionError:
                who = snapshot.owner or "whoever may write there"
                raise ConfigError(
                    f"{arguments.name}: {folder.path}: only {who} may change this sweep; everybody who can read it may "
                    "use status, watch, explain and logs"
                ) from None
        print(json.dumps(result.to_dict()) if arguments.json else result.to_text(done, already))
    return ExitCode.FINISHED


def _carry_out(folder: SweepFolder, definition: Definition, event: str, values: Mapping[str, Any]) -> bool:
    """Return whether a running controller will do it at its next tick; else it is done."""
    try:
        controller = Controller(folder, definition, make_cluster)
    except LeaseHeld:
        folder.send(event, **values)
        return True
    folder.send(event, **values)
    controller.apply_pending_commands()
    return False


@dataclass
class CommandResult:
    """What a command did, or will do at the controller's next tick."""

    sweep: str
    command: str
    values: dict[str, Any]
    """The event's fields in the ledger."""
    changed: bool = True
    """False where all is as the command asks: the same command a second time changes nothing."""
    already: Sequence[str] = ()
    """Chosen runs that were as the command asks."""
    at_next_tick: bool = False
    """Whether a running controller will apply it; else it is applied already."""
    num_behind: int = 0
    """Jobs that are queued behind those whose nodes they take."""
    resumes: bool = False
    """Whether the runs save checkpoints by themselves (`Adapter.resumes`)."""

    def to_dict(self) -> dict[str, Any]:
        already = {"already": list(self.already)} if "runs" in self.values else {}
        told = {**self.values, **already, "changed": self.changed, "at_next_tick": self.at_next_tick}
        return {"sweep": self.sweep, "command": self.command, **told}

    def to_text(self, done: str, already: str = "") -> str:
        """`done` says what was done, `already` what the runs are of which nothing is changed."""
        so = f"{plural(len(self.already), 'run')} {already}" if self.already else ""
        if not self.changed:
            if "runs" in self.values:
                return f"{self.sweep}: no run is affected" + (f": {so}" if so else "")
            return f"{self.sweep}: {done}; so it was already, nothing changes"
        number = f"{plural(len(self.values['runs']), 'run')} " if "runs" in self.values else ""
        others = self.values.get("also_ends", [])
        with_them = ""
        if others:
            save = "save a checkpoint and " if self.resumes else ""
            with_them = (
                f". This also ends {plural(len(others), 'other run')} in the same jobs ({_names(others)}): these "
                f"{save}are submitted again, which does not count against them"
            )
        if self.at_next_tick:
            how = " at the controller's next tick"
        else:
            how = "" if self.command == "quota" else "; no controller is running: launch the sweep to continue"
        return f"{self.sweep}: {number}{done}{how}{with_them}{self._words_on_queued()}"

    def _words_on_queued(self) -> str:
        """What still starts by itself, of what a command is to keep from starting."""
        if not self.num_behind or self.command not in _KEEP_FROM_STARTING:
            return ""
        jobs = f"{plural(self.num_behind, 'job')} queued behind running ones"
        if self.at_next_tick:
            return f". Until then those of the {jobs} may start whose turn comes"
        if self.command == "quota":
            return f". Those of the {jobs} start whose turn comes before the sweep is launched again"
        return f". Those of the {jobs} that this concerns are withdrawn; one whose turn has come may start before that"


def _names(names: Sequence[str]) -> str:
    more = [] if len(names) <= _MAX_NAMES_SHOWN else [f"{len(names) - _MAX_NAMES_SHOWN} more"]
    return ", ".join([*names[:_MAX_NAMES_SHOWN], *more])


def find_sweeps(arguments: Arguments) -> list[tuple[SweepFolder, list[str]]]:
    """Return the sweeps that the command line names, each with the filters. No sweep raises `ConfigError`."""
    filters = [argument for argument in arguments.root_and_filters if "=" in argument]
    roots = [argument for argument in arguments.root_and_filters if "=" not in argument]
    if len(roots) > 1:
        raise ConfigError(f"{' and '.join(roots)}: name one root, then filters KEY=VALUE")
    root = Path(roots[0] if roots else "results")
    for folder in (root, root / "sweeps"):
        if folder.exists() and not os.access(folder, os.R_OK | os.X_OK):
            raise ConfigError(f"{folder}: permission denied: ask its owner for the right to read it")
    found = [folder for folder in SweepFolder.all_under(root) if arguments.sweep in (None, folder.name)]
    if not found:
        what = f"sweep {arguments.sweep!r}" if arguments.sweep else "sweep"
        raise ConfigError(f"{root}: holds no {what}: give the folder that `launch` was given as root=")
    return [(folder, filters) for folder in found]


def only_one(found: list[tuple[SweepFolder, list[str]]]) -> list[tuple[SweepFolder, list[str]]]:
    if len(found) > 1:
        names = ", ".join(folder.name for folder, _ in found)
        raise ConfigError(f"several sweeps are here ({names}): add --sweep NAME")
    return found


def find_run(arguments: Arguments) -> tuple[SweepFolder, RunState, Snapshot]:
    """Return the run whose id starts as given. None, or several, raise `ConfigError`."""
    filters = [argument for argument in arguments.root_and_filters if "=" in argument]
    if filters:
        raise ConfigError(f"{' '.join(filters)}: {arguments.name} is about one run, {arguments.run!r}: drop filters")
    runs = list(_runs_named(arguments))
    if len(runs) != 1:
        what = f"{len(runs)} runs start with it: give more digits" if runs else "no run of the sweep starts with it"
        raise ConfigError(f"run {arguments.run!r}: {what}")
    return runs[0]


def _runs_named(arguments: Arguments) -> Iterator[tuple[SweepFolder, RunState, Snapshot]]:
    for folder, _ in find_sweeps(arguments):
        snapshot = Snapshot(folder)
        for name, run in snapshot.state.runs.items():
            if name.startswith(arguments.run):
                yield folder, run, snapshot
