"""`extend`: which runs a group of settings lacks for its optimum to be interior and its critical batch bracketed.

A pure function of the results so far. It is asked once all runs of the group have ended, so that what it adds does not
depend on which ended first. In this order, what is asked first is added alone:

Where the best setting lies on the edge of what was tried, in its batch or any key, and the quadratic through the
settings nearest to it has its minimum beyond that, at most twice as far away as they reach, that setting comes first.
Else:

1. At the best batch, `margin` points of the lattice lie on each side of the best value of every key; other keys keep
   the best setting's values. A value beyond which nothing was tried lies on the edge: the grid goes on there by one
   step, then by steps that double while the newest stays best; then what was leapt over beside the best is filled in.
2. The same at the `margin` batches on either side of the best. A batch that was not tried gets the rates around its
   neighbour's best: that setting, and `margin` points on each side of it for every key.
3. The same at ever larger batches until the best loss at one is more than 1% above the best of all.

Where batches are not extended, 1. holds at each batch of the file.

A diverged run is a value that was tried: a cliff is an edge that brackets. Where all settings of a batch diverged the
first key's values go down.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping

from muloco_runner.record import PLATEAU, best_of, steps_beyond
from sweeps.engine.tuning.group_verdict import Verdict, Wanted
from sweeps.engine.tuning.quadratic import minimum, num_coefficients
from sweeps.engine.tuning.study import Axis, ExtendRule, Group, Results, Setting, moved


def verdict_on(group: Group, results: Results, rule: ExtendRule) -> Verdict:
    """Return what the group lacks by the rule; all runs that it holds must have ended."""
    look = _Look(group, results, rule)
    if not look.tried:
        return Verdict([], [])
    return look.verdict()


class _Look:
    """One look at the results of a group."""

    def __init__(self, group: Group, results: Results, rule: ExtendRule) -> None:
        self.group, self.rule = group, rule
        self.tried = results.losses
        self.tried_at: dict[int, list[Setting]] = {batch: [] for batch in sorted({one.batch for one in self.tried})}
        for setting in self.tried:
            self.tried_at[setting.batch].append(setting)
        compared = results.compared()
        self.losses: Mapping[Setting, float] = {
            setting: loss for settings in compared.values() for setting, loss in settings.items()
        }
        self.best_at = {
            batch: best for batch in self.tried_at if (best := best_of(compared.get(batch, {}))) is not None
        }
        self.bounds: dict[str, None] = {}

    def verdict(self) -> Verdict:
        best = best_of(self.losses)
        if best is None:
            return self._answer(list(self._below_the_cliff(min(self.tried_at))))
        if not self.group.batches.grows:
            return self._answer([one for batch in self.tried_at for one in self._around(batch)])
        return self._answer(
            self._where_a_quadratic_is_lowest(best)
            or list(self._around(best.batch))
            or self._beside(best.batch)
            or list(self._until_risen(best.batch))
        )

    def _answer(self, wanted: list[Wanted]) -> Verdict:
        first = {one.setting: one for one in reversed(wanted) if one.setting not in self.tried}
        return Verdict(list(reversed(first.values())), list(self.bounds))

    def _where_a_quadratic_is_lowest(self, best: Setting) -> list[Wanted]:
        """One setting beyond all that was tried; none where the best is no edge, or its surroundings tell of none."""
        alike = {setting: _coordinates(setting) for setting in self.losses if setting.others == best.others}
        ends = [(min(values), max(values)) for values in zip(*alike.values(), strict=True)]
        centre = alike[best]
        if all(low < here < high for here, (low, high) in zip(centre, ends, strict=True)):
            return []
        near = sorted(alike, key=lambda one: math.dist(alike[one], centre))[: 2 * num_coefficients(len(centre))]
        points = [[a - b for a, b in zip(alike[one], centre, strict=True)] for one in near]
        # Relative to the best loss, as it is for all settings.
        found = minimum(points, [self.losses[one] / self.losses[best] - 1 for one in near])
        if found is None:
            return []
        reach = [2 * (max(values) - min(values)) for values in zip(*points, strict=True)]
        axes = [self.group.batches, *self.group.axes]
        at = [
            min(max(round(here + min(max(step, -most), most)), 0), len(axis.values) - 1)
            for here, step, most, axis in zip(centre, found, reach, axes, strict=True)
        ]
        there = best._replace(batch=at[0], at=tuple(at[1:]))
        # It may have been tried and have diverged.
        if there in self.tried or all(low <= one <= high for one, (low, high) in zip(at, ends, strict=True)):
            return []
        why = (
            f"{axes[0].text(best.batch)} with {self._values(best)} was best and is an edge, and the quadratic through "
            f"the {len(near)} settings nearest to it is lowest there, or that is as far as they tell"
        )
        return [Wanted(there, best, why)]

    def _beside(self, batch: int) -> list[Wanted]:
        """What the batches on either side of the best lack."""
        found: list[Wanted] = []
        for direction in (-1, 1):
            gaps = [abs(other - batch) for other in self.tried_at if direction * (other - batch) > 0]
            if not gaps or min(gaps) > self.rule.margin + 1:
                found += self._leap(batch, direction, min(gaps, default=None))
                continue
            for distance in range(1, self.rule.margin + 1):
                more = list(self._at(batch + direction * distance, batch + direction * (distance - 1), batch))
                found += more
                if more:
                    break
        return found

    def _leap(self, best: int, direction: int, gap: int | None) -> Iterator[Wanted]:
        """One run at a batch beyond the edge, or in a gap that was leapt over: more follow where it is worth them."""
        axis, centre = self.group.batches, self.best_at[best]
        where = f"{axis.text(best)} was best and"
        if gap is None:
            batch = _next(axis, best, direction, {n: self.losses[one] for n, one in self.best_at.items()})
            where = f"{where} is the grid's edge"
            if batch == best:
                self._bound(f"{axis.text(best)} was best and is {axis.end_words(direction)}")
                return
        else:
            batch, where = best + direction, f"{where} what lies beside it was leapt over"
        why = f"{where}; the rest is as was best there ({self._values(centre)})"
        yield Wanted(centre._replace(batch=batch), centre, why)

    def _until_risen(self, best: int) -> Iterator[Wanted]:
        batch = best
        while self._is_good(batch, best):
            batch += 1
            more = list(self._at(batch, batch - 1, best))
            if more or batch >= len(self.group.batches.values):
                yield from more
                return

    def _is_good(self, batch: int, best: int) -> bool:
        """Whether the best loss at the batch is within the plateau. Where all diverged the curve has risen."""
        here = self.best_at.get(batch)
        return here is not None and self.losses[here] <= PLATEAU * self.losses[self.best_at[best]]

    def _at(self, batch: int, neighbour: int, best: int) -> Iterator[Wanted]:
        """What one batch lacks, beside one that lacks nothing."""
        axis = self.group.batches
        if not 0 <= batch < len(axis.values):
            what = "is best" if neighbour == best else "is within 1% of the best"
            self._bound(f"{axis.text(neighbour)} {what} and {axis.end_words(-1 if batch < 0 else 1)}")
        elif self._is_far_off(batch, neighbour):
            yield from self._new_batch(batch, neighbour, best)
        else:
            yield from self._around(batch)

    def _is_far_off(self, batch: int, neighbour: int) -> bool:
        """Whether nothing was tried at the batch, or its best lies on an edge with its neighbour's best beyond."""
        here, there = self.best_at.get(batch), self.best_at[neighbour]
        settings = self.tried_at.get(batch, [])
        if here is None:
            return there._replace(batch=batch) not in settings
        for number, (own, other) in enumerate(zip(here.at, there.at, strict=True)):
            tried = [setting.at[number] for setting in settings]
            if own == min(tried) > other or own == max(tried) < other:
                return True
        return False

    def _new_batch(self, batch: int, neighbour: int, best: int) -> Iterator[Wanted]:
        axis, centre = self.group.batches, self.best_at[neighbour]
        if neighbour != best:
            reason = f"the loss at {axis.text(neighbour)} is within 1% of the best"
        elif batch < min(self.tried_at) or batch > max(self.tried_at):
            reason = f"{axis.text(neighbour)} was best and is the grid's edge"
        else:
            reason = f"{axis.text(neighbour)} was best and its neighbour was not tried"
        why = f"{reason}; the rates are those around the best there ({self._values(centre)})"
        yield Wanted(centre._replace(batch=batch), centre, why)
        for number, own in enumerate(self.group.axes):
            for distance in range(1, self.rule.margin + 1):
                for direction in (-1, 1):
                    position = centre.at[number] + direction * distance
                    if 0 <= position < len(own.values):
                        yield Wanted(moved(centre, number, position)._replace(batch=batch), centre, why)

    def _around(self, batch: int) -> Iterator[Wanted]:
        """What the best setting of a batch lacks beside it."""
        best = self.best_at.get(batch)
        if best is None:
            yield from self._below_the_cliff(batch)
            return
        for number in range(len(self.group.axes)):
            for direction in (-1, 1):
                yield from self._beyond(best, number, direction)

    def _beyond(self, best: Setting, number: int, direction: int) -> Iterator[Wanted]:
        """What lacks on one side of the best value of one key."""
        axis, here = self.group.axes[number], best.at[number]
        line = self._line(best, number)
        where = f"{axis.text(here)} was best at {self.group.batches.text(best.batch)}"
        beyond = [position for position in line if direction * (position - here) > 0]
        if not beyond:
            losses = {position: self.losses[one] for position, one in line.items() if one in self.losses}
            position = _next(axis, here, direction, losses)
            if position == here:
                self._bound(f"{where} and is {axis.end_words(direction)}")
                return
            yield Wanted(moved(best, number, position), best, f"{where} and is the grid's edge")
            return
        gap = min(abs(position - here) for position in beyond)
        if gap > self.rule.margin + 1:
            # Leapt over: halved until the best has neighbours.
            position = here + direction * (gap // 2)
            yield Wanted(moved(best, number, position), best, f"{where} and what lies beside it was leapt over")
            return
        for distance in range(1, self.rule.margin + 1):
            position = here + direction * distance
            if not 0 <= position < len(axis.values):
                return
            if position not in line:
                yield Wanted(moved(best, number, position), best, f"{where} and its neighbour was not tried")
            elif line[position] not in self.losses:
                # A cliff: nothing is to be found behind it.
                return

    def _below_the_cliff(self, batch: int) -> Iterator[Wanted]:
        """Lower values of the first key, where all settings of a batch diverged."""
        if not self.group.axes:
            return
        lowest = min(self.tried_at[batch], key=lambda setting: setting.at[0])
        axis, here = self.group.axes[0], lowest.at[0]
        line = self._line(lowest, 0)
        # As far again as was tried in vain: far below a cliff lies nothing to be found either.
        position = max(0, here - max(1, max(line) - here))
        where = f"all runs at {self.group.batches.text(batch)} diverged"
        if position == here:
            self._bound(f"{where}, and {axis.text(here)} is {axis.end_words(-1)}")
            return
        yield Wanted(moved(lowest, 0, position), lowest, f"{where}, down to {axis.text(here)}")

    def _line(self, setting: Setting, number: int) -> dict[int, Setting]:
        """What was tried that differs from a setting in one key alone, by its position there."""
        alike = moved(setting, number, 0)
        return {one.at[number]: one for one in self.tried_at[setting.batch] if moved(one, number, 0) == alike}

    def _values(self, setting: Setting) -> str:
        found = [axis.text(at) for axis, at in zip(self.group.axes, setting.at, strict=True)]
        return ", ".join(found) or "as there"

    def _bound(self, why: str) -> None:
        self.bounds[why] = None


def _next(axis: Axis, here: int, direction: int, losses: Mapping[int, float]) -> int:
    """The position beyond an edge, within the bounds."""
    end = axis.last if direction > 0 else axis.first
    position = here + direction * steps_beyond(here, losses, is_added=direction * (here - end) > 0)
    return min(max(position, 0), len(axis.values) - 1)


def _coordinates(setting: Setting) -> tuple[int, ...]:
    return (setting.batch, *setting.at)
