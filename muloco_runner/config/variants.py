"""One of several: tables in which a `name` chooses a dataclass that states all that the program needs to know of it.

A fact (a label, bytes of state, bits a value) is an abstract property of the base class. A dataclass that leaves one
out, or whose implementation is not there, is refused when the vocabulary is imported: on a login node, before any run.
"""

from __future__ import annotations

import importlib
import importlib.util
import re
from abc import ABC, abstractmethod
from collections.abc import Mapping
from pathlib import Path
from typing import Any, TypeVar

from muloco_runner.config.checks import require

Config = TypeVar("Config")
Entry = TypeVar("Entry")


class Implemented(ABC):
    """A config from which something is built."""

    @property
    @abstractmethod
    def implementation(self) -> str:
        """`module:name` of the class or function that builds it; the module may need torch."""


def table(**variants: type[Config]) -> dict[str, type[Config]]:
    """Dataclasses by name. One that is not complete raises `TypeError`."""
    for cls in variants.values():
        missing = sorted(getattr(cls, "__abstractmethods__", ()))
        if missing:
            raise TypeError(f"{cls.__name__} does not state {', '.join(missing)}: see its base class")
        for other in variants.values():
            if cls is not other and issubclass(cls, other):
                raise TypeError(
                    f"{cls.__name__} inherits from {other.__name__}, and its facts with it: give both an abstract base"
                )
        if issubclass(cls, Implemented) and not _is_defined(str(cls.implementation)):
            raise TypeError(f"{cls.__name__}.implementation={cls.implementation!r}: there is no such class or function")
    return variants


def complete(variants: Mapping[str, type[Config]], entries: dict[type[Config], Entry]) -> dict[type[Config], Entry]:
    """`entries`, checked to hold one for each variant; else `TypeError`."""
    missing = [cls.__name__ for cls in variants.values() if cls not in entries]
    if missing:
        raise TypeError(f"nothing is known here of {', '.join(missing)}: add an entry beside {next(iter(entries))}")
    return entries


def require_variant(where: str, config: Any, variants: Mapping[str, type]) -> None:
    """A config under another's name, or of a class that no name stands for, raises `ConfigError`."""
    cls = type(config)
    names = [name for name, variant in variants.items() if variant is cls]
    require(
        config.name in names,
        f"{where}.name={config.name!r}: {cls.__name__} is {' or '.join(names) or 'in no table'}; "
        f"choose with {where.replace('.', '/')}={' or '.join(variants)}",
    )


def load(config: Implemented) -> Any:
    """The class or function that builds what `config` describes."""
    module, _, name = config.implementation.partition(":")
    return getattr(importlib.import_module(module), name)


def _is_defined(implementation: str) -> bool:
    """Whether the module's source defines the name. Nothing is imported: the module may need torch."""
    module, _, name = implementation.partition(":")
    package, *path = module.split(".")
    spec = importlib.util.find_spec(package)
    folders = [] if spec is None else spec.submodule_search_locations or []
    files = [file for f in folders for file in (Path(f, *path).with_suffix(".py"), Path(f, *path, "__init__.py"))]
    pattern = re.compile(rf"^(class|def) {re.escape(name)}\b", re.MULTILINE)
    return any(file.exists() and pattern.search(file.read_text(encoding="utf-8")) for file in files)
