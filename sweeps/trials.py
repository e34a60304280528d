"""What a sweep that goes on by its results learns of its runs, and how it makes more, as its ledger has both."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from muloco_runner.record import RunFolder
from sweeps.engine.cluster_config import ClusterConfig
from sweeps.engine.sweep_state import SweepState
from sweeps.engine.tuning.growth import Addition
from sweeps.engine.tuning.study import Study
from sweeps.engine.work import Attempt, Work
from sweeps.node.reports import derived_work, final_loss, losses_at


class Trials:
    """The runs of a study, by what they leave in their folders; simulations plant both."""

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
