"""The groups of a study: a sweep's runs by series and size, each in its place on its group's lattice.

What tells two groups apart is everything that is no hyper-parameter; how the study goes on, the sweep file says
(`sweeps.training.study_file`).
"""

from __future__ import annotations

import hashlib
import itertools
import json
from collections import Counter
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from typing import Any

from muloco_runner.config import ConfigError, DiLoCoConfig, RunConfig
from muloco_runner.config.keys import setting_at
from sweeps.engine.tuning.benchmark_rules import BenchmarkPair
from sweeps.engine.tuning.study import BATCH, Axis, DecideRule, Group, Place, Setting, Study
from sweeps.formatting import plural
from sweeps.training.lattice import axis_of, why_not_added
from sweeps.training.model_names import model_name
from sweeps.training.study_file import Decide, StudyFile, plain_name
from sweeps.training.study_values import is_number
from sweeps.training.tune_keys import tune_axis

_TUNED = ("inner_optimizer", "schedule", "gradient_clip_norm")
"""Parts of a run's config that are its hyper-parameters, with its outer optimizer."""


def _take_all(run: RunConfig) -> None:
    """Refuses none."""


def study_of(
    file: StudyFile,
    runs: Mapping[str, RunConfig],
    added: Mapping[str, RunConfig] | None = None,
    check: Callable[[RunConfig], None] = _take_all,
) -> Study:
    """The study that a sweep file makes of a sweep's runs, by name. Mistakes raise `ConfigError`.

    `added` are runs that the sweep has added so far, whatever its keys were then. `check` raises `ConfigError` for a
    run that the sweep cannot have: lattices end before it.
    """
    grown: dict[str, dict[str, RunConfig]] = {}
    for name, run in (added or {}).items():
        grown.setdefault(identity_of(run), {})[name] = run
    members: dict[str, list[tuple[str, RunConfig]]] = {}
    for name, run in runs.items():
        members.setdefault(identity_of(run), []).append((name, run))
    for key in file.grown_keys:
        if key != BATCH and not any(_value(run, key) is not None for run in runs.values()):
            raise ConfigError(
                f"{file.grown_in}: {key}: no run of this sweep has such a setting, with a number as value"
            )
        _check_tuned(file.grown_in, key)
    labels = _labels([found[0][1] for found in members.values()])
    groups: list[Group] = []
    places: dict[str, Place] = {}
    places_of_added: dict[str, Place] = {}
    for (identity, found), label in zip(members.items(), labels, strict=True):
        more = grown.get(identity, {})
        own = [run for _, run in found]
        group = _group(identity, label, file, own, {run.global_batch_tokens for run in more.values()}, check)
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
    _check_effects(file, groups, [*places.values(), *places_of_added.values()])
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


