"""The sweeps and the run that a command line names, and how a command names a sweep."""

from __future__ import annotations

import argparse
import os
import shlex
from collections.abc import Iterator
from pathlib import Path

from muloco_runner.config import ConfigError
from sweeps.cli.live_snapshot import Snapshot
from sweeps.engine.run_states import RunState
from sweeps.store.folder import SweepFolder

Arguments = argparse.Namespace


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


def sweep_arguments(folder: SweepFolder) -> str:
    """Return the arguments by which a proposed command finds the sweep."""
    root = shlex.quote(str(folder.root))
    return f"{root} --sweep {shlex.quote(folder.name)}" if len(SweepFolder.all_under(folder.root)) > 1 else root
