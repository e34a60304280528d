"""What a sweep studies: series at their sizes, each with a lattice of settings, and where its runs stand on it.

A lattice is all values that a key may take: those of the sweep file, and what goes on from them by their own step to
the bounds. Runs stand at positions on it.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from functools import cached_property
from typing import Any, NamedTuple

from muloco_runner.record import Tried, choosing_seeds
from sweeps.engine.tuning.benchmark_rules import BenchmarkPair, BenchmarkTarget
from sweeps.engine.tuning.halving import HalveRule
from sweeps.engine.tuning.sequential import PairRule

BATCH = "global_batch_tokens"


@dataclass(frozen=True)
class Axis:
    """The lattice of one key in one group."""

    key: str
    values: tuple[float, ...]
    """Growing; all that the bounds allow and of which runs can be made."""
    first: int
    last: int
    """Positions of the smallest and the largest value of the sweep file."""
    grows: bool = True
    """Whether values beyond those of the file may be added."""
    below: str = ""
    """Why no run can be made of a smaller value; empty where a bound, or how far a lattice goes, leaves it out."""
    above: str = ""
    """The same of a larger value."""

    def position_of(self, value: float) -> int | None:
        """None where the lattice has no such value."""
        found = (n for n, own in enumerate(self.values) if math.isclose(own, value, rel_tol=1e-6))
        return next(found, None)

    def text(self, position: int) -> str:
        """The key with its value there."""
        value = self.values[position]
        return f"{self.key}={value:,.0f}" if self.key == BATCH else f"{self.key}={value:.6g}"

    def end_words(self, direction: int) -> str:
        """Say what the last value on that side, -1 or 1, is."""
        end, why = ("largest", self.above) if direction > 0 else ("smallest", self.below)
        return f"the {end} of which a run can be made ({why})" if why else f"the {end} that the bounds allow"


@dataclass(frozen=True)
class Group:
    """One series at one scale: one method, inner optimizer, model size and token budget."""

    id: str
    label: str
    batches: Axis
    axes: tuple[Axis, ...]
    """Of the hyper-parameters that are extended, in the order of the file."""
    seeds: tuple[int, ...]
    """Those that a new setting is run with."""
    series: str = ""
    scale: str = ""
    """What its label is made of; of equal scale are groups that may be compared."""
    budget_tokens: float = 0.0
    """Of one run; 0 in studies that earlier versions wrote."""

    @property
    def most_settings(self) -> int:
        """Settings of the whole lattice, as far as it may be added to."""
        batches = len(self.batches.values) if self.batches.grows else self.batches.last - self.batches.first + 1
        return batches * math.prod(len(axis.values) for axis in self.axes)


class Setting(NamedTuple):
    """A point of a group's lattice."""

    batch: int
    at: tuple[int, ...]
    """Positions on the group's axes."""
    others: str = ""
    """Values of hyper-parameters that the sweep file varies and that are not extended."""


def moved(setting: Setting, number: int, position: int) -> Setting:
    """Return the setting with another position on one axis."""
    at = setting.at
    return setting._replace(at=(*at[:number], position, *at[number + 1 :]))


class Place(NamedTuple):
    """Where a run stands."""

    group: str
    """Its id."""
    setting: Setting
    seed: int


class Coordinates(NamedTuple):
    """The same in values, which say where it is whatever the bounds are by then."""

    group: str
    values: dict[str, float]
    others: str
    seed: int

    @classmethod
    def of(cls, added: Mapping[str, Any]) -> Coordinates:
        """Of a run as the ledger's `added` has it."""
        return cls(added["group"], added["values"], added["others"], added["seed"])


@dataclass(frozen=True)
class ExtendRule:
    """`extend:` of a sweep file."""

    margin: int = 1
    """Points of the lattice that are tried on each side of a best value."""
    max_runs: int = 200
    """Most runs that are added to each group."""


@dataclass(frozen=True)
class TuneRule:
    """`tune:` of a sweep file."""

    threshold: float
    """In nats: what improves the loss by no more than this is not followed."""
    max_runs: int = 200
    """Most runs that are added to each group."""


