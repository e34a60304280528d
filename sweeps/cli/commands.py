"""What people ask of a sweep that exists: look at it, explain a run, pause, change limits, cancel, try again."""

from __future__ import annotations

import argparse
import json
import shlex
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from rich.console import Console

from muloco_runner.config import ConfigError
from muloco_runner.record import ExitCode, RecordError, RunFolder
from sweeps.cli.explain import explain, row, why, why_they_wait
from sweeps.cli.filters import select
from sweeps.cli.status import Progress, Status, status_of
from sweeps.cli.status_table import status_lines, status_table
from sweeps.clusters import make_cluster
from sweeps.controller import Controller
from sweeps.engine.cluster import Cluster, Refused
from sweeps.engine.decide import decide
from sweeps.engine.quota import Verdict, all_limits
from sweeps.engine.runs import RunState
from sweeps.engine.state import SweepState
from sweeps.engine.works import Shape
from sweeps.formatting import plural
from sweeps.store.definition import Definition
from sweeps.store.folder import SweepFolder
from sweeps.store.lease import LeaseHeld, read_holder

Arguments = argparse.Namespace
_WATCH_SECONDS = 2.0
_MOST_AT_WORK = 20
"""Runs at work that are named."""


def status(arguments: Arguments) -> ExitCode:
    for folder, filters in find_sweeps(arguments):
        look = Look(folder)
        chosen = look.selected(filters) if filters else None
        if arguments.json:
            print(json.dumps(look.to_dict(chosen)))
        else:
            Console(highlight=False).print(status_table(look.status(chosen), _MOST_AT_WORK, words_for(folder)))
    return ExitCode.FINISHED


def watch(arguments: Arguments) -> ExitCode:
    """`status`, drawn anew until the sweep is over or nobody works on it."""
    from rich.live import Live

    ((folder, filters),) = only_one(find_sweeps(arguments))
    with Live(console=Console(highlight=False), auto_refresh=False, vertical_overflow="crop") as live:
        while True:
            look = Look(folder)
            found = look.status(look.selected(filters) if filters else None)
            # The runs at work get the lines that are left, since a terminal shows no more than it has.
            others = len(found.counters.groups) + len(list(status_lines(found, ""))) + 8
            table = status_table(found, max(1, min(_MOST_AT_WORK, live.console.height - others)), words_for(folder))
            live.update(table, refresh=True)
            if look.state.is_over or not look.is_controlled:
                break
            time.sleep(_WATCH_SECONDS)
    print("The sweep is over." if look.state.is_over else "No controller is at work: launch the sweep again to go on.")
    return ExitCode.FINISHED


def words_for(folder: SweepFolder) -> str:
    """What a proposed command needs to find the sweep."""
    place = shlex.quote(str(folder.root))
    return f"{place} --sweep {shlex.quote(folder.name)}" if len(SweepFolder.all_under(folder.root)) > 1 else place


def explain_run(arguments: Arguments) -> ExitCode:
    folder, run, look = find_run(arguments)
    reason = look.reason(run)
    if arguments.json:
        print(json.dumps({"sweep": folder.name, **row(run, reason), "history": explain(run, reason, time.time())}))
    else:
        print("\n".join(explain(run, reason, time.time())))
    return ExitCode.FINISHED


def logs(arguments: Arguments) -> ExitCode:
    """The newest attempt's output, errors last; with -f, what is added to it until the attempt ends."""
    folder, run, _ = find_run(arguments)
    attempts = sorted((Path(run.work.folder) / "attempts").glob("[0-9]*"), key=lambda path: int(path.name))
    if not attempts:
        raise ConfigError(f"run {run.work.name} has no attempt yet, so it has said nothing")
    files = [path for path in (attempts[-1] / "stdout.log", attempts[-1] / "stderr.log") if path.exists()]
    read = {path: _print_from(path, 0) for path in files}
    while arguments.follow and run.in_flight:
        time.sleep(0.5)
        read = {path: _print_from(path, offset) for path, offset in read.items()}
        run = Look(folder).state.runs[run.work.name]
    return ExitCode.FINISHED


def _print_from(path: Path, offset: int) -> int:
    with open(path, errors="replace") as file:
        file.seek(offset)
        sys.stdout.write(file.read())
        sys.stdout.flush()
        return file.tell()


