"""Sums over the runs of a sweep that a status shows, kept up to date run by run instead of counted anew."""

from __future__ import annotations

from collections import Counter
from dataclasses import astuple, dataclass, field
from typing import Any

from sweeps.engine.run_states import RunState
from sweeps.engine.works import Group, Shape, Works, group_of, shape_of


@dataclass
class Finished:
    """Runs of one group that this sweep has done: how long they took, and how long they were expected to."""

    count: int = 0
    actual_minutes: float = 0.0
    expected_minutes: float = 0.0

    @property
    def ratio(self) -> float:
        """Actual over expected; 1 where nothing is known."""
        return self.actual_minutes / self.expected_minutes if self.count and self.expected_minutes > 0 else 1.0


@dataclass
class Counters:
    """Counts of all runs, or of those that a person has chosen."""

    groups: dict[Group, Counter[str]] = field(default_factory=dict)
    """Runs by status, for each row of the table."""
    held: dict[str, dict[str, None]] = field(default_factory=dict)
    """Names of the runs that are held, by the reason, in the order they were held."""
    fresh: Counter[Shape] = field(default_factory=Counter)
    """Runs that wait and have never been tried, by shape, without branches."""
    tried: set[str] = field(default_factory=set)
    """Names of the others that wait."""
    left: dict[tuple[Group, Shape], float] = field(default_factory=dict)
    """Minutes first expected of the runs that are neither done nor held nor stopped early."""
    finished: dict[Group, Finished] = field(default_factory=dict)
    counts: Counter[str] = field(default_factory=Counter)
    """Runs by status."""
    resubmitted: int = 0
    """Attempts after the first."""

    def correction(self, group: Group) -> float:
        """What expected minutes of that group are to be multiplied with, by the finished runs of its group or else of
        all."""
        of_group = self.finished.get(group)
        return of_group.ratio if of_group is not None and of_group.count else self.finished_in_all.ratio

    @property
    def finished_in_all(self) -> Finished:
        found = self.finished.values()
        return Finished(
            sum(one.count for one in found),
            sum(one.actual_minutes for one in found),
            sum(one.expected_minutes for one in found),
        )

    @property
    def minutes_left(self) -> dict[Shape, float]:
        """Expected by now of the runs that are neither done nor held, attempts at work counted from their start."""
        minutes: dict[Shape, float] = {}
        for (group, shape), first_expected in self.left.items():
            minutes[shape] = minutes.get(shape, 0.0) + self.correction(group) * first_expected
        return minutes

    def add_fresh(self, works: Works) -> None:
        """Every piece of work, as none has been tried."""
        for position in range(len(works)):
            self._count(works.group(position), "waiting", 1)
            if works.names[position] in works.trunks:
                self.tried.add(works.names[position])
            else:
                self.fresh[works.shape(position)] += 1
            self._leaves(works.group(position), works.shape(position), works.minutes(position))

    def add(self, run: RunState, sign: int = 1) -> None:
        """Counts the run in; out again with -1, before it changes."""
        group, shape, status = group_of(run.work), shape_of(run.work), run.status
        self._count(group, status, sign)
        if status == "waiting" and not run.attempts and run.work.trunk is None:
            self.fresh[shape] += sign
        elif status == "waiting":
            (self.tried.add if sign > 0 else self.tried.discard)(run.work.name)
        if run.held is not None and status == "held":
            names = self.held.setdefault(run.held, {})
            if sign > 0:
                names[run.work.name] = None
            else:
                names.pop(run.work.name, None)
                if not names:
                    del self.held[run.held]
        if status not in ("done", "held", "stopped"):
            self._leaves(group, shape, sign * run.work.need.expected_minutes)
        self.resubmitted += sign * max(0, len(run.attempts) - 1)
        if run.done and run.attempts:
            finished = self.finished.setdefault(group, Finished())
            finished.count += sign
            finished.actual_minutes += sign * run.minutes
            finished.expected_minutes += sign * run.work.need.expected_minutes

    def _count(self, group: Group, status: str, sign: int) -> None:
        self.groups.setdefault(group, Counter())[status] += sign
        self.counts[status] += sign

    def _leaves(self, group: Group, shape: Shape, minutes: float) -> None:
        self.left[group, shape] = self.left.get((group, shape), 0.0) + minutes

    def to_dict(self) -> dict[str, Any]:
        """As JSON holds it."""
        return {
            "groups": [[group, counts] for group, counts in self.groups.items()],
            "held": {why: list(names) for why, names in self.held.items()},
            "fresh": [[shape, count] for shape, count in self.fresh.items()],
            "tried": sorted(self.tried),
            "left": [[group, shape, minutes] for (group, shape), minutes in self.left.items()],
            "finished": [[group, *astuple(one)] for group, one in self.finished.items()],
            "counts": self.counts,
            "resubmitted": self.resubmitted,
        }

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> Counters:
        return cls(
            **{
                **values,
                "groups": {tuple(group): Counter(counts) for group, counts in values["groups"]},
                "held": {why: dict.fromkeys(names) for why, names in values["held"].items()},
                "fresh": Counter({_shape(shape): count for shape, count in values["fresh"]}),
                "tried": set(values["tried"]),
                "left": {(tuple(group), _shape(shape)): minutes for group, shape, minutes in values["left"]},
                "finished": {tuple(group): Finished(*sums) for group, *sums in values["finished"]},
                "counts": Counter(values["counts"]),
            }
        )


def _shape(values: list[int]) -> Shape:
    nodes, gpus, cpus = values
    return nodes, gpus, cpus
