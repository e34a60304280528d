"""Names that changed: what a run is hashed under, and what files and command lines may still say.

A run's name is the hash of its values under the names that they had when runs were first named. Whoever renames a
setting or one of its values adds it to `KEYS_IN_HASH` or `VALUES_IN_HASH`, whose lines are never changed again, and to
`OLD_KEYS` or `OLD_VALUES`; whoever renames a file under conf/ adds the old one to `OLD_CHOICES`.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping
from functools import cache
from typing import Any

Values = Mapping[str, Mapping[str, str]]
Tell = Callable[[str, str], None]

KEYS_IN_HASH: Mapping[str, str] = {}
"""Path of a setting -> its last name in the hash."""
VALUES_IN_HASH: Values = {"data.source": {"prepared": "shards"}}
"""Path of a setting -> its values -> their names in the hash."""

OLD_KEYS: Mapping[str, str] = {}
"""Path of a setting as it was -> its last name now."""
OLD_VALUES: Values = {"data.source": {"shards": "prepared"}}
"""Path of a setting -> its values as they were -> their names now."""
OLD_CHOICES: Mapping[str, Mapping[str, Mapping[str, Any]]] = {
    "data": {"shards": {"defaults": ["base_data"], "source": "shards"}}
}
"""Folder under conf/ -> names of files as they were -> their content, in the words of that time."""


def names_in_hash(values: Mapping[str, Any]) -> dict[str, Any]:
    """A run's nested values under the names of its hash."""
    return _with_keys(_with_values(values, VALUES_IN_HASH), KEYS_IN_HASH)


def names_now(values: Mapping[str, Any], tell: Tell = lambda before, now: None) -> dict[str, Any]:
    """A run's nested values, whenever they were written, under today's names. `tell` hears of each old one."""
    return _with_values(_with_keys(values, OLD_KEYS, tell), OLD_VALUES, tell)


def key_now(path: str, tell: Tell = lambda before, now: None) -> str:
    """The path of a setting, whenever it was written, under today's name."""
    if path not in OLD_KEYS:
        return path
    now = ".".join([*path.split(".")[:-1], OLD_KEYS[path]])
    tell(path, now)
    return now


@cache
def warn_renamed(before: str, now: str) -> None:
    """One line on stderr, once in a process."""
    print(f"{before} is called {now} now; the old name still works", file=sys.stderr, flush=True)


def _with_keys(
    values: Mapping[str, Any], keys: Mapping[str, str], tell: Tell = lambda before, now: None, above: str = ""
) -> dict[str, Any]:
    out: dict[str, Any] = {}
    for key, value in values.items():
        name = keys.get(f"{above}{key}", key)
        if name != key:
            tell(f"{above}{key}", f"{above}{name}")
        out[name] = _with_keys(value, keys, tell, f"{above}{key}.") if isinstance(value, Mapping) else value
    return out


def _with_values(
    values: Mapping[str, Any], names: Values, tell: Tell = lambda before, now: None, above: str = ""
) -> dict[str, Any]:
    out: dict[str, Any] = {}
    for key, value in values.items():
        path = f"{above}{key}"
        if isinstance(value, Mapping):
            out[key] = _with_values(value, names, tell, f"{path}.")
            continue
        out[key] = names[path].get(value, value) if path in names and isinstance(value, str) else value
        if out[key] != value:
            tell(f"{path}={value}", f"{path}={out[key]}")
    return out