def pause(arguments: Arguments) -> ExitCode:
    return _tell(arguments, lambda look, filters: ("paused", {"paused": True}), "paused: running jobs go on")


def resume(arguments: Arguments) -> ExitCode:
    return _tell(arguments, lambda look, filters: ("paused", {"paused": False}), "resumed")


def quota(arguments: Arguments) -> ExitCode:
    names = ("nodes", "gpus", "jobs", "submitted_jobs", "gpu_hours", "max_gpu_hours")
    limits = {name: getattr(arguments, name) for name in names if getattr(arguments, name) is not None}
    for name, value in limits.items():
        if not value >= 0:
            raise ConfigError(f"--{name.replace('_', '-')} {value}: must be zero or more")
    if not limits:
        raise ConfigError(
            f"quota: name a limit, such as --nodes 12; there are --{', --'.join(names)}".replace("_", "-")
        )
    said = ", ".join(f"{name}={value:g}" for name, value in limits.items())
    return _tell(arguments, lambda look, filters: ("own_limits", {"limits": limits}), f"limits set: {said}")


def cancel(arguments: Arguments) -> ExitCode:
    return _tell_runs(arguments, "cancel", "cancelled", lambda run: not run.done and run.held is None)


def hold(arguments: Arguments) -> ExitCode:
    return _tell_runs(arguments, "held", "held", lambda run: run.is_waiting, why="held by hand")


def retry(arguments: Arguments) -> ExitCode:
    return _tell_runs(arguments, "released", "released", lambda run: run.held is not None)


def _tell_runs(
    arguments: Arguments, event: str, done: str, concerns: Callable[[RunState], bool], **values: Any
) -> ExitCode:
    def command(look: Look, filters: Sequence[str]) -> tuple[str, dict[str, Any]] | None:
        if not filters and not arguments.all:
            raise ConfigError(
                f"{arguments.name}: name runs by filters such as algorithm=muloco or run=3fa, or say --all"
            )
        names = [run.work.name for run in look.selected(filters) if concerns(run)]
        return (event, {"runs": names, **values}) if names else None

    return _tell(arguments, command, done)


def _tell(
    arguments: Arguments,
    command: Callable[[Look, Sequence[str]], tuple[str, dict[str, Any]] | None],
    done: str,
) -> ExitCode:
    """Sends a command to the controller; where none is at work, carries it out here."""
    for folder, filters in only_one(find_sweeps(arguments)):
        look = Look(folder)
        found = command(look, filters)
        told = Told(folder.name, arguments.name)
        if found is not None:
            event, told.values = found
            folder.send(event, **told.values)
            try:
                Controller(folder, look.definition, make_cluster).apply_pending_commands()
            except LeaseHeld:
                told.at_next_tick = True
        print(json.dumps(told.to_dict()) if arguments.json else told.in_words(done))
    return ExitCode.FINISHED


@dataclass
class Told:
    """What has become of a command."""

    sweep: str
    command: str
    values: dict[str, Any] | None = None
    """As the ledger has them; None where no run is concerned."""
    at_next_tick: bool = False
    """Of the controller at work; else it is carried out."""

    def to_dict(self) -> dict[str, Any]:
        runs = {"runs": []} if self.values is None else self.values
        return {"sweep": self.sweep, "command": self.command, **runs, "at_next_tick": self.at_next_tick}

    def in_words(self, done: str) -> str:
        if self.values is None:
            return f"{self.sweep}: no run that this concerns"
        number = f"{plural(len(self.values['runs']), 'run')} " if "runs" in self.values else ""
        if self.at_next_tick:
            how = " at the controller's next tick"
        else:
            how = "" if self.command == "quota" else "; no controller is at work: launch the sweep to go on"
        return f"{self.sweep}: {number}{done}{how}"


