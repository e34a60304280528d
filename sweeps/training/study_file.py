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
    decide: {pairs: [[muloco, ddp_muon]], gap: 0.004, confidence: 0.95, max_seeds: 20}
    decide: {rule: nanogpt_pair, pairs: [[muloco, ddp_muon]]}            # the public 124M benchmark's formulas
    decide: {rule: nanogpt_target, series: [muloco], target: 3.28}

How values go on, `sweeps.training.lattice` says.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections import Counter
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, fields
from typing import Any

from muloco_runner.config import ConfigError, RunConfig
from sweeps.engine.tuning.benchmark_rules import BenchmarkPair, BenchmarkTarget
from sweeps.engine.tuning.halving import HalveRule
from sweeps.engine.tuning.sequential import FIRST_SEEDS, PairRule
from sweeps.engine.tuning.study import (
    BATCH,
    CONTEST_RULES,
    Axis,
    ContestRule,
    DecideRule,
    ExtendRule,
    Group,
    Place,
    ReplicateRule,
    Setting,
    Study,
)
from sweeps.training.lattice import Bounds, axis_of
from sweeps.training.model_names import model_name
from sweeps.training.study_values import check_counts, check_known, is_number, mapping
from sweeps.training.tune_keys import Tune, read_tune, tune_axis

STUDY_KEYS = ("extend", "tune", "replicate", "decide", "halve")
"""Keys of a sweep file that say how the sweep goes on by its results."""
_MOST_ETA = 100
"""The last rung of `halve` is at this share of a run or later."""
_TUNED = ("inner_optimizer", "schedule", "gradient_clip_norm")
"""Parts of a run's config that are its hyper-parameters, with its outer optimizer."""


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
        if {_plain_name(name) for name in names} in [
            {_plain_name(one) for one in other} for other in contests[:number]
        ]:
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


def study_of(file: StudyFile, runs: Mapping[str, RunConfig], added: Mapping[str, RunConfig] | None = None) -> Study:
    """The study that a sweep file makes of a sweep's runs, by name. Mistakes raise `ConfigError`.

    `added` are runs that the sweep has added so far, whatever its keys were then.
    """
    grown: dict[str, dict[str, RunConfig]] = {}
    for name, run in (added or {}).items():
        grown.setdefault(_identity(run), {})[name] = run
    where = "extend.keys" if file.tune is None else "tune.coordinates"
    members: dict[str, list[tuple[str, RunConfig]]] = {}
    for name, run in runs.items():
        members.setdefault(_identity(run), []).append((name, run))
    for key in file.grown_keys:
        if key != BATCH and not any(_value(run, key) is not None for run in runs.values()):
            raise ConfigError(f"{where}: {key}: no run of this sweep has such a setting, with a number as value")
        _check_tuned(where, key)
    labels = _labels([found[0][1] for found in members.values()])
    groups: list[Group] = []
    places: dict[str, Place] = {}
    places_of_added: dict[str, Place] = {}
    for (identity, found), label in zip(members.items(), labels, strict=True):
        more = grown.get(identity, {})
        group = _group(
            identity, label, file, [run for _, run in found], {run.global_batch_tokens for run in more.values()}
        )
        groups.append(group)
        placed = {name: _place(group, run) for name, run in found}
        assert None not in placed.values()
        places |= {name: place for name, place in placed.items() if place is not None}
        places_of_added |= {name: place for name, run in more.items() if (place := _place(group, run)) is not None}
    decide = None
    if file.decide is not None:
        sizes = {identity: model_name(found[0][1].num_params) for identity, found in members.items()}
        decide = DecideRule(tuple(_contests(file.decide, groups, sizes)), file.decide.rule)
    extend = file.extend.rule if file.extend is not None else None
    tune = file.tune.rule if file.tune is not None else None
    return Study(
        tuple(groups),
        places,
        extend,
        "sweeps.training.derive",
        file.replicate,
        decide,
        tune,
        file.halve,
        places_of_added,
    )


def _check_tuned(where: str, key: str) -> None:
    """Refuses a key that is no hyper-parameter: settings of one series and size do not differ in it."""
    if key == "seed":
        raise ConfigError(f"{where}: {key}: seeds are no hyper-parameter: `replicate` gives the best settings more")
    if (
        key != BATCH
        and not key.startswith(("method.outer_optimizer.", *(f"{name}." for name in _TUNED)))
        and (key not in _TUNED)
    ):
        raise ConfigError(
            f"{where}: {key}: the key is no hyper-parameter but tells series and sizes apart: vary it in the grids"
        )


def _contests(decide: Decide, groups: Sequence[Group], sizes: Mapping[str, str]) -> Iterator[tuple[str, ...]]:
    """The ids of what is judged together, at each scale that both have; `sizes` are names of models by group."""
    series = {_plain_name(group.series): group.series for group in groups}
    for names in decide.contests:
        for name in names:
            if _plain_name(name) not in series:
                key = "pairs" if len(names) > 1 else "series"
                raise ConfigError(f"decide.{key}: no series {name} in this sweep; it has {', '.join(series)}")
        sides = [[group for group in groups if _plain_name(group.series) == _plain_name(name)] for name in names]
        if len(sides) == 1:
            yield from ((group.id,) for group in sides[0])
            continue
        found = [_by_scale(side, {}) for side in sides]
        if isinstance(decide.rule, BenchmarkPair) and not found[0].keys() & found[1].keys():
            # Steps saved count: budgets may differ where each has one.
            found = [_by_scale(side, sizes) for side in sides]
        shared = found[0].keys() & found[1].keys()
        several = [name for ids, name in zip(found, names, strict=True) if any(len(one) > 1 for one in ids.values())]
        if several or not shared or _plain_name(names[0]) == _plain_name(names[1]):
            why = f"{several[0]} names several series of one size" if several else "they share no size, or are the same"
            raise ConfigError(f"decide.pairs: {names[0]} against {names[1]}: {why}: name two series of the same sizes")
        yield from ((found[0][scale][0], found[1][scale][0]) for scale in found[0] if scale in shared)


