"""Code from outside the package, named in a config by `_target_`: what may be said of it, and how it is found."""

from __future__ import annotations

import importlib
import re
from abc import ABC, abstractmethod
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from types import ModuleType
from typing import Any, ClassVar

from muloco_runner.config.checks import ConfigError, require

_NAME = re.compile(r"[^\W\d]\w*(\.[^\W\d]\w*)+")


class FromOutside(ABC):
    """A config of something that is not in the package."""

    not_in_hash: ClassVar[tuple[str, ...]] = ("label",)
    """Settings that change no result, and no run's name."""

    @property
    @abstractmethod
    def targets(self) -> list[str]:
        """What it names: `package.module.Name` each."""


@dataclass
class OneTarget(FromOutside):
    """One class or function with its arguments. Subclasses check them in `__post_init__` by `check_target`."""

    _target_: str = "???"
    """`package.module.Name`."""
    arguments: dict[str, Any] = field(default_factory=dict)
    """Its arguments, beside what the trainer gives."""
    version: str = "1"
    """Part of a run's name: another one after its code has changed makes new runs."""
    label: str = ""
    """What people call it; empty for its own name. No part of a run's name."""

    @property
    def targets(self) -> list[str]:
        return [self._target_]

    def check_target(self, where: str, said_elsewhere: Mapping[str, str], taken: Collection[str] = ()) -> None:
        """Check what was said of it. `where` is its part of the run, `taken` are labels of built-in ones."""
        self.version = str(self.version)
        check_name(f"{where}._target_", self._target_)
        check_arguments(f"{where}.arguments", self.arguments, said_elsewhere)
        self.label = label_of(where, self._target_, self.label, taken)


def label_of(where: str, target: str, label: str, taken: Collection[str]) -> str:
    """Return the label that was given, else the target's own name, with its package where a built-in one has that."""
    package, _, last = target.rpartition(".")
    label = label or (f"{package.partition('.')[0]}-{last}" if last in taken else last)
    require(label not in taken, f"{where}.label={label}: is a built-in one's: give another")
    return label


def check_name(where: str, target: Any) -> None:
    """A name that cannot be that of something in a module raises `ConfigError`."""
    require(
        isinstance(target, str) and _NAME.fullmatch(target) is not None,
        f"{where}={target!r}: must be a name with its module, such as my_lab.Lion",
    )


def check_arguments(where: str, arguments: Any, said_elsewhere: Mapping[str, str]) -> None:
    """What is no keys, or holds those that the trainer gives, raises `ConfigError`.

    `said_elsewhere`: of each that it gives the setting that says it; empty where none does.
    """
    require(isinstance(arguments, dict), f"{where}={arguments!r}: must be keys with their values")
    for name, setting in said_elsewhere.items():
        advice = f"set {setting}" if setting else "drop it"
        require(name not in arguments, f"{where}.{name}: is given by the trainer: {advice}")


def import_target(where: str, target: str) -> Any:
    """Import what a target names. What cannot be imported raises `ConfigError`."""
    module = import_module_of(where, target)
    try:
        return getattr(module, target.rpartition(".")[2])
    except Exception as error:
        raise ConfigError(f"{where}: cannot be imported: {type(error).__name__}: {error}") from error


def import_module_of(where: str, target: str) -> ModuleType:
    """Import the module that holds a target. One that cannot be imported raises `ConfigError`."""
    try:
        return importlib.import_module(target.rpartition(".")[0])
    except Exception as error:
        raise ConfigError(f"{where}: cannot be imported: {type(error).__name__}: {error}") from error
