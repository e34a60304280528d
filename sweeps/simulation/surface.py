"""Planted loss surfaces, on which a simulated sweep goes on by its results: where the optimum lies is known."""

from __future__ import annotations

import dataclasses
import hashlib
import math
import random
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from sweeps.engine.cluster_config import ClusterConfig
from sweeps.engine.tuning.study import BATCH, Axis, Coordinates, Group, Place, Setting, Study
from sweeps.engine.work import Attempt, Work
from sweeps.trials import Trials


@dataclass(frozen=True)
class Surface:
    """Loss over the positions of a group's lattice: quadratic in the logarithms of rates and batch."""

    seed: int
    rates: tuple[float, ...]
    batch: float
    """Positions of the optimum."""
    slope: float
    """Positions that the best rates move by, for each of the batch."""
    rate_curvature: float
    batch_curvature: float
    """Relative loss at one position from the optimum."""
    plateau: float
    """Half-width, in positions of the batch, of a valley's flat bottom."""
    cliff: float
    """Positions above the best rate from which on runs diverge; infinite where none do."""
    noise: float
    """Standard deviation of the relative loss between runs."""

    @classmethod
    def planted(cls, seed: int, group: Group, rate_reach: float = math.inf, batch_reach: float = math.inf) -> Surface:
        """A random one: the optimum lies on the lattice, at most so many positions from the middle of the file's."""
        draw = random.Random(f"{seed} {group.label}")
        return cls(
            seed=seed,
            rates=tuple(_optimum(draw, axis, rate_reach) for axis in group.axes),
            batch=_optimum(draw, group.batches, batch_reach),
            slope=draw.uniform(0, 1),
            rate_curvature=10 ** draw.uniform(-2.5, -1.5),
            batch_curvature=10 ** draw.uniform(-2.7, -2),
            plateau=draw.choice([0.0, 0.0, 1.0]),
            cliff=draw.choice([math.inf, draw.uniform(0.6, 4)]),
            noise=draw.choice([0.0, 0.0004, 0.001]),
        )

    def curve(self, setting: Setting, seed: int, share: float) -> float:
        """Training loss of a run at a share of its budget: it falls by a power to its measured loss. From any share on
        some gain up to twice as much as others, so that curves cross; infinite where the run diverges."""
        gain = random.Random(f"{self.seed} gain {setting} {seed}").uniform(0.3, 0.6)
        return self.measured(setting, seed) + gain * (1 / math.sqrt(share) - 1)

    def true_loss(self, setting: Setting) -> float:
        """Infinite where runs diverge."""
        shift = self.slope * (setting.batch - self.batch)
        apart = [at - best - shift for at, best in zip(setting.at, self.rates, strict=True)]
        if any(distance > self.cliff for distance in apart):
            return math.inf
        from_valley = max(0.0, abs(setting.batch - self.batch) - self.plateau)
        rise = self.rate_curvature * sum(distance**2 for distance in apart) + self.batch_curvature * from_valley**2
        return 3 * (1 + rise)

    def measured(self, setting: Setting, seed: int) -> float:
        """With the noise of that run; infinite where it diverges."""
        return self.true_loss(setting) * (1 + random.Random(f"{self.seed} {setting} {seed}").gauss(0, self.noise))


def _optimum(draw: random.Random, axis: Axis, reach: float) -> float:
    """A position with two values on either side, where the lattice has so many."""
    if not axis.grows:
        return draw.uniform(axis.first, axis.last)
    middle, last = (axis.first + axis.last) / 2, len(axis.values) - 1
    low, high = max(min(2, last / 2), middle - reach), min(max(last - 2, last / 2), middle + reach)
    return draw.uniform(low, high)


class PlantedTrials(Trials):
    """The runs of a study on surfaces, one for each group."""

    def __init__(self, study: Study, seed: int) -> None:
        self.study = study
        self.surfaces = {group.id: Surface.planted(seed, group) for group in study.groups}
        self._places = dict(study.places)
        self.share_of: Callable[[Work], float] = lambda work: 0.0
        """How far a run has come; the simulation's."""

    def learn(self, place: Place) -> str:
        """Take in a run that was added there; return its name."""
        name = hashlib.sha256(repr(place).encode()).hexdigest()[:12]
        self._places[name] = place
        return name

    def final_loss(self, work: Work) -> float | None:
        place = self._places[work.name]
        return self.surfaces[place.group].measured(place.setting, place.seed)

    def losses_at(self, work: Work, shares: Sequence[str]) -> dict[str, float]:
        place = self._places[work.name]
        surface, done = self.surfaces[place.group], self.share_of(work)
        found = {
            share: surface.curve(place.setting, place.seed, float(share)) for share in shares if float(share) <= done
        }
        return {share: loss for share, loss in found.items() if loss < math.inf}

    def note_stop(self, attempt: Attempt, why: str) -> None: ...

    def derived_work(self, module: str, like: Work, values: Mapping[str, Any], config: ClusterConfig) -> Work:
        before = self._places[like.name]
        numbers = {key: value for key, value in values.items() if key != "seed"}
        at = Coordinates(before.group, numbers, before.setting.others, values["seed"])
        place = self.study.place_of(at)
        assert place is not None
        name = self.learn(place)
        folder = like.folder.removesuffix(like.name) + name
        return dataclasses.replace(like, name=name, folder=folder, labels={**like.labels, BATCH: values[BATCH]})
