"""Where the YAML values lie: the package's, before them the user's own folders, after them other installed packages'.

Standard library only, so that `--help` can list them at once. A command's `main` says by `take_config_path` which
folders are the user's; without it there is the package's alone.
"""

from __future__ import annotations

import contextlib
import importlib.util
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

from muloco_runner.config import ConfigError

VARIABLE = "MULOCO_CONF"
"""Environment variable: the user's own config folders, with a colon between two."""
_OPTION = "--config-dir"
_SWITCH = "conf_path"


def config_dir() -> Path:
    """The package's conf/: beside the packages in a checkout, inside this one when installed from a wheel."""
    here = Path(__file__).resolve().parent
    installed = here / "conf"
    return installed if installed.is_dir() else here.parent / "conf"


@cache
def config_groups() -> tuple[str, ...]:
    """Groups of choices, such as model or method/compression: folders under the package's conf/."""
    root = config_dir()
    return tuple(sorted(path.relative_to(root).as_posix() for path in root.rglob("*") if path.is_dir()))


@dataclass(frozen=True)
class ConfigPath:
    """The user's own config folders of a process; of a name that is in several the first one's file counts."""

    folders: tuple[Path, ...] = ()
    off: bool = False
    """Whether conf_path=none was said."""

    def as_arguments(self) -> list[str]:
        """The words of a command line that mean the same in a process started from this one."""
        if self.off:
            return [f"{_SWITCH}=none"]
        return [word for folder in self.folders for word in (_OPTION, str(folder))]

    def shadowing(self) -> dict[str, Path]:
        """Choices (`model/42k`) whose built-in file one of another content takes the place of, with that file."""
        found: dict[str, Path] = {}
        for folder in self.folders:
            for choice in _choices_in(folder):
                built_in = config_dir() / f"{choice}.yaml"
                own = folder / f"{choice}.yaml"
                if choice not in found and built_in.is_file() and own.read_bytes() != built_in.read_bytes():
                    found[choice] = own
        return found

    def to_dict(self) -> dict[str, Any]:
        """What is recorded beside the composed config: the folders, and which built-in files they shadow."""
        return {
            "search_path": [str(folder) for folder in (*self.folders, config_dir())],
            "shadows": {choice: str(file) for choice, file in sorted(self.shadowing().items())},
        }


_current = ConfigPath()


def config_path() -> ConfigPath:
    """The user's own config folders of this process."""
    return _current


def use_config_path(path: ConfigPath) -> None:
    """Composes with these folders from now on."""
    global _current  # noqa: PLW0603  # of the process, as all of Hydra's state
    _current = path


def take_config_path(words: Sequence[str], environ: Mapping[str, str] = os.environ) -> tuple[list[str], ConfigPath]:
    """A command line without its words on config folders, and the folders: those of `--config-dir`, then those of
    `MULOCO_CONF`, then `./conf`. Mistakes raise `ConfigError`.
    """
    others: list[str] = []
    named: list[tuple[str, str]] = []
    off = False
    rest = iter(words)
    for word in rest:
        option, sign, value = word.partition("=")
        if word == _OPTION or (option == _OPTION and sign):
            folder = value if sign else next(rest, "")
            if not folder:
                raise ConfigError(f"{_OPTION}: needs a folder: {_OPTION} DIR")
            named.append((f"{_OPTION} {folder}", folder))
        elif option == _SWITCH and sign:
            if value != "none":
                raise ConfigError(f"{word}: must be {_SWITCH}=none; name config folders with {_OPTION} DIR")
            off = True
        else:
            others.append(word)
    if off:
        if named:
            raise ConfigError(f"{_SWITCH}=none turns own config folders off, {named[0][0]} names one: leave one out")
        return others, ConfigPath(off=True)
    variable = environ.get(VARIABLE, "")
    named += [(f"{VARIABLE}={variable}", folder) for folder in variable.split(os.pathsep) if folder]
    folders = [_checked(said, Path(folder)) for said, folder in named]
    beside = Path("conf").resolve()
    if beside.is_dir() and _groups_in(beside):
        folders.append(beside)
    return others, ConfigPath(tuple(f for f in dict.fromkeys(folders) if f != config_dir()))


def announce(path: ConfigPath) -> str:
    """One line that names the files that take the place of built-in ones; empty where there is none."""
    found = path.shadowing()
    if not found:
        return ""
    files = ", ".join(f"{file} for {choice.rpartition('/')[0]}={file.stem}" for choice, file in sorted(found.items()))
    return f"in place of built-in files: {files} ({_SWITCH}=none turns own config folders off)"


def choices_of(group: str) -> list[str]:
    """Names of a group's files, the user's own included."""
    return sorted(files_of(group))


def files_of(group: str) -> dict[str, Path]:
    """A group's files by name: of each name the one that counts."""
    files = files_in_folders(group)
    for name, offered in packaged_files(group).items():
        files.setdefault(name, offered[0])
    return files


def files_in_folders(group: str) -> dict[str, Path]:
    """The same without those that other installed packages offer, which take longer to find."""
    files: dict[str, Path] = {}
    for folder in (*_current.folders, config_dir()):
        for path in (folder / group).glob("*.yaml"):
            files.setdefault(path.stem, path)
    return files


ENTRY_POINTS = {
    "model": "muloco.models",
    "data": "muloco.data",
    "inner_optimizer": "muloco.inner_optimizers",
    "schedule": "muloco.schedules",
    "method/outer_optimizer": "muloco.outer_optimizers",
    "method/compression": "muloco.compressions",
}
"""Groups of which other installed packages may offer choices -> where they say so.

An entry point `NAME = "PACKAGE"` offers the file conf/GROUP/NAME.yaml of that package. A choice of the user's own or of
this package comes first.
"""


@cache
def packaged_files(group: str) -> dict[str, list[Path]]:
    """Files that other installed packages offer in a group, by name. Nothing of these packages is imported."""
    if group not in ENTRY_POINTS:
        return {}
    from importlib import metadata  # milliseconds, which only names need that are not found elsewhere

    offered: dict[str, list[Path]] = {}
    for package, name in sorted(
        {(point.value, point.name) for point in metadata.entry_points(group=ENTRY_POINTS[group])}
    ):
        offered.setdefault(name, []).append(_folder_of(package) / "conf" / group / f"{name}.yaml")
    return offered


def _folder_of(package: str) -> Path:
    """The folder of an installed package; one that cannot be found, a name that is its own text."""
    top, *below = package.split(".")
    with contextlib.suppress(ImportError, ValueError):
        spec = importlib.util.find_spec(top)
        if spec is not None and spec.submodule_search_locations:
            return Path(next(iter(spec.submodule_search_locations)), *below)
    return Path(package)


def _checked(said: str, folder: Path) -> Path:
    folder = folder.expanduser().resolve()
    if not folder.is_dir():
        raise ConfigError(f"{said}: there is no folder {folder}")
    if not _groups_in(folder):
        top = ", ".join(group for group in config_groups() if "/" not in group)
        raise ConfigError(f"{said}: it holds no folder of choices; known are {top}: name the folder above them")
    return folder


def _groups_in(folder: Path) -> list[str]:
    return [group for group in config_groups() if (folder / group).is_dir()]


def _choices_in(folder: Path) -> list[str]:
    return [f"{group}/{file.stem}" for group in _groups_in(folder) for file in sorted((folder / group).glob("*.yaml"))]
