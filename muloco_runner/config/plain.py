"""Dataclasses to plain nested dictionaries, the same for the same meaning, and back."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from functools import cache
from typing import Any, get_type_hints

from muloco_runner.config.checks import require

UNNAMED_AT_DEFAULT = {"unnamed_at_default": True}
"""Metadata of a field that came after runs had been named: at its default it is no part of `to_plain`."""
Variants = Mapping[type, Mapping[str, type]]
"""Base class -> the dataclasses that may stand for it, by `name`."""


def to_plain(value: Any) -> Any:
    """Dataclasses to dictionaries; numbers in a float field become floats, so that 1 and 1.0 name the same run."""
    if dataclasses.is_dataclass(value):
        out = {}
        for f in dataclasses.fields(value):
            item = getattr(value, f.name)
            if f.metadata == UNNAMED_AT_DEFAULT and item == default_of(f):
                continue
            if f.type == "float":
                item = float(item)
            elif f.type == "float | None":
                item = None if item is None else float(item)
            elif f.type == "list[float]":
                item = [float(number) for number in item]
            out[f.name] = to_plain(item)
        return out
    return value


def from_plain(cls: type, values: dict[str, Any], variants: Variants, where: str) -> Any:
    """The inverse of `to_plain`. `where` is the path of `values` in the run; an unknown key or name there raises
    `ConfigError`.
    """
    if cls in variants:
        choices = variants[cls]
        name = values.get("name", _unnamed(choices))
        require(name in choices, f"{where}.name={name!r}: must be one of {', '.join(choices)}")
        cls = choices[str(name)]
    known = {f.name: f for f in dataclasses.fields(cls)}
    for key in values:
        require(key in known, f"{where}.{key}: no such setting; known here: {', '.join(known)}")
    hints = hints_of(cls)
    arguments = {}
    for key, value in values.items():
        hint = hints[key]
        is_config = isinstance(hint, type) and dataclasses.is_dataclass(hint)
        arguments[key] = from_plain(hint, value, variants, f"{where}.{key}") if is_config else value
    return cls(**arguments)


def _unnamed(choices: Mapping[str, type]) -> str | None:
    """The one whose name is left out, if there is one."""
    return next(
        (
            name
            for name, cls in choices.items()
            for f in dataclasses.fields(cls)
            if f.name == "name" and f.metadata == UNNAMED_AT_DEFAULT
        ),
        None,
    )


@cache
def hints_of(cls: type) -> dict[str, Any]:
    """Types of a dataclass's fields; found once, since a report reads thousands of configs."""
    return get_type_hints(cls)


def default_of(f: dataclasses.Field[Any]) -> Any:
    """The value that a field has where none is given."""
    return f.default if f.default_factory is dataclasses.MISSING else f.default_factory()
