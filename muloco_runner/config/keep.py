"""Which checkpoints of a run stay once it has ended: the values of `execution.keep`."""

from __future__ import annotations

import re
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import Any, Literal, assert_never

from muloco_runner.config.checks import ConfigError, require

KeepKind = Literal["none", "final", "last", "best", "best_of_sweep"]
_NAMES: dict[str, KeepKind] = {"none": "none", "final": "final", "best": "best", "best_of_sweep": "best_of_sweep"}
_LAST = re.compile(r"last_([1-9]\d*)")


@dataclass(frozen=True)
class Keep:
    """A value of `execution.keep`, read."""

    kind: KeepKind
    number: int = 1
    """Of the newest checkpoints that stay: N of last_N."""
    steps: tuple[int, ...] = ()
    """Those whose checkpoints stay besides, ascending."""

    @property
    def keeps_end(self) -> bool:
        """Whether the state after the last step is to be kept."""
        return self.kind in ("final", "last", "best_of_sweep")

    @property
    def most(self) -> int:
        """Checkpoints of a finished run, at most."""
        match self.kind:
            case "none":
                return len(self.steps)
            case "final" | "best" | "best_of_sweep" | "last":
                return self.number + len(self.steps)
            case unknown:
                assert_never(unknown)

    def after_end(self, steps: Sequence[int], best: int | None) -> set[int]:
        """Which of the checkpoints of a run that has ended stay. `steps` are theirs, ascending; `best` is the step of
        the lowest validation loss, None where there was none."""
        besides = set(steps) & set(self.steps)
        match self.kind:
            case "none":
                return besides
            case "final" | "last" | "best_of_sweep":
                return besides | set(steps[-self.number :])
            case "best":
                return besides | (set(steps) & {best})
            case unknown:
                assert_never(unknown)

    def check(self, num_steps: int) -> None:
        """A step that a run of so many steps does not reach raises `ConfigError`."""
        beyond = [step for step in self.steps if step > num_steps]
        require(
            not beyond,
            f"execution.keep={list(self.steps)}: step {', '.join(map(str, beyond))} is beyond the end of a run of "
            f"{num_steps} steps: leave it out",
        )


def read_keep(value: Any) -> Keep:
    """`execution.keep` as it was given. Anything else than it may be raises `ConfigError`."""
    if isinstance(value, str) and value in _NAMES:
        return Keep(_NAMES[value])
    if isinstance(value, str) and (last := _LAST.fullmatch(value)):
        return Keep("last", int(last[1]))
    if isinstance(value, Collection) and not isinstance(value, str | dict) and value:
        steps = list(value)
        if all(isinstance(step, int) and not isinstance(step, bool) and step > 0 for step in steps):
            return Keep("none", steps=tuple(sorted(set(steps))))
    raise ConfigError(
        f"execution.keep={value}: must be none, final, best, best_of_sweep, last_N such as last_3, or a list of steps "
        "such as [1000,2000]"
    )
