"""`extend:`, `tune:`, `replicate:` and `decide:` of a sweep file and of the command line, read and checked.

    extend: [inner_optimizer.lr, global_batch_tokens]      # short for:
    extend:
      keys:
        inner_optimizer.lr: {low: 1e-5, high: 1.0}         # bounds; without them ten steps beyond the file's values
        global_batch_tokens: {}
      margin: 1                                            # points on each side of a best value
      max_runs: 200                                        # most that are added to each series and size
    tune: ...                                              # instead of extend (`sweeps.training.tune_keys`)
    halve: true                                            # stop hopeless runs early (`sweeps.engine.tuning.halving`)
    replicate: {best: 2, seeds: 3}                         # seeds of the best settings of each series and size
    replicate: {each_batch: 8}                             # and of the best at each batch
    decide: {pairs: [[muloco, ddp_muon]], gap: 0.004, confidence: 0.95, max_seeds: 20}
    decide: {rule: nanogpt_pair, pairs: [[muloco, ddp_muon]]}            # the public 124M benchmark's formulas
    decide: {rule: nanogpt_target, series: [muloco], target: 3.28}

How values go on, `sweeps.training.lattice` says; what it makes of the runs, `sweeps.training.study_groups`.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field, fields
from typing import Any

from muloco_runner.config import ConfigError
from sweeps.engine.tuning.benchmark_rules import BenchmarkTarget
from sweeps.engine.tuning.halving import HalveRule
from sweeps.engine.tuning.sequential import FIRST_SEEDS, PairRule
from sweeps.engine.tuning.study import CONTEST_RULES, ContestRule, ExtendRule, ReplicateRule
from sweeps.training.lattice import Bounds
from sweeps.training.study_values import check_counts, check_known, is_number, mapping
from sweeps.training.tune_keys import Tune, read_tune

STUDY_KEYS = ("extend", "tune", "replicate", "decide", "halve")
"""Keys of a sweep file that say how the sweep goes on by its results."""
_MOST_ETA = 100
"""The last rung of `halve` is at this share of a run or later."""


@dataclass(frozen=True)
class Extend:
    """`extend:` as it was written."""

    keys: Mapping[str, Bounds] = field(default_factory=dict)
    rule: ExtendRule = field(default_factory=ExtendRule)


@dataclass(frozen=True)
class Decide:
    """`decide:` as it was written."""

    contests: Sequence[Sequence[str]]
    """Names of two series, or of one that the rule holds against its target."""
    rule: ContestRule


@dataclass(frozen=True)
class StudyFile:
    """How a sweep file says that the sweep goes on by its results."""

    extend: Extend | None = None
    replicate: ReplicateRule | None = None
    decide: Decide | None = None
    tune: Tune | None = None
    halve: HalveRule | None = None

    @property
    def grown_keys(self) -> Collection[str]:
        """Keys of which settings with other values are added."""
        return (self.extend or self.tune or Extend()).keys

    @property
    def grown_in(self) -> str:
        """The key under which these stand."""
        return "extend.keys" if self.tune is None else "tune.coordinates"


def split_study(
    sweep: Mapping[str, Any], overrides: Mapping[str, list[Any]]
) -> tuple[dict[str, Any], dict[str, list[Any]], StudyFile | None]:
    """Return the sweep and the overrides without what they say of how it goes on, and that. Mistakes raise
    `ConfigError`."""
    given = {key: sweep.get(key) for key in STUDY_KEYS}
    rest = {}
    for path, values in overrides.items():
        key, _, below = path.partition(".")
        if key not in STUDY_KEYS:
            rest[path] = values
        elif len(values) != 1:
            raise ConfigError(f"{path}: one value at a time; several keys are a list: 'extend=[inner_optimizer.lr]'")
        elif not below:
            given[key] = values[0]
        else:
            # A list is short for keys, and true for a rule as it is.
            given_so_far = {} if given[key] in (None, True, False) else given[key]
            before = {"keys": given_so_far} if isinstance(given_so_far, list) else given_so_far
            given[key] = {**mapping(key, before), below: values[0]}
    plain = {key: value for key, value in sweep.items() if key not in STUDY_KEYS}
    on = {key: value for key, value in given.items() if value is not None and value is not False}
    if not on:
        return plain, rest, None
    study = StudyFile(
        _read_extend(on["extend"]) if "extend" in on else None,
        _read_replicate(on["replicate"]) if "replicate" in on else None,
        _read_decide(on["decide"]) if "decide" in on else None,
        read_tune(on["tune"]) if "tune" in on else None,
        _read_halve(on["halve"]) if "halve" in on else None,
    )
    if study.extend is not None and study.tune is not None:
        raise ConfigError(
            "extend and tune: a sweep looks for its best settings by one rule: extend goes on with whole grids, tune "
            "with one key at a time: drop one (extend=null or tune=null on the command line)"
        )
    _check_independent(plain, "extend" if study.extend is not None else "tune", study.grown_keys)
    return plain, rest, study


def _read_replicate(given: Any) -> ReplicateRule:
    entry = mapping("replicate", given)
    check_known("replicate", entry, [one.name for one in fields(ReplicateRule)])
    check_counts("replicate", entry, 1)
    return ReplicateRule(**entry)


def _read_halve(given: Any) -> HalveRule:
    entry = {} if given is True else mapping("halve", given)
    check_known("halve", entry, [one.name for one in fields(HalveRule)])
    check_counts("halve", {key: value for key, value in entry.items() if key == "eta"}, 2)
    if entry.get("eta", HalveRule.eta) > _MOST_ETA:
        raise ConfigError(f"halve.eta={entry['eta']}: give a whole number from two to {_MOST_ETA}")
    most = 1 / entry.get("eta", HalveRule.eta)
    share = entry.get("first_share", min(HalveRule.first_share, most))
    if not is_number(share) or not 1 / _MOST_ETA <= share <= most:
        raise ConfigError(
            f"halve.first_share={share}: give the share of a run's tokens before which nothing is stopped, from 0.01 "
            f"to {most:.3g}, the last rung"
        )
    factor = entry.get("gain_factor", HalveRule.gain_factor)
    if not is_number(factor) or not 1 <= factor < math.inf:
        raise ConfigError(
            f"halve.gain_factor={factor}: give how many times the gain of finished runs is thought possible, 1 or more"
        )
    return HalveRule(**{**entry, "first_share": share})


def _read_decide(given: Any) -> Decide:
    entry = mapping("decide", given)
    name = entry.pop("rule", next(iter(CONTEST_RULES)))
    if not isinstance(name, str) or name not in CONTEST_RULES:
        raise ConfigError(f"decide.rule={name}: no such rule; known here: {', '.join(CONTEST_RULES)}")
    kind = CONTEST_RULES[name]
    named = "series" if kind is BenchmarkTarget else "pairs"
    of_rule = [one.name for one in fields(kind)]
    for key in entry:
        if key not in (named, *of_rule):
            raise ConfigError(
                f"decide.{key}: the rule {name} has no such key; it has {', '.join([named, *of_rule])}; rules are "
                f"{', '.join(CONTEST_RULES)}"
            )
    contests = _read_contests(named, entry.pop(named, None))
    check_counts("decide", {key: value for key, value in entry.items() if key == "max_seeds"}, FIRST_SEEDS)
    if kind is PairRule:
        _check_sequential(entry)
    elif kind is BenchmarkTarget:
        target = entry.get("target")
        if not is_number(target) or not 0 < target < math.inf:
            raise ConfigError(f"decide.target={target}: give the loss, in nats per token, that is to be reached")
    return Decide(contests, kind(**entry))


def _read_contests(named: str, given: Any) -> list[tuple[str, ...]]:
    if named == "series":
        if not (isinstance(given, list) and given and not any(isinstance(one, list | dict) for one in given)):
            raise ConfigError(f"decide.series={given!r}: give a list of series, such as [muloco]")
        return _once(named, [(str(one),) for one in given])
    if not (isinstance(given, list) and given and all(isinstance(p, list) and len(p) == 2 for p in given)):
        raise ConfigError(f"decide.pairs={given!r}: give pairs of series, such as [[muloco, ddp_muon]]")
    return _once(named, [(str(first), str(second)) for first, second in given])


def _once(named: str, contests: list[tuple[str, ...]]) -> list[tuple[str, ...]]:
    """The same; one that is there twice raises `ConfigError`."""
    for number, names in enumerate(contests):
        if {plain_name(name) for name in names} in [{plain_name(one) for one in other} for other in contests[:number]]:
            raise ConfigError(f"decide.{named}: {' against '.join(names)} stands there twice: give it once")
    return contests


def _check_sequential(entry: Mapping[str, Any]) -> None:
    gap = entry.get("gap")
    if not is_number(gap) or not 0 <= gap < math.inf:
        raise ConfigError(
            f"decide.gap={gap}: say within which difference of losses, in nats, a pair is a tie: gap: 0.004"
        )
    confidence = entry.get("confidence", PairRule.confidence)
    if not is_number(confidence) or not 0.5 <= confidence < 1:
        raise ConfigError(f"decide.confidence={confidence}: give a number from 0.5 to below 1")


def _read_extend(given: Any) -> Extend:
    entry = {"keys": given} if isinstance(given, list) else mapping("extend", given)
    check_known("extend", entry, ["keys", *(one.name for one in fields(ExtendRule))])
    keys = entry.get("keys")
    keys = dict.fromkeys(keys) if isinstance(keys, list) else keys
    if not isinstance(keys, Mapping) or not keys:
        raise ConfigError(
            "extend.keys: name the keys that are to grow, such as [inner_optimizer.lr, global_batch_tokens]"
        )
    numbers: dict[str, Any] = {key: value for key, value in entry.items() if key != "keys"}
    check_counts("extend", numbers, 1)
    return Extend({str(key): _read_bounds(str(key), bounds) for key, bounds in keys.items()}, ExtendRule(**numbers))


def _read_bounds(key: str, given: Any) -> Bounds:
    entry = mapping(f"extend.keys.{key}", given or {})
    check_known(f"extend.keys.{key}", entry, [one.name for one in fields(Bounds)])
    for name, value in entry.items():
        if not is_number(value) or not math.isfinite(value):
            raise ConfigError(f"extend.keys.{key}.{name}={value}: give a number, such as 1e-5 written as 1.0e-5")
    return Bounds(**entry)


def _check_independent(sweep: Mapping[str, Any], name: str, keys: Collection[str]) -> None:
    """Refuses what ties other settings to the values of a key: a new value would be without them."""
    grids = sweep.get("grids")
    for number, grid in enumerate(grids if isinstance(grids, list) else []):
        if not isinstance(grid, Mapping):
            continue
        lines = [*(grid.get("when") or []), *({"if": line} for line in grid.get("exclude") or [])]
        tied = {**(grid.get("zip") or {}), **{key: 0 for line in lines for key in (line or {}).get("if") or {}}}
        for key in keys:
            if key in tied:
                raise ConfigError(
                    f"{name}: {key} stands in a zip, an `if` or an exclude of sweep.grids[{number}], which says "
                    "nothing of the values that are added: vary it in a product of its own, or leave it out here"
                )


def plain_name(series: str) -> str:
    """Return a series' name as it is compared: case, and - or _, make no difference."""
    return series.lower().replace("-", "_")
