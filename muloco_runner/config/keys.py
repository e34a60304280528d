"""Settings by the keys that people type, and the nearest one to a key that is none."""

from __future__ import annotations

import dataclasses
import difflib
from collections.abc import Iterable
from functools import cache
from typing import Any, get_type_hints

from muloco_runner.config.elsewhere import CALLED_ELSEWHERE
from muloco_runner.config.run import VARIANTS, RunConfig


@cache
def known_keys(schema: type) -> tuple[str, ...]:
    """Keys of a dataclass's settings with a dot for each level, those of every choice included."""
    found: dict[str, None] = {}
    for cls in VARIANTS.get(schema, {"": schema}).values():
        hints = get_type_hints(cls)
        for f in dataclasses.fields(cls):
            found[f.name] = None
            hint = hints[f.name]
            if isinstance(hint, type) and dataclasses.is_dataclass(hint):
                found.update({f"{f.name}.{key}": None for key in known_keys(hint)})
    return tuple(found)


def setting_at(run: RunConfig, key: str) -> Any:
    """Return the run's value of that key, also where it is a default; a run without such a key raises `KeyError`."""
    there: Any = run
    for name in key.split("."):
        if name in getattr(there, "__dataclass_fields__", ()):
            there = getattr(there, name)
        elif isinstance(there, dict):
            there = there[name]
        else:
            raise KeyError(key)
    return there


def nearest_key(key: str, known: Iterable[str]) -> str | None:
    """The known key that is meant by one of another program's; else the one that ends in the same name, or in the one
    that is spelled most alike: beside the wrong one if there is such a one, else the one of fewest levels."""
    above, _, last = key.rpartition(".")
    known = list(known)
    ours = CALLED_ELSEWHERE.get(key) or CALLED_ELSEWHERE.get(last)
    if ours in known and ours != key:
        return ours
    by_name: dict[str, list[str]] = {}
    for k in known:
        by_name.setdefault(k.rpartition(".")[2], []).append(k)
    names = [last] if last in by_name else difflib.get_close_matches(last, by_name, 1, 0.75)
    found = [k for name in names for k in by_name[name] if k != key]
    return min(found, key=lambda k: (k.rpartition(".")[0] != above, k.count(".")), default=None)


def no_such_setting(key: str, schema: type, also: Iterable[str] = ()) -> str:
    """Says that `schema` has no setting `key`, and which one may be meant; `also` are keys beside its own."""
    known = list(dict.fromkeys([*known_keys(schema), *also]))
    choice, _, rest = key.partition(".")
    if rest and get_type_hints(schema).get(choice) is Any:
        return f"{key}: the chosen {choice}'s file does not set it: add it with +{key}=VALUE"
    if key in known:
        return f"{key}: no such setting here; another choice of {choice} has it"
    nearest = nearest_key(key, known)
    if nearest is not None:
        return f"{key}: no such setting; did you mean {nearest}?"
    above = key.rpartition(".")[0]
    there = [k.rpartition(".")[2] for k in known if k.rpartition(".")[0] == above]
    return f"{key}: no such setting" + (f"; known there: {', '.join(there)}" if there else f", nor any under {above}")
