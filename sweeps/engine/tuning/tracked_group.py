"""One group of a study as it is now, and the runs that rules ask of it."""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

from sweeps.engine.tuning.group_verdict import Verdict
from sweeps.engine.tuning.study import Group, Place, Results, Setting


@dataclass(frozen=True)
class Addition:
    """A run that a rule asks for."""

    place: Place
    like: str
    """Name of a run of the sweep that differs from it in extended keys and the seed alone."""
    why: str


@dataclass
class TrackedGroup:
    """One group as it is now."""

    group: Group
    results: Results = field(default_factory=Results)
    runs: dict[Setting, str] = field(default_factory=dict)
    """The first run of each setting."""
    pending: set[str] = field(default_factory=set)
    of_file: set[Setting] = field(default_factory=set)
    num_added: int = 0
    is_new: bool = True
    """Whether it has changed since it was last looked at."""
    verdict: Verdict | None = None
    blocked: str = ""
    """Why nothing can be added to it."""

    def at_seeds(self, setting: Setting, seeds: Iterable[int], why: str) -> list[Addition]:
        """Return the setting at those of the seeds that it has not been run with."""
        known = self.results.losses[setting]
        return [
            Addition(Place(self.group.id, setting, seed), self.runs[setting], why)
            for seed in seeds
            if seed not in known
        ]


def by_place(additions: Iterable[Addition]) -> dict[Place, Addition]:
    return {addition.place: addition for addition in additions}


def first_seeds(count: int, of_file: Sequence[int]) -> list[int]:
    """So many seeds, those of the sweep file first."""
    return [*of_file, *fresh_seeds(count, of_file)][:count]


def fresh_seeds(count: int, used: Iterable[int]) -> list[int]:
    """The smallest seeds that are not used."""
    taken = set(used)
    return list(itertools.islice((seed for seed in itertools.count() if seed not in taken), count))