def _by_scale(groups: Sequence[Group], sizes: Mapping[str, str]) -> dict[str, list[str]]:
    """Ids of groups by their scale, or by their model alone where `sizes` has it."""
    found: dict[str, list[str]] = {}
    for group in groups:
        found.setdefault(sizes.get(group.id, group.scale), []).append(group.id)
    return found


def _plain_name(series: str) -> str:
    return series.lower().replace("-", "_")


def _identity(run: RunConfig) -> str:
    """What tells series and scales apart: the config without hyper-parameters, batch and seed, as a hash."""
    values = run.to_dict()
    kept = {key: value for key, value in values.items() if key not in (*_TUNED, BATCH, "seed")}
    kept["method"] = {key: value for key, value in values["method"].items() if key != "outer_optimizer"}
    names = [values["inner_optimizer"].get("_target_"), values["inner_optimizer"]["name"], values["schedule"]["name"]]
    names.append((values["method"].get("outer_optimizer") or {}).get("name"))
    return _hash([kept, names])


def _others(run: RunConfig, keys: Sequence[str]) -> str:
    """Its hyper-parameters that are not extended, as a hash."""
    values = run.to_dict()
    tuned = {key: values[key] for key in _TUNED}
    tuned["method"] = {"outer_optimizer": values["method"].get("outer_optimizer")}
    for key in keys:
        *path, last = key.split(".")
        there: Any = tuned
        for name in path:
            there = (there or {}).get(name)
        if isinstance(there, dict):
            there.pop(last, None)
    return _hash(tuned)


def _hash(values: Any) -> str:
    return hashlib.sha256(json.dumps(values, sort_keys=True).encode()).hexdigest()[:12]


def _value(run: RunConfig, key: str) -> float | None:
    """The number at that key; None where the run has none there."""
    there: Any = run.to_dict()
    for name in key.split("."):
        there = there.get(name) if isinstance(there, dict) else None
    return there if is_number(there) else None


def _labels(runs: Sequence[RunConfig]) -> list[tuple[str, str, str]]:
    """A label, the series and the scale in words; labels with a number where several are called the same."""
    several_budgets = len({run.tokens_per_parameter for run in runs}) > 1
    found = []
    for run in runs:
        series = f"{run.algorithm} K={run.num_workers}" if run.num_workers > 1 else run.algorithm
        budget = f", {run.tokens_per_parameter:g} tokens a parameter" if several_budgets else ""
        scale = f"{model_name(run.num_params)}{budget}"
        found.append((f"{series} at {scale}", series, scale))
    counts, seen = Counter(label for label, _, _ in found), Counter[str]()
    for number, (label, series, scale) in enumerate(found):
        seen[label] += 1
        numbered = f"{label} ({seen[label]})" if counts[label] > 1 else label
        found[number] = (numbered, series, scale)
    return found


def _group(
    identity: str,
    words: tuple[str, str, str],
    file: StudyFile,
    runs: Sequence[RunConfig],
    added_batches: Collection[int],
) -> Group:
    label, series, scale = words
    axes = [_axis(key, label, file, runs) for key in file.grown_keys if key != BATCH and _has_key(key, label, runs)]
    if BATCH in file.grown_keys:
        axis = _axis(BATCH, label, file, runs)
    else:
        batches = sorted({*added_batches, *(run.global_batch_tokens for run in runs)})
        axis = Axis(BATCH, tuple(batches), 0, len(batches) - 1, grows=False)
    shared = frozenset.intersection(*_seeds_of_settings(runs))
    seeds = tuple(sorted(shared or {runs[0].seed}))
    budget = runs[0].tokens_per_parameter * runs[0].num_params
    return Group(identity, label, axis, tuple(axes), seeds, series, scale, budget)


def _has_key(key: str, label: str, runs: Sequence[RunConfig]) -> bool:
    """Whether all runs of a group have a number there, or none; some and not all raise `ConfigError`."""
    found = {_value(run, key) is not None for run in runs}
    if len(found) > 1:
        raise ConfigError(f"{key}: some runs of {label} have a number there and others do not: give all of them one")
    return found == {True}


def _axis(key: str, label: str, file: StudyFile, runs: Sequence[RunConfig]) -> Axis:
    own = sorted({value for run in runs if (value := _value(run, key)) is not None})
    if file.tune is not None:
        return tune_axis(key, label, own, file.tune.keys[key], runs[0])
    assert file.extend is not None
    return axis_of(key, label, own, file.extend.keys[key], runs[0])


def _seeds_of_settings(runs: Sequence[RunConfig]) -> list[frozenset[int]]:
    found: dict[str, set[int]] = {}
    for run in runs:
        found.setdefault(_hash({**run.to_dict(), "seed": None}), set()).add(run.seed)
    return [frozenset(seeds) for seeds in found.values()]


def _place(group: Group, run: RunConfig) -> Place | None:
    """None where the group's lattice has no such place."""
    batch = group.batches.position_of(run.global_batch_tokens)
    positions = [axis.position_of(_value(run, axis.key) or 0.0) for axis in group.axes]
    at = tuple(position for position in positions if position is not None)
    if batch is None or len(at) < len(positions):
        return None
    return Place(group.id, Setting(batch, at, _others(run, [axis.key for axis in group.axes])), run.seed)
