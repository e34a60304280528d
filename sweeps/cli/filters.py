"""Filters that choose runs of a sweep: `algorithm=muloco model=82k seed=0,1 run=3fa`.

Every key must match; of several values one must. Keys are labels, names of models, or settings of the run's config.
"""

from __future__ import annotations

import contextlib
import math
from collections.abc import Sequence
from functools import cache, reduce
from operator import getitem
from typing import Any

from muloco_runner.config import ConfigError, RunConfig
from muloco_runner.config.keys import setting_at
from muloco_runner.config.names import OLD_VALUES, key_now, names_now
from muloco_runner.paths import choices_of
from muloco_runner.record import RecordError, RunFolder
from sweeps.engine.work import Work


def select(works: Sequence[Work], filters: Sequence[str]) -> list[Work]:
    """Return the works that match all filters; all of them without one.

    An unknown key, or a filter that matches nothing, raises `ConfigError`.
    """
    found = list(works)
    for text in filters:
        key, sign, values = text.partition("=")
        if not sign or not key or not values:
            raise ConfigError(f"{text!r}: a filter is KEY=VALUE, such as algorithm=muloco or run=3fa2")
        wanted = [_model(works, value) for value in values.split(",")] if key == "model" else values.split(",")
        found = [work for work in found if any(_matches(work, key, value) for value in wanted)]
    if filters and works and not found:
        raise ConfigError(f"no run of the sweep matches {' '.join(filters)}")
    return found


def _model(works: Sequence[Work], value: str) -> str | int:
    """What a filter's model is known by: the label of one from outside, else its number of parameters."""
    labels = {str(work.labels["model"]) for work in works if "model" in work.labels}
    return next((label for label in labels if _equal(label, value)), None) or params_of(value)


def _matches(work: Work, key: str, value: str | int) -> bool:
    if key == "model":
        return bool(work.labels.get("model" if isinstance(value, str) else "num_params") == value)
    assert isinstance(value, str)
    if key == "run":
        return work.name.startswith(value)
    if key in work.labels:
        return _equal(work.labels[key], value)
    return _equal(_setting(work, key), OLD_VALUES.get(key, {}).get(value, value))


def _setting(work: Work, key: str) -> Any:
    try:
        values: Any = names_now(RunFolder(work.folder).read_config())
    except RecordError as error:
        raise ConfigError(f"{key}: no such label of {work.name}, and {error}") from None
    path = key_now(key)
    with contextlib.suppress(KeyError, TypeError):
        return reduce(getitem, path.split("."), values)
    # At its default a setting may not be among the plain values.
    try:
        return setting_at(RunConfig.from_dict(values), path)
    except KeyError:
        known = ", ".join(["run", "model", *work.labels, "and settings such as inner_optimizer.lr"])
        raise ConfigError(f"{key}: no such key to filter by; there are {known}") from None


def _equal(actual: Any, wanted: str) -> bool:
    """Compare numbers to three digits, as tables show them, and text without regard to case and dashes."""
    if isinstance(actual, int | float) and not isinstance(actual, bool):
        try:
            return math.isclose(actual, float(wanted), rel_tol=5e-3 if isinstance(actual, float) else 0.0)
        except ValueError:
            return False
    return str(actual).lower().replace("-", "_") == wanted.lower().replace("-", "_")


@cache
def params_of(model: str) -> int:
    from muloco_runner.compose import compose_model

    names = choices_of("model")
    if model not in names:
        raise ConfigError(f"model={model}: no such model; there are {', '.join(names)}")
    return compose_model(model).num_params
