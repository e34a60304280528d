"""The commands on a sweep that exists: status, explain, logs, pause, quota, cancel, retry."""

from __future__ import annotations

import argparse
import json
import shlex
import sys
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
_MAX_RUNNING_SHOWN = 20
"""Running runs that `status` lists."""
_MAX_NAMES_SHOWN = 8
_WIDEST_TABLE = 1000


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
            time.sleep(_WATCH_SECONDS)
    print(
        "The sweep is over."
        if snapshot.state.is_over
        else "No controller is running: launch the sweep again to continue."
    )
    return ExitCode.FINISHED


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
    """Print the newest attempt's output, errors last; with -f also what is added to it until the attempt ends."""
    folder, run, _ = find_run(arguments)
    attempts = sorted((Path(run.work.folder) / "attempts").glob("[0-9]*"), key=lambda path: int(path.name))
    if not attempts:
        raise ConfigError(f"run {run.work.name} has no attempt yet, so there is no output")
    files = [path for path in (attempts[-1] / "stdout.log", attempts[-1] / "stderr.log") if path.exists()]
    read = {path: _print_from(path, 0) for path in files}
    while arguments.follow and run.in_flight:
        time.sleep(0.5)
        read = {path: _print_from(path, offset) for path, offset in read.items()}
        run = Snapshot(folder).state.runs[run.work.name]
    return ExitCode.FINISHED


def _print_from(path: Path, offset: int) -> int:
    with open(path, errors="replace") as file:
        file.seek(offset)
        sys.stdout.write(file.read())
        sys.stdout.flush()
        return file.tell()


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

    def concerns(run: RunState) -> bool:
        return not run.done and run.held is None and not (run.in_flight and is_finished(run.work))

    return _send_for_runs(arguments, "cancel", "cancelled", concerns, in_their_jobs)


def in_their_jobs(runs: Sequence[RunState], state: SweepState) -> list[str]:
    """Return the names of the other runs that are in flight in the jobs of `runs`."""
    named = {run.work.name for run in runs}
    jobs = [state.jobs[run.attempts[-1].tag] for run in runs if run.in_flight and run.attempts[-1].tag in state.jobs]
    together = [attempt.work.name for job in jobs for attempt in job.request.attempts]
    others = [state.runs[name] for name in dict.fromkeys(together) if name not in named]
    return [run.work.name for run in others if run.in_flight and not is_finished(run.work)]


def hold(arguments: Arguments) -> ExitCode:
    return _send_for_runs(arguments, "held", "held", lambda run: run.is_waiting, why="held by hand")


def retry(arguments: Arguments) -> ExitCode:
    return _send_for_runs(arguments, "released", "released", lambda run: run.held is not None)


def _send_for_sweep(arguments: Arguments, event: str, values: Mapping[str, Any], done: str, for_runs: str) -> ExitCode:
    """Send a command that is about a whole sweep. `for_runs` says what acts on some of its runs."""

    def command(snapshot: Snapshot, filters: Sequence[str]) -> tuple[str, dict[str, Any]]:
        if filters:
            raise ConfigError(
                f"{arguments.name} {' '.join(filters)}: {arguments.name} is about the whole sweep and takes no "
                f"filters: leave them out; {for_runs}"
            )
        return event, dict(values)

    return _send(arguments, command, done)


def _send_for_runs(
    arguments: Arguments,
    event: str,
    done: str,
    concerns: Callable[[RunState], bool],
    also_ends: Callable[[Sequence[RunState], SweepState], list[str]] | None = None,
    **values: Any,
) -> ExitCode:
    """Send a command about the chosen runs that it concerns. `also_ends` names the runs that it stops besides them."""

    def command(snapshot: Snapshot, filters: Sequence[str]) -> tuple[str, dict[str, Any]] | None:
        if not filters and not arguments.all:
            raise ConfigError(
                f"{arguments.name}: name runs by filters such as algorithm=muloco or run=3fa, or say --all"
            )
        runs = [run for run in snapshot.selected(filters) if concerns(run)]
        others = {} if also_ends is None else {"also_ends": also_ends(runs, snapshot.state)}
        return (event, {"runs": [run.work.name for run in runs], **values, **others}) if runs else None

    return _send(arguments, command, done)


def _send(
    arguments: Arguments,
    command: Callable[[Snapshot, Sequence[str]], tuple[str, dict[str, Any]] | None],
    done: str,
) -> ExitCode:
    """Send a command to the controller; where none is running, apply it here."""
    for folder, filters in only_one(find_sweeps(arguments)):
        snapshot = Snapshot(folder)
        found = command(snapshot, filters)
        result = CommandResult(folder.name, arguments.name)
        if found is not None:
            event, result.values = found
            others = [snapshot.state.runs[name] for name in result.values.get("also_ends", ())]
            result.resumes = bool(others) and all(run.work.adapter.resumes for run in others)
            try:
                result.at_next_tick = _carry_out(folder, snapshot.definition, event, result.values)
            except PermissionError:
                who = snapshot.owner or "whoever may write there"
                raise ConfigError(
                    f"{arguments.name}: {folder.path}: only {who} may change this sweep; everybody who can read it may "
                    "use status, watch, explain and logs"
                ) from None
        print(json.dumps(result.to_dict()) if arguments.json else result.to_text(done))
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
    values: dict[str, Any] | None = None
    """The event's fields in the ledger; None where no run is affected."""
    at_next_tick: bool = False
    """Whether a running controller will apply it; else it is applied already."""
    resumes: bool = False
    """Whether the runs save checkpoints by themselves (`Adapter.resumes`)."""

    def to_dict(self) -> dict[str, Any]:
        runs = {"runs": []} if self.values is None else self.values
        return {"sweep": self.sweep, "command": self.command, **runs, "at_next_tick": self.at_next_tick}

    def to_text(self, done: str) -> str:
        if self.values is None:
            return f"{self.sweep}: no run is affected"
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
        return f"{self.sweep}: {number}{done}{how}{with_them}"


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
