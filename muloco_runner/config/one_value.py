"""One value of a run's config as its field takes it: numbers may be text, as YAML reads 1e-5."""

from __future__ import annotations

import contextlib
import math
from types import NoneType, UnionType
from typing import Any, Union, get_args, get_origin

from muloco_runner.config.checks import ConfigError


def as_field_takes_it(key: str, value: Any, hint: Any, before: Any) -> Any:
    """Return `value` for the field of the type `hint`; one that it does not take raises `ConfigError`.

    `key` is what messages call it. `before` is what stands there: its type serves where there is no hint (None).
    """
    kinds = _kinds_of(type(before) if hint is None else hint)
    if value is None and NoneType in kinds:
        return None
    if bool in kinds:
        if not isinstance(value, bool):
            raise ConfigError(f"{key}={value!r}: give true or false, without quotes")
        return value
    if float in kinds:
        return _number(key, value)
    if int in kinds:
        return _whole_number(key, value)
    if str in kinds and isinstance(value, list | dict):
        raise ConfigError(f"{key}={value!r}: give one value, and no list or keys of its own")
    if isinstance(before, dict) and not isinstance(value, dict):
        raise ConfigError(f"{key}={value!r}: it has keys of its own: give single values, such as {key}.KEY")
    return value


def _kinds_of(hint: Any) -> tuple[Any, ...]:
    return get_args(hint) if get_origin(hint) in (Union, UnionType) else (hint,)


def _number(key: str, value: Any) -> float:
    try:
        found = float(value) if isinstance(value, int | float | str) and not isinstance(value, bool) else math.nan
    except (ValueError, OverflowError):
        found = math.nan
    if not math.isfinite(found):
        raise ConfigError(f"{key}={value!r}: give a finite number, such as 0.02")
    return found


def _whole_number(key: str, value: Any) -> int:
    if isinstance(value, int) and not isinstance(value, bool):
        return value
    if isinstance(value, str):
        # Not by way of a float, which has 53 bits.
        with contextlib.suppress(ValueError):
            return int(value)
    found = _number(key, value)
    if found != int(found):
        raise ConfigError(f"{key}={found:g}: it takes whole numbers")
    return int(found)
