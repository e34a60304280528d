"""What a sweep learns of its own runs, and how it begins runs from others: by results, and from checkpoints."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from muloco_runner.config import ConfigError
from muloco_runner.record import RunFolder
from sweeps.engine.cluster_config import ClusterConfig
from sweeps.engine.run_states import RunState
from sweeps.engine.sweep_state import SweepState
from sweeps.engine.tuning.study import Study
from sweeps.engine.tuning.tracked_group import Addition
from sweeps.engine.work import ITS_TRUNK, Attempt, Work
from sweeps.node.reports import begin_branch, derived_work, final_loss, losses_at


class Trials:
    """The runs of a sweep, by what they leave in their folders; simulations plant that."""

    def begin_branch(self, work: Work) -> bool:
        """Whether a branch has what it goes on from, which it is given here where its trunk has come so far.

        Raises `ConfigError` where that cannot be.
        """
        return begin_branch(work)

    def branches_that_wait_no_longer(self, state: SweepState) -> tuple[list[str], dict[str, list[str]]]:
        """Return the names of branches that have what they go on from, and of those that never will as things stand,
        by the reason."""
        ready: list[str] = []
        never: dict[str, list[str]] = {}
        for trunk, names in state.behind.items():
            # One that was never tried has left nothing.
            for name in sorted(names) if state.runs.is_known(trunk) else ():
                run = state.runs[name]
                if not run.is_waiting:
                    continue
                try:
                    if self.begin_branch(run.work):
                        ready.append(name)
                        continue
                    why = _why_never(state.runs[trunk], run.work)
                except ConfigError as error:
                    why = f"{ITS_TRUNK}{trunk} does not lead to it: {error}"
                if why is not None:
                    never.setdefault(why, []).append(name)
        return ready, never

    def final_loss(self, work: Work) -> float | None:
        """Infinite where the run diverged; None where there is no result."""
        return final_loss(work)

    def losses_at(self, work: Work, shares: Sequence[str]) -> dict[str, float]:
        """Training losses at those shares of the budget that the run has come to (`sweeps.engine.tuning.halving`)."""
        return losses_at(work, shares)

    def note_stop(self, attempt: Attempt, why: str) -> None:
        """Leave word for reports, which do not know of sweeps, that the run was stopped early."""
        RunFolder(attempt.work.folder).write_early_stop(attempt.number, why)

    def derived_work(self, module: str, like: Work, values: Mapping[str, Any], config: ClusterConfig) -> Work:
        """A run that differs from another in these values. Raises `ConfigError` where there is none."""
        return derived_work(module, like, values, config)

    def new_losses(self, state: SweepState) -> dict[str, float | None]:
        """Return the losses of runs that are done and have none in the state, by name; None for those that diverged."""
        found = {name: self.final_loss(state.runs[name].work) for name in sorted(state.unscored)}
        return {name: loss if loss < math.inf else None for name, loss in found.items() if loss is not None}

    def added(self, addition: Addition, study: Study, state: SweepState, config: ClusterConfig) -> dict[str, Any]:
        """Return a run to be added, its folder written. Raises `ConfigError` where there is none."""
        at = study.coordinates_of(addition.place)
        like = state.runs[addition.like].work
        work = self.derived_work(study.derives, like, {**at.values, "seed": at.seed}, config)
        return {"work": work.to_dict(), **at._asdict(), "why": addition.why}


def _why_never(trunk: RunState, branch: Work) -> str | None:
    """Why the trunk will not leave the branch's checkpoint; None where it may."""
    assert branch.trunk is not None
    name, step = trunk.work.name, branch.trunk.step
    if trunk.held is not None:
        return f"{ITS_TRUNK}{name} is held before its checkpoint of step {step:,} ({trunk.held}): `retry` that one"
    return branch.trunk.missing_words if trunk.done else None
