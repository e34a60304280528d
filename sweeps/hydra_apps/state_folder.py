"""The folder with the state of a multirun, which the same command finds again.

    ROOT/sweeps/NAME/multirun.json    where the jobs' folders are, and whether all jobs have succeeded

A multirun is named by the application and its arguments without those of `hydra.launcher`, so that another quota
continues the same work. An unfinished multirun is continued in its first folder, even where Hydra's folder name holds
the time; once all jobs have succeeded, the same command starts again from nothing, as with any launcher. A multirun
named by the user is always continued: it computes nothing twice. What another script has begun under the same name, or
this one with other arguments of its own, is not continued.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, OmegaConf

from muloco_runner.config import ConfigError
from muloco_runner.record import write_atomically
from sweeps.hydra_apps.main_script import driver_script
from sweeps.store.folder import SweepFolder

SWEEP = "sweep"
"""The group of an application's sweep files."""
_CLOCK = "${now:"
_EXECUTION_OVERRIDE = r"[+~]*hydra([./]launcher\b|\.sweeper\.detach\b|\.verbose\b)"
"""Overrides of how the work is done, not of what it is."""


@dataclass
class Record:
    sweep_dir: str
    """Absolute."""
    ended_well: bool = False
    script: str = ""
    """Absolute path; empty where none was recorded, or there was none."""
    arguments: list[str] = field(default_factory=list)
    """Arguments of the script that are not Hydra's."""

    def is_of_this_script(self) -> bool:
        """Return whether this script may continue it; one that is no longer where it was may have been moved here."""
        script, arguments = this_script()
        return not self.script or not Path(self.script).exists() or (self.script, self.arguments) == (script, arguments)


def this_script() -> tuple[str, list[str]]:
    """Return the script of this process and the arguments that it has taken out of those that Hydra gets."""
    script = driver_script()
    if script is None:
        return "", []
    return script.file, [word for word in script.arguments[1:] if word not in script.arguments_then]


@dataclass
class StateFolder:
    """The state folder of one multirun."""

    folder: SweepFolder
    sweep_dir: str
    """Absolute; the folder of the jobs' folders."""
    exists: bool
    is_named: bool

    @property
    def program_file(self) -> Path:
        """Jobs that an earlier version submitted read program.pkl."""
        return self.folder.path / "application.pkl"

    def write(self) -> None:
        """Record where the jobs' folders are."""
        _write(self.folder, Record(self.sweep_dir, False, *this_script()))

    def mark_succeeded(self) -> None:
        """Record that all jobs have succeeded: the same command will start again from nothing."""
        if not self.is_named:
            _write(self.folder, Record(self.sweep_dir, True, *this_script()))


def find_state_folder(config: DictConfig) -> StateFolder:
    """Return the state folder of the command that `config` was composed from. Mistakes raise `ConfigError`."""
    root = Path(os.path.abspath(config.hydra.launcher.root))
    wanted = os.path.abspath(config.hydra.sweep.dir)
    by_clock = _CLOCK in str(_unresolved(config.hydra.sweep, "dir"))
    name = config.hydra.launcher.name or _name_by_file(config)
    if name is None:
        return _unnamed(root, config, wanted)
    if not re.fullmatch(r"[\w.-]+", name):
        raise ConfigError(f"hydra.launcher.name={name!r}: letters, digits, dots and dashes only")
    folder = SweepFolder(root, name)
    record = _read(folder)
    if record is not None and not record.is_of_this_script():
        whose = " ".join([record.script, *record.arguments])
        raise ConfigError(f"multirun {name} is of {whose}: give another hydra.launcher.name or hydra.launcher.root")
    if record is not None and not by_clock and record.sweep_dir != wanted:
        raise ConfigError(
            f"multirun {name} was started in {record.sweep_dir}: give that as hydra.sweep.dir, or another "
            "hydra.launcher.name"
        )
    return StateFolder(folder, record.sweep_dir if record else wanted, record is not None, is_named=True)


def _name_by_file(config: DictConfig) -> str | None:
    """Return a name where a sweep file of the application was chosen, else None."""
    chosen = config.hydra.runtime.choices.get(SWEEP)
    if chosen is None or SWEEP not in config.hydra.sweeper:
        return None
    return f"{file_name(config.hydra.job.name)}-{file_name(chosen)}"


def _unnamed(root: Path, config: DictConfig, wanted: str) -> StateFolder:
    base, number = f"{file_name(config.hydra.job.name)}-{_digest(config)}", 1
    while True:
        folder = SweepFolder(root, base if number == 1 else f"{base}-{number}")
        record = _read(folder)
        if record is None:
            return StateFolder(folder, wanted, exists=False, is_named=False)
        if not record.ended_well and record.is_of_this_script():
            return StateFolder(folder, record.sweep_dir, exists=True, is_named=False)
        number += 1


def file_name(text: str) -> str:
    return re.sub(r"[^\w.-]", "_", text)


def _digest(config: DictConfig) -> str:
    """Return 8 hex digits of the application and its command line."""
    given = OmegaConf.to_container(config.hydra.overrides)
    assert isinstance(given, dict)
    hydras = [text for text in given["hydra"] if not re.match(_EXECUTION_OVERRIDE, text)]
    sources = OmegaConf.to_container(config.hydra.runtime.config_sources)
    what = [config.hydra.job.name, config.hydra.job.config_name, sources, hydras, given["task"]]
    what.append(_unresolved(config.hydra.sweep, "dir"))
    return hashlib.sha256(json.dumps(what, default=str).encode()).hexdigest()[:8]


def _unresolved(node: DictConfig, key: str) -> Any:
    values = OmegaConf.to_container(node, resolve=False)
    assert isinstance(values, dict)
    return values[key]


def is_by_position(config: DictConfig) -> bool:
    """Return whether jobs' folders are named by the jobs' numbers, Hydra's default."""
    return "${hydra.job.num}" in str(_unresolved(config.hydra.sweep, "subdir"))


def _file(folder: SweepFolder) -> Path:
    return folder.path / "multirun.json"


def _read(folder: SweepFolder) -> Record | None:
    try:
        record = Record(**json.loads(_file(folder).read_text()))
    except FileNotFoundError:
        return None
    if folder.definition_file.exists() and (move := folder.read_definition().move) is not None:
        record.sweep_dir = move.path(record.sweep_dir)
    return record


def _write(folder: SweepFolder, record: Record) -> None:
    write_atomically(_file(folder), json.dumps(asdict(record)) + "\n")