class Look:
    """One look at a sweep, as its folder shows it."""

    def __init__(self, folder: SweepFolder, last_verdicts: Mapping[Shape, Verdict] | None = None) -> None:
        """`last_verdicts` are those of a controller that has just ended: why it has left runs waiting."""
        self.folder, self.last_verdicts = folder, last_verdicts
        self.definition: Definition = folder.read_definition()
        self.config = self.definition.read_cluster()
        replay = folder.read_state(self.definition)
        self.state: SweepState = replay.state
        self.damage = replay.damage
        self.now = time.time()
        self.holder = read_holder(folder.lease_dir)
        self.is_controlled = self.holder is not None and self.holder.is_alive

    def selected(self, filters: Sequence[str]) -> list[RunState]:
        return [self.state.runs[work.name] for work in select(self.definition.works, filters)]

    def status(self, chosen: Sequence[RunState] | None) -> Status:
        """Of the chosen runs, or of all."""
        return status_of(
            self.folder.name,
            self.state,
            self.config,
            chosen,
            lambda counters: why_they_wait(counters, self.state, self.verdicts, self.now, self.has_verdicts),
            self.pending,
            progress_of,
            self.now,
            self.holder if self.is_controlled else None,
            self.damage,
        )

    def reason(self, run: RunState) -> str:
        if run.standing == "submitted":
            return self.pending.get(run.attempts[-1].tag, "")
        return why(run, self.state, self.verdicts, self.now, self.has_verdicts)

    def to_dict(self, chosen: Sequence[RunState] | None = None) -> dict[str, Any]:
        """For `--json`: the chosen runs, or all, each with its history."""
        runs = self.state.runs.values() if chosen is None else chosen
        rows = [row(run, self.reason(run)) for run in runs]
        return {**self.settings(), **self.status(chosen).to_dict(), "runs": rows}

    @property
    def has_verdicts(self) -> bool:
        """Whether a controller says why runs wait; else they wait for one."""
        return self.is_controlled or self.last_verdicts is not None

    @cached_property
    def verdicts(self) -> Mapping[Shape, Verdict]:
        """What the controller would say now of those that wait, by shape."""
        if self.last_verdicts is not None:
            return self.last_verdicts
        if not self.is_controlled or not self.state.counts["waiting"]:
            return {}
        try:
            live = self._cluster.limits()
        except (OSError, Refused):
            return {}
        return decide(self.state, self.config, all_limits(self.config, live, self.state), self.now).verdicts

    @cached_property
    def pending(self) -> Mapping[str, str]:
        """Why jobs stand in the scheduler's queue, by tag; empty where it cannot be asked."""
        tags = [job.tag for job in self.state.jobs.values() if job.started_at is None]
        # Looking at local slots starts them: that is the controller's to do.
        if not tags or not self._cluster.outlives_controller:
            return {}
        try:
            return {tag: seen.reason for tag, seen in self._cluster.observe(tags).jobs.items()}
        except OSError:
            return {}

    @cached_property
    def _cluster(self) -> Cluster:
        return make_cluster(self.config, self.folder.cluster_dir)

    def settings(self) -> dict[str, Any]:
        return {
            "sweep": self.folder.name,
            "controlled": self.is_controlled,
            "paused": self.state.paused,
            "own_limits": self.state.own_limits,
            "gpu_hours": self.state.spent_gpu_hours,
        }


def progress_of(run: RunState) -> Progress | None:
    """By the heartbeat of the attempt at work; None for work that has none."""
    try:
        status = RunFolder(run.work.folder).read_status()
    except RecordError:
        return None
    if status is None or status.attempt != run.attempts[-1].number or not status.num_steps:
        return None
    return Progress(status.step / status.num_steps, status.loss)


def find_sweeps(arguments: Arguments) -> list[tuple[SweepFolder, list[str]]]:
    """The sweeps that the command line means, and its filters. None at all raises `ConfigError`."""
    filters = [word for word in arguments.words if "=" in word]
    places = [word for word in arguments.words if "=" not in word]
    if len(places) > 1:
        raise ConfigError(f"{' and '.join(places)}: name one root, then filters KEY=VALUE")
    root = Path(places[0] if places else "results")
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


def find_run(arguments: Arguments) -> tuple[SweepFolder, RunState, Look]:
    """The run whose id begins as given. None, or several, raise `ConfigError`."""
    runs = list(_runs_named(arguments))
    if len(runs) != 1:
        what = f"{len(runs)} runs begin so: give more of it" if runs else "no run of the sweep begins so"
        raise ConfigError(f"run {arguments.run!r}: {what}")
    return runs[0]


def _runs_named(arguments: Arguments) -> Iterator[tuple[SweepFolder, RunState, Look]]:
    for folder, _ in find_sweeps(arguments):
        look = Look(folder)
        for name, run in look.state.runs.items():
            if name.startswith(arguments.run):
                yield folder, run, look
