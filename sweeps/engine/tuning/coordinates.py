"""`tune: coordinates`: one hyper-parameter at a time around the best setting so far.

A pure function of the results so far. It walks from the best setting of the sweep's file, over the keys in their order,
the batch last: the values on either side of the best one are tried, the other keys as they are in the best setting.
Where the better of the two improves the loss by more than the threshold it is the best so far, and its side is followed
value by value while each improves by more than that. The walk is over once this holds for no key any more. Each look
walks anew from the start, and asks for the first settings on its way that have no result: so the ledger's results
alone say where it is.

By hand this is how the optimizers of arXiv 2509.02046 were tuned, over lists of values that are the same for all.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator

from muloco_runner.record import best_of
from sweeps.engine.tuning.group_verdict import Verdict, Wanted
from sweeps.engine.tuning.study import Axis, Group, Results, Setting, TuneRule, moved


def tuning_verdict(group: Group, results: Results, of_file: Collection[Setting], rule: TuneRule) -> Verdict:
    """Return what the walk lacks; all runs that the group holds must have ended. `of_file` are the file's settings."""
    losses = {setting: loss for settings in results.compared().values() for setting, loss in settings.items()}
    start = best_of({setting: loss for setting, loss in losses.items() if setting in of_file})
    if start is None:
        return Verdict([], ["no run of the file has a loss to begin from"])
    return _Walk(group, results, losses, rule, start).verdict()


class _Walk:
    """One walk from the file's best setting as far as results reach."""

    def __init__(
        self, group: Group, results: Results, losses: dict[Setting, float], rule: TuneRule, start: Setting
    ) -> None:
        self.group, self.rule, self.losses, self.best = group, rule, losses, start
        self.tried = results.losses
        batches: list[int | None] = [None] if group.batches.grows else []
        self.keys = [*range(len(group.axes)), *batches]
        """Numbers of axes; None is the batch."""

    def verdict(self) -> Verdict:
        settled, number = 0, 0
        while settled < len(self.keys):
            key = self.keys[number % len(self.keys)]
            before = self.best
            missing = self._settle(key)
            if missing:
                return Verdict([self._wanted(key, setting) for setting in missing], [])
            settled = settled + 1 if self.best == before else 1
            number += 1
        ends = list(self._ends())
        at_end = f"; at the end of its values: {', '.join(ends)}" if ends else ""
        best = f"no value beside the best ({self._values()})"
        return Verdict([], [], f"{best} improves the loss by more than {self.rule.threshold:g}{at_end}")

    def _settle(self, key: int | None) -> list[Setting]:
        """Follows one key to where it improves nothing any more; returns what has no result on the way there."""
        sides = [setting for direction in (-1, 1) for setting in self._beside(key, direction)]
        missing = [setting for setting in sides if setting not in self.tried]
        if missing:
            return missing
        better = best_of({setting: self.losses[setting] for setting in sides if self._improves(setting)})
        if better is None:
            return []
        direction = 1 if _at(better, key) > _at(self.best, key) else -1
        self.best = better
        for setting in self._beyond(key, direction):
            if setting not in self.tried:
                return [setting]
            if not self._improves(setting):
                break
            self.best = setting
        return []

    def _improves(self, setting: Setting) -> bool:
        """By more than the threshold. What diverged does not."""
        loss = self.losses.get(setting)
        return loss is not None and self.losses[self.best] - loss > self.rule.threshold

    def _beside(self, key: int | None, direction: int) -> list[Setting]:
        """The next value, where there is one."""
        return list(self._beyond(key, direction))[:1]

    def _beyond(self, key: int | None, direction: int) -> Iterator[Setting]:
        """All further values of the key on that side of the best."""
        here = _at(self.best, key)
        end = len(self._axis(key).values) if direction > 0 else -1
        best = self.best
        return (_with(best, key, position) for position in range(here + direction, end, direction))

    def _axis(self, key: int | None) -> Axis:
        return self.group.batches if key is None else self.group.axes[key]

    def _wanted(self, key: int | None, setting: Setting) -> Wanted:
        text = self._axis(key).text(_at(setting, key))
        why = f"{text} is the next value beside the best so far ({self._values()}: loss {self.losses[self.best]:.4f})"
        return Wanted(setting, self.best, why)

    def _values(self) -> str:
        values = [self._axis(key).text(_at(self.best, key)) for key in self.keys]
        return ", ".join(values) or "it has none of the keys"

    def _ends(self) -> Iterator[str]:
        for key in self.keys:
            axis, here = self._axis(key), _at(self.best, key)
            if here in (0, len(axis.values) - 1) and len(axis.values) > 1:
                yield axis.text(here)


def _at(setting: Setting, key: int | None) -> int:
    return setting.batch if key is None else setting.at[key]


def _with(setting: Setting, key: int | None, position: int) -> Setting:
    return setting._replace(batch=position) if key is None else moved(setting, key, position)
