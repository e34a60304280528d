"""What people ask of a sweep that exists: look at it, explain a run, pause, change limits, cancel, try again."""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from muloco_runner.config import ConfigError
from muloco_runner.record import ExitCode
from sweeps.clusters import make_cluster
from sweeps.clusters.interface import Refused
from sweeps.controller import Controller
from sweeps.decide import decide
from sweeps.display import show_status, status_table
from sweeps.folder import Definition, SweepFolder
from sweeps.lease import LeaseHeld, read_holder
from sweeps.quota import Verdict, all_limits
from sweeps.selection import select
from sweeps.state import RunState, Shape, SweepState
from sweeps.views import explain, row, why

Arguments = argparse.Namespace
_WATCH_SECONDS = 2.0


def status(arguments: Arguments) -> ExitCode:
    for folder, filters in find_sweeps(arguments):
        look = Look(folder)
        runs = look.selected(filters)
        if arguments.json:
            print(json.dumps(look.as_dict(runs)))
        else:
            show_status(look.folder.name, look.state, look.damage, runs, look.reason)
    return ExitCode.FINISHED


def watch(arguments: Arguments) -> ExitCode:
    """`status`, drawn anew until the sweep is over or nobody works on it."""
    from rich.live import Live

    ((folder, filters),) = only_one(find_sweeps(arguments))
    with Live(refresh_per_second=2) as live:
        while True:
            look = Look(folder)
            live.update(status_table(folder.name, look.state, look.selected(filters), look.reason))
            if look.state.is_over or not look.is_controlled:
                break
            time.sleep(_WATCH_SECONDS)
    print("the sweep is over" if look.state.is_over else "no controller is at work: launch the sweep again to go on")
    return ExitCode.FINISHED


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
        if found is None:
            print(f"{folder.name}: no run that this concerns")
            continue
        event, values = found
        folder.send(event, **values)
        try:
            Controller(folder, look.definition, make_cluster).obey()
            how = "" if event == "own_limits" else "; no controller is at work: launch the sweep to go on"
        except LeaseHeld:
            how = " at the controller's next tick"
        number = f"{len(values['runs'])} run(s) " if "runs" in values else ""
        print(f"{folder.name}: {number}{done}{how}")
    return ExitCode.FINISHED


class Look:
    """One look at a sweep, as its folder shows it."""

    def __init__(self, folder: SweepFolder) -> None:
        self.folder = folder
        self.definition: Definition = folder.read_definition()
        self.state: SweepState
        self.state, self.damage = folder.read_state(self.definition.works)
        holder = read_holder(folder.lease_dir)
        self.is_controlled = holder is not None and holder.is_alive
        self._verdicts: Mapping[Shape, Verdict] | None = None

    def selected(self, filters: Sequence[str]) -> list[RunState]:
        return [self.state.runs[work.name] for work in select(self.definition.works, filters)]

    def reason(self, run: RunState) -> str:
        if self._verdicts is None:
            self._verdicts = self._decide()
        return why(run, self.state, self._verdicts, time.time(), self.is_controlled)

    def _decide(self) -> Mapping[Shape, Verdict]:
        """What the controller would say now of those that wait."""
        if not self.is_controlled or not self.state.counts["waiting"]:
            return {}
        config = self.definition.read_cluster()
        try:
            live = make_cluster(config, self.folder.cluster_dir).limits()
        except (OSError, Refused):
            return {}
        return decide(self.state, config, all_limits(config, live, self.state), time.time()).verdicts

    def as_dict(self, runs: Sequence[RunState]) -> dict[str, Any]:
        return {
            "sweep": self.folder.name,
            "controlled": self.is_controlled,
            "paused": self.state.paused,
            "own_limits": self.state.own_limits,
            "gpu_hours": self.state.spent_gpu_hours,
            "counts": {word: count for word, count in self.state.counts.items() if count},
            "runs": [row(run, self.reason(run)) for run in runs],
        }


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
