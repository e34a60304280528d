"""The commands that change a sweep: pause, resume, quota, cancel, hold, retry; clean, which frees its disk space."""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from muloco_runner.config import ConfigError
from muloco_runner.record import ExitCode
from sweeps.cli.live_snapshot import Snapshot
from sweeps.cli.named_sweeps import find_sweeps, only_one
from sweeps.cli.queries import show_quota
from sweeps.clusters import make_cluster
from sweeps.controller import Controller
from sweeps.engine.run_states import RunState
from sweeps.engine.sweep_state import SweepState
from sweeps.formatting import in_bytes, plural
from sweeps.node.attempt_files import is_finished
from sweeps.store.definition import Definition
from sweeps.store.folder import SweepFolder
from sweeps.store.lease import LeaseHeld
from sweeps.training.budget_branches import trunks_needed
from sweeps.training.weights import best_among, kept_weights, remove, starts_needed

Arguments = argparse.Namespace
_MAX_NAMES_SHOWN = 8
_KEEP_FROM_STARTING = ("pause", "hold", "cancel", "quota")


def pause(arguments: Arguments) -> ExitCode:
    return _send_for_sweep(
        arguments, "paused", {"paused": True}, "paused: running jobs continue", "`hold` puts single runs aside"
    )


def resume(arguments: Arguments) -> ExitCode:
    return _send_for_sweep(arguments, "paused", {"paused": False}, "resumed", "`retry` releases single runs")


def quota(arguments: Arguments) -> ExitCode:
    names = ("nodes", "gpus", "jobs", "submitted_jobs", "gpu_hours", "max_gpu_hours")
    limits = {name: getattr(arguments, name) for name in names if getattr(arguments, name) is not None}
    if not limits:
        return show_quota(arguments)
    text = ", ".join(f"{name}={value:g}" for name, value in limits.items())
    return _send_for_sweep(
        arguments, "own_limits", {"limits": limits}, f"limits set: {text}", "`hold` puts single runs aside"
    )


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
    def concerns(run: RunState, state: SweepState) -> bool:
        # Whoever says --all means what has failed; runs that were stopped early go on where they are named.
        return run.held is not None and not (arguments.all and run.is_stopped)

    return _send_for_runs(arguments, "released", "released", concerns, False)


def clean(arguments: Arguments) -> ExitCode:
    """Say what weights finished runs keep; with --keep remove those of the chosen ones but the best."""
    for folder, filters in only_one(find_sweeps(arguments)):
        if arguments.keep and not filters and not arguments.all:
            raise ConfigError("clean: name runs by filters such as algorithm=muloco or run=3fa, or say --all")
        kept = kept_weights(run.work for run in Snapshot(folder).selected(filters))
        best = best_among(kept)
        needed = dict.fromkeys(starts_needed(folder.root), "runs have yet to start from it (init_from)")
        needed |= dict.fromkeys(trunks_needed(folder.root), "branches have yet to go on from it")
        stay = {one.run for one in kept if one.run in needed}
        stay |= {None: {one.run for one in kept}, "best": best, "none": set[str]()}[arguments.keep]
        others = [one for one in kept if one.run not in stay]
        try:
            freed = remove(others)
        except PermissionError as error:
            raise ConfigError(f"clean: {error.filename}: permission denied: ask its owner") from None
        if arguments.json:
            told = {"runs": [one.run for one in others], "kept": sorted(stay), "freed_bytes": freed}
            print(json.dumps({"sweep": folder.name, "command": "clean", **told, "changed": bool(others)}))
            continue
        if arguments.keep:
            print(f"{folder.name}: removed the weights of {plural(len(others), 'run')}, {in_bytes(freed)}")
        for one in kept:
            if one.run in stay:
                steps = ", ".join(map(str, one.steps))
                note = "  best of its series and size" if one.run in best else ""
                note += f"  {needed[one.run]}" if one.run in needed else ""
                print(f"{one.run}  {in_bytes(one.num_bytes):>8}  step {steps}{note}")
        total = sum(one.num_bytes for one in kept) - freed
        print(f"{folder.name}: {plural(len(stay), 'finished run')} with weights, {in_bytes(total)}")
    return ExitCode.FINISHED


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
