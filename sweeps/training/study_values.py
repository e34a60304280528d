"""Checks of the values that a sweep file gives for how the sweep goes on; mistakes raise `ConfigError`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, TypeGuard

from muloco_runner.config import ConfigError


def check_known(where: str, entry: Mapping[str, Any], known: Sequence[str]) -> None:
    for key in entry:
        if key not in known:
            raise ConfigError(f"{where}.{key}: no such key; known here: {', '.join(known)}")


def check_counts(where: str, entry: Mapping[str, Any], least: int) -> None:
    for key, value in entry.items():
        if not isinstance(value, int) or isinstance(value, bool) or value < least:
            raise ConfigError(f"{where}.{key}={value}: give a whole number of {_NUMBER_WORDS[least]} or more")


_NUMBER_WORDS = {1: "one", 2: "two", 4: "four"}


def is_number(value: Any) -> TypeGuard[float]:
    return isinstance(value, int | float) and not isinstance(value, bool)


_EXAMPLES = {
    "extend": "or a list of the keys that are to grow",
    "tune": "such as {coordinates: {inner_optimizer.lr: [0.01, 0.02]}, threshold: 0.003}",
    "replicate": "such as {best: 1, seeds: 3}",
    "decide": "such as {pairs: [[muloco, ddp_muon]], gap: 0.004}",
    "halve": "such as {eta: 2}, or true",
}
"""By key of a sweep file."""


def mapping(where: str, given: Any) -> dict[str, Any]:
    if not isinstance(given, Mapping):
        example = _EXAMPLES.get(where, "such as {low: 1.0e-5, high: 1.0}")
        raise ConfigError(f"{where}={given!r}: give keys with their values, {example}")
    return {str(key): value for key, value in given.items()}
