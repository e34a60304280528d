"""Which folder the state of a multirun is in, so that the same command finds it again.

    ROOT/sweeps/NAME/multirun.json    where the jobs' folders are, and whether the multirun has ended well

A command is named by the application and what it was given, but for how the work is done (`hydra.launcher`), so that
another quota goes on with the same work. What has not ended well goes on, in its old folder although Hydra would name
one by the clock; once all has, the same command starts anew, as with any launcher. A multirun with a name is one thing
for ever: named again, it computes nothing twice.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, OmegaConf

from muloco_runner.config import ConfigError
from muloco_runner.record import write_atomically
from sweeps.store.folder import SweepFolder

SWEEP = "sweep"
"""The group of an application's sweep files."""
_CLOCK = "${now:"
_BESIDE = r"[+~]*hydra([./]launcher\b|\.sweeper\.detach\b|\.verbose\b)"
"""Overrides that say how the work is done, not which work."""


@dataclass
class Record:
    sweep_dir: str
    """Absolute."""
    ended_well: bool = False


@dataclass
class Place:
    """Of one multirun."""

    folder: SweepFolder
    sweep_dir: str
    """Absolute; the folder of the jobs' folders."""
    has_begun: bool
    is_named: bool

    @property
    def program_file(self) -> Path:
        return self.folder.path / "program.pkl"

    def begin(self) -> None:
        """Writes down where the jobs' folders are."""
        _write(self.folder, Record(self.sweep_dir))

    def end_well(self) -> None:
        """The same command will start anew."""
        if not self.is_named:
            _write(self.folder, Record(self.sweep_dir, ended_well=True))


def find_place(config: DictConfig) -> Place:
    """The place of the command that Hydra composed `config` from. Mistakes raise `ConfigError`."""
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
    if record is not None and not by_clock and record.sweep_dir != wanted:
        raise ConfigError(
            f"multirun {name} has begun in {record.sweep_dir}: give that as hydra.sweep.dir, or another "
            "hydra.launcher.name"
        )
    return Place(folder, record.sweep_dir if record else wanted, record is not None, is_named=True)


def _name_by_file(config: DictConfig) -> str | None:
    """Where a file of the application says what is swept."""
    chosen = config.hydra.runtime.choices.get(SWEEP)
    if chosen is None or SWEEP not in config.hydra.sweeper:
        return None
    return f"{file_name(config.hydra.job.name)}-{file_name(chosen)}"


def _unnamed(root: Path, config: DictConfig, wanted: str) -> Place:
    base, number = f"{file_name(config.hydra.job.name)}-{_digest(config)}", 1
    while True:
        folder = SweepFolder(root, base if number == 1 else f"{base}-{number}")
        record = _read(folder)
        if record is None:
            return Place(folder, wanted, has_begun=False, is_named=False)
        if not record.ended_well:
            return Place(folder, record.sweep_dir, has_begun=True, is_named=False)
        number += 1


def file_name(text: str) -> str:
    return re.sub(r"[^\w.-]", "_", text)


def _digest(config: DictConfig) -> str:
    """Of the application and its command line, in 8 hex digits."""
    given = OmegaConf.to_container(config.hydra.overrides)
    assert isinstance(given, dict)
    hydras = [text for text in given["hydra"] if not re.match(_BESIDE, text)]
    sources = OmegaConf.to_container(config.hydra.runtime.config_sources)
    what = [config.hydra.job.name, config.hydra.job.config_name, sources, hydras, given["task"]]
    what.append(_unresolved(config.hydra.sweep, "dir"))
    return hashlib.sha256(json.dumps(what, default=str).encode()).hexdigest()[:8]


def _unresolved(node: DictConfig, key: str) -> Any:
    values = OmegaConf.to_container(node, resolve=False)
    assert isinstance(values, dict)
    return values[key]


def is_by_position(config: DictConfig) -> bool:
    """Whether jobs' folders are named by the jobs' numbers, as Hydra does where nobody says otherwise."""
    return "${hydra.job.num}" in str(_unresolved(config.hydra.sweep, "subdir"))


def _file(folder: SweepFolder) -> Path:
    return folder.path / "multirun.json"


def _read(folder: SweepFolder) -> Record | None:
    try:
        return Record(**json.loads(_file(folder).read_text()))
    except FileNotFoundError:
        return None


def _write(folder: SweepFolder, record: Record) -> None:
    write_atomically(_file(folder), json.dumps(asdict(record)) + "\n")
