"""`tune:` of a sweep file, read and checked.

    tune:
      coordinates:                                  # one at a time, in this order, the batch last
        inner_optimizer.lr: sqrt2(-14..-4 by 2)     # all values that it may take, the same for every series
        inner_optimizer.weight_decay: [0, 0.03, 0.1, 0.3]
        global_batch_tokens: pow2(13..17)
      threshold: 0.003                              # nats: improves the loss by more, or is not followed
      max_runs: 200                                 # most that are added to each series and size

The grids of the file are where each series begins: one run, or several of which the best is taken.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, fields
from typing import Any

from muloco_runner.config import ConfigError, RunConfig
from sweeps.engine.tuning.study import Axis, TuneRule
from sweeps.grid import values_of
from sweeps.training.lattice import why_no_run
from sweeps.training.study_values import check_counts, check_known, is_number, mapping

_EXAMPLE = "tune: {coordinates: {inner_optimizer.lr: sqrt2(-14..-4 by 2)}, threshold: 0.003}"


@dataclass(frozen=True)
class Tune:
    """`tune:` as it was written."""

    keys: Mapping[str, tuple[float, ...]]
    """All values of each key, growing."""
    rule: TuneRule


def read_tune(given: Any) -> Tune:
    if not isinstance(given, Mapping):
        raise ConfigError(f"tune={given!r}: say which keys may take which values: {_EXAMPLE}")
    entry = mapping("tune", given)
    check_known("tune", entry, ["coordinates", *(one.name for one in fields(TuneRule))])
    keys = entry.pop("coordinates", None)
    if not isinstance(keys, Mapping) or not keys:
        raise ConfigError(f"tune.coordinates={keys!r}: say which keys may take which values: {_EXAMPLE}")
    threshold = entry.get("threshold")
    if not is_number(threshold) or not 0 <= threshold < math.inf:
        raise ConfigError(
            f"tune.threshold={threshold}: say from which improvement of the loss on, in nats, a value is followed: "
            "threshold: 0.003"
        )
    check_counts("tune", {key: value for key, value in entry.items() if key == "max_runs"}, 1)
    return Tune({str(key): _values(str(key), values) for key, values in keys.items()}, TuneRule(**entry))


def _values(key: str, given: Any) -> tuple[float, ...]:
    values = values_of(given, f"tune.coordinates.{key}")
    for value in values:
        if not is_number(value) or not math.isfinite(value):
            raise ConfigError(f"tune.coordinates.{key}: {value!r} is no number: give numbers, 1e-5 written as 1.0e-5")
    found = tuple(sorted(values))
    if len(found) < 2 or any(math.isclose(low, high, rel_tol=1e-6) for low, high in itertools.pairwise(found)):
        written = ", ".join(f"{value:.6g}" for value in found)
        raise ConfigError(f"tune.coordinates.{key} has the values {written}: give two or more that differ")
    return found


def tune_axis(
    key: str,
    label: str,
    own: Sequence[float],
    values: tuple[float, ...],
    runs: Sequence[RunConfig],
    check: Callable[[RunConfig], None],
) -> Axis:
    """Return the lattice of one key of the group `label`: all its `values`, `own` being those of the file's runs.

    A value of the file that is not among them raises `ConfigError`, and so does one that makes no run of one of `runs`,
    which are one of every kind in the group, or one that `check` refuses by that error.
    """
    where = f"tune.coordinates.{key}"
    written = ", ".join(f"{value:.6g}" for value in values)
    for value in values:
        if why := why_no_run(key, value, runs, check):
            raise ConfigError(f"{where}: {value:.6g} makes no run of {label}: {why}")
    axis = Axis(key, values, 0, len(values) - 1)
    positions = []
    for value in own:
        position = axis.position_of(value)
        if position is None:
            raise ConfigError(
                f"{where}: the file's runs of {label} begin at {value:.6g}, which is not among the values ({written}): "
                "add it, or begin at one of them"
            )
        positions.append(position)
    return Axis(key, values, min(positions), max(positions))