@dataclass(frozen=True)
class ReplicateRule:
    """`replicate:` of a sweep file."""

    best: int = 1
    """So many of the best settings of each group get more seeds."""
    seeds: int = 3
    """Seeds of each of them in the end."""
    each_batch: int = 0
    """Seeds, in the end, of the best setting at each batch: the noise of a critical batch is that of their differences.
    0: no more than `seeds` gives."""


ContestRule = PairRule | BenchmarkPair | BenchmarkTarget
CONTEST_RULES: dict[str, type[ContestRule]] = {
    "sequential_t": PairRule,
    "nanogpt_pair": BenchmarkPair,
    "nanogpt_target": BenchmarkTarget,
}
"""By the names that sweep files give them; the first is the default."""


@dataclass(frozen=True)
class DecideRule:
    """`decide:` of a sweep file."""

    contests: tuple[tuple[str, ...], ...]
    """Ids of what is judged together: two groups, of one scale unless the rule counts steps saved, or one group against
    the rule's target."""
    rule: ContestRule

    @property
    def name(self) -> str:
        return next(name for name, kind in CONTEST_RULES.items() if isinstance(self.rule, kind))


@dataclass(frozen=True)
class Study:
    """The groups of a sweep, where the runs of its file stand, and the rules by which it goes on."""

    groups: tuple[Group, ...]
    places: Mapping[str, Place] = field(default_factory=dict)
    """By the run's name."""
    extend: ExtendRule | None = None
    derives: str = ""
    """The module that makes a run of another one (`sweeps.node.reports.Derives`)."""
    replicate: ReplicateRule | None = None
    decide: DecideRule | None = None
    tune: TuneRule | None = None
    """With `extend` no study has it."""
    halve: HalveRule | None = None
    added: Mapping[str, Place] = field(default_factory=dict, compare=False)
    """Where runs stand, by name, that the sweep had added before it was launched: under other keys it may be."""

    @property
    def grows_by(self) -> ExtendRule | TuneRule | None:
        """The rule by which settings are added."""
        return self.extend or self.tune

    @cached_property
    def by_id(self) -> dict[str, Group]:
        return {group.id: group for group in self.groups}

    def place_of_added(self, name: str, at: Coordinates) -> Place | None:
        """Where a run stands that was added; None where the lattices, as they are now, have no such place."""
        return self.added.get(name) or self.place_of(at)

    def place_of(self, at: Coordinates) -> Place | None:
        """None where the lattice, as it is now, has no such place, or other keys: `others` is then not that of now."""
        group = self.by_id.get(at.group)
        if group is None or at.values.keys() != {BATCH, *(axis.key for axis in group.axes)}:
            return None
        batch = group.batches.position_of(at.values[BATCH])
        positions = [axis.position_of(at.values[axis.key]) for axis in group.axes]
        if batch is None or any(position is None for position in positions):
            return None
        return Place(at.group, Setting(batch, tuple(p for p in positions if p is not None), at.others), at.seed)

    def coordinates_of(self, place: Place) -> Coordinates:
        group, setting = self.by_id[place.group], place.setting
        values = {axis.key: axis.values[at] for axis, at in zip(group.axes, setting.at, strict=True)}
        return Coordinates(
            place.group, {BATCH: group.batches.values[setting.batch], **values}, setting.others, place.seed
        )

    def to_dict(self) -> dict[str, Any]:
        return {
            "groups": [asdict(group) for group in self.groups],
            "places": _places_to_dict(self.places),
            "extend": self.extend and asdict(self.extend),
            "derives": self.derives,
            "replicate": self.replicate and asdict(self.replicate),
            "decide": self.decide and {**asdict(self.decide), "name": self.decide.name},
            "tune": self.tune and asdict(self.tune),
            "halve": self.halve and asdict(self.halve),
            **({"added": _places_to_dict(self.added)} if self.added else {}),
        }

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Study:
        return cls(
            tuple(_group(one) for one in values["groups"]),
            _places(values["places"]),
            ExtendRule(**values["extend"]) if values["extend"] else None,
            values["derives"],
            ReplicateRule(**values["replicate"]) if values.get("replicate") else None,
            _decide(values["decide"]) if values.get("decide") else None,
            TuneRule(**values["tune"]) if values.get("tune") else None,
            HalveRule(**values["halve"]) if values.get("halve") else None,
            _places(values.get("added", {})),
        )