def _check_effects(file: StudyFile, groups: Sequence[Group], places: Iterable[Place]) -> None:
    """Refuses rules that could add or stop nothing."""
    fewest = min(len(group.seeds) for group in groups)
    rule = file.replicate
    if rule is not None and fewest >= max(rule.seeds, rule.each_batch):
        each = f" and replicate.each_batch={rule.each_batch} have" if rule.each_batch else " has"
        raise ConfigError(
            f"replicate.seeds={rule.seeds}{each} no effect: all settings have {plural(fewest, 'seed')} or more in the "
            "file: ask for more, or leave replicate out"
        )
    if rule is not None and rule.each_batch:
        has_one_batch = all(len(group.batches.values) == 1 for group in groups)
        without = max(fewest, rule.seeds) if has_one_batch else fewest
        if rule.each_batch <= without:
            raise ConfigError(
                f"replicate.each_batch={rule.each_batch} has no effect: the best setting at each batch has "
                f"{plural(without, 'seed')} without it: ask for more, or leave it out"
            )
    most = max(Counter((place.group, place.setting.batch) for place in places).values())
    if file.halve is not None and not file.grown_keys and most <= file.halve.eta:
        raise ConfigError(
            f"halve has no effect: a run stops beside {file.halve.eta} others that have finished (eta), and no series "
            f"has more than {plural(most, 'run')} of one size and batch: leave it out"
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
    series = {plain_name(group.series): group.series for group in groups}
    for names in decide.contests:
        for name in names:
            if plain_name(name) not in series:
                key = "pairs" if len(names) > 1 else "series"
                raise ConfigError(f"decide.{key}: no series {name} in this sweep; it has {', '.join(series)}")
        sides = [[group for group in groups if plain_name(group.series) == plain_name(name)] for name in names]
        if len(sides) == 1:
            yield from ((group.id,) for group in sides[0])
            continue
        found = [_by_scale(side, {}) for side in sides]
        if isinstance(decide.rule, BenchmarkPair) and not found[0].keys() & found[1].keys():
            # Steps saved count: budgets may differ where each has one.
            found = [_by_scale(side, sizes) for side in sides]
        shared = found[0].keys() & found[1].keys()
        several = [name for ids, name in zip(found, names, strict=True) if any(len(one) > 1 for one in ids.values())]
        if several or not shared or plain_name(names[0]) == plain_name(names[1]):
            why = f"{several[0]} names several series of one size" if several else "they share no size, or are the same"
            raise ConfigError(f"decide.pairs: {names[0]} against {names[1]}: {why}: name two series of the same sizes")
        yield from ((found[0][scale][0], found[1][scale][0]) for scale in found[0] if scale in shared)


def _by_scale(groups: Sequence[Group], sizes: Mapping[str, str]) -> dict[str, list[str]]:
    """Ids of groups by their scale, or by their model alone where `sizes` has it."""
    found: dict[str, list[str]] = {}
    for group in groups:
        found.setdefault(sizes.get(group.id, group.scale), []).append(group.id)
    return found


def identity_of(run: RunConfig) -> str:
    """What tells series and scales apart: the config without hyper-parameters, batch and seed, as a hash."""
    values = run.to_dict()
    kept = {key: value for key, value in values.items() if key not in (*_TUNED, BATCH, "seed")}
    kept["method"] = {key: value for key, value in values["method"].items() if key != "outer_optimizer"}
    names = [values["inner_optimizer"].get("_target_"), values["inner_optimizer"]["name"], values["schedule"]["name"]]
    names.append((values["method"].get("outer_optimizer") or {}).get("name"))
    if isinstance(run.method, DiLoCoConfig) and run.method.outer_optimizer.averages:
        names.append(run.algorithm)  # else a group with DiLoCo, whose series it is not
    return _hash([kept, names])


def others_of(run: RunConfig, keys: Sequence[str]) -> str:
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
    try:
        value = setting_at(run, key)
    except KeyError:
        return None
    return value if is_number(value) else None


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
    check: Callable[[RunConfig], None],
) -> Group:
    label, series, scale = words
    keys = [key for key in file.grown_keys if key != BATCH and _has_key(key, label, runs)]
    alike: dict[str, list[RunConfig]] = {}
    for run in runs:
        alike.setdefault(others_of(run, keys), []).append(run)
    kinds = [same[0] for same in alike.values()]
    axes = [_axis(key, label, file, runs, kinds, check) for key in keys]
    if BATCH in file.grown_keys:
        axis = _axis(BATCH, label, file, runs, kinds, check)
    else:
        batches = sorted({*added_batches, *(run.global_batch_tokens for run in runs)})
        axis = Axis(BATCH, tuple(batches), 0, len(batches) - 1, grows=False)
    shared = frozenset.intersection(*_seeds_of_settings(runs))
    seeds = tuple(sorted(shared or {runs[0].seed}))
    budget = runs[0].tokens_per_parameter * runs[0].num_params
    group = Group(identity, label, axis, tuple(axes), seeds, series, scale, budget)
    _check_together(file.grown_in, group, [same[-1] for same in alike.values()], check)
    return group


def _has_key(key: str, label: str, runs: Sequence[RunConfig]) -> bool:
    """Whether all runs of a group have a number there, or none; some and not all raise `ConfigError`."""
    found = {_value(run, key) is not None for run in runs}
    if len(found) > 1:
        raise ConfigError(f"{key}: some runs of {label} have a number there and others do not: give all of them one")
    return found == {True}


def _axis(
    key: str,
    label: str,
    file: StudyFile,
    runs: Sequence[RunConfig],
    kinds: Sequence[RunConfig],
    check: Callable[[RunConfig], None],
) -> Axis:
    """The lattice of one key; `kinds` are runs of the group, one of each that differ in other keys."""
    own = sorted({value for run in runs if (value := _value(run, key)) is not None})
    if file.tune is not None:
        return tune_axis(key, label, own, file.tune.keys[key], kinds, check)
    assert file.extend is not None
    return axis_of(key, label, own, file.extend.keys[key], kinds, check)


def _check_together(where: str, group: Group, kinds: Sequence[RunConfig], check: Callable[[RunConfig], None]) -> None:
    """Refuses lattices of which no run can be made where two keys are at their ends; `kinds` as in `_axis`."""
    axes = [axis for axis in (*group.axes, group.batches) if axis.grows]
    keys = [axis.key for axis in axes]
    ends = [dict.fromkeys((axis.values[0], axis.values[-1])) for axis in axes]
    for run in kinds:
        for one, other in itertools.combinations(range(len(axes)), 2):
            for pair in itertools.product(ends[one], ends[other]):
                values = dict(zip((keys[one], keys[other]), pair, strict=True))
                if why := why_not_added(run, values, check):
                    written = " with ".join(f"{key}={value:.12g}" for key, value in values.items())
                    raise ConfigError(
                        f"{where}: {group.label} may come to {written}, of which no run can be made: {why}; let the "
                        "values of one of them end before that"
                    )


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
    return Place(group.id, Setting(batch, at, others_of(run, [axis.key for axis in group.axes])), run.seed)