def _places_to_dict(places: Mapping[str, Place]) -> dict[str, list[Any]]:
    return {
        name: [place.group, place.setting.batch, list(place.setting.at), place.setting.others, place.seed]
        for name, place in places.items()
    }


def _places(values: Mapping[str, Sequence[Any]]) -> dict[str, Place]:
    return {
        name: Place(group, Setting(batch, tuple(at), others), seed)
        for name, (group, batch, at, others, seed) in values.items()
    }


def _group(values: Mapping[str, Any]) -> Group:
    axes = tuple(_axis(one) for one in values["axes"])
    return Group(**{**values, "batches": _axis(values["batches"]), "axes": axes, "seeds": tuple(values["seeds"])})


def _decide(values: Mapping[str, Any]) -> DecideRule:
    # Earlier versions had one rule, for pairs.
    contests = values["contests"] if "contests" in values else values["pairs"]
    rule = CONTEST_RULES[values.get("name", "sequential_t")](**values["rule"])
    return DecideRule(tuple(tuple(ids) for ids in contests), rule)


def _axis(values: Mapping[str, Any]) -> Axis:
    return Axis(**{**values, "values": tuple(values["values"])})


_NO_SEED = -1


@dataclass
class Results:
    """What is known of a group's settings."""

    losses: dict[Setting, dict[int, float | None]] = field(default_factory=dict)
    """By setting and seed; None for a run that diverged, or was stopped early."""

    def compared(self) -> dict[int, dict[Setting, float]]:
        """Return the losses that settings are compared by, by batch (`muloco_runner.record.choosing_seeds`)."""
        return {
            batch: {setting: _mean(self.losses[setting], seeds) for setting, seeds in settings.items()}
            for batch, settings in self._choices().items()
            if settings
        }

    def best_of_batches(self) -> list[Setting]:
        """Return the best setting at each batch, by growing batch."""
        return [min(losses, key=losses.__getitem__) for _, losses in sorted(self.compared().items())]

    def ranking(self) -> list[Setting]:
        """Return the settings that take part, the best first."""
        losses = {setting: loss for settings in self.compared().values() for setting, loss in settings.items()}
        return sorted(losses, key=losses.__getitem__)

    def fresh(self, setting: Setting) -> dict[int, float]:
        """Return the losses of a setting at the seeds that took no part in its choice."""
        chose = self.chose(setting)
        by_seed = self.losses[setting].items()
        return {seed: loss for seed, loss in by_seed if seed not in chose and loss is not None}

    def chose(self, setting: Setting) -> frozenset[int]:
        """Return the seeds that took part in the choice of a setting: none where no other took part."""
        choices = self._choices()
        return choices[setting.batch][setting] if sum(map(len, choices.values())) > 1 else frozenset()

    def takes_fresh(self, setting: Setting) -> bool:
        """Whether one more seed of the setting would take no part in its choice: not where others have none of its."""
        one_more = {**self.losses, setting: {**self.losses[setting], _NO_SEED: 0.0}}
        return _NO_SEED not in Results(one_more).chose(setting)

    def _choices(self) -> dict[int, dict[Setting, frozenset[int]]]:
        points: dict[int, dict[Setting, Tried]] = {}
        for setting, by_seed in self.losses.items():
            seeds = frozenset(seed for seed, loss in by_seed.items() if loss is not None)
            points.setdefault(setting.batch, {})[setting] = Tried(seeds, None in by_seed.values())
        return choosing_seeds(points)[0]


def _mean(by_seed: Mapping[int, float | None], seeds: Iterable[int]) -> float:
    values: Sequence[float] = [loss for seed in seeds if (loss := by_seed[seed]) is not None]
    return sum(values) / len(values)
