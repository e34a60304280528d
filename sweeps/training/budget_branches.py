"""`branches:` of a sweep file and of the command line: budgets that are decayed from the checkpoints of one run.

    branches: {tokens_per_parameter: [5, 10, 20, 40]}

Of each point of the grids the run of the largest budget is the trunk. The others go on from the last of its steps whose
learning rate is theirs too, so that each ends to the bit as if it had been asked for at once
(`muloco_runner.inference.continuation`).
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from muloco_runner.config import ConfigError, RunConfig
from muloco_runner.inference.continuation import has_begun, prepare_continuation
from muloco_runner.record import AlreadyRunning, RunFolder
from sweeps.engine.work import Trunk, Work
from sweeps.engine.works import Works
from sweeps.grid import read_grids
from sweeps.node.disk_space import is_disk_full
from sweeps.store.folder import SweepFolder
from sweeps.training.model_names import model_name

BUDGET = "tokens_per_parameter"
_KEY = "branches"
_EXAMPLE = "branches: {tokens_per_parameter: [5, 10, 20, 40]}"


@dataclass(frozen=True)
class Branching:
    """How the runs of a sweep branch: trunks of branches, and steps that trunks keep, by the runs' ids."""

    trunks: Mapping[str, Trunk]
    steps: Mapping[str, Sequence[int]]


def split_branches(
    sweep: Mapping[str, Any], overrides: Mapping[str, list[Any]]
) -> tuple[dict[str, Any], dict[str, list[Any]], bool]:
    """Return the sweep and the overrides with the budgets as one more factor of its grids, and whether it branches.

    Mistakes raise `ConfigError`.
    """
    plain = {key: value for key, value in sweep.items() if key != _KEY}
    rest = {path: values for path, values in overrides.items() if path.partition(".")[0] != _KEY}
    budgets = _budgets(sweep.get(_KEY), {path: values for path, values in overrides.items() if path not in rest})
    if budgets is None:
        return plain, rest, False
    own = _own_budgets(plain, rest)
    if len(own) > 1:
        raise ConfigError(
            f"branches: the sweep varies {BUDGET} itself ({_listed(own)}): give the trunk's budget alone there"
        )
    beyond = [budget for budget in budgets if own and budget > own[0]]
    if beyond:
        raise ConfigError(
            f"branches: {_listed(beyond)} tokens a parameter are beyond the trunk's {own[0]:g}: raise {BUDGET} to "
            f"{max(beyond):g}, or leave them out"
        )
    budgets = sorted({*budgets, *own})
    if len(budgets) < 2:
        raise ConfigError(
            f"branches: {budgets[0]:g} tokens a parameter alone are no branches: give several, {_EXAMPLE}"
        )
    return plain, {**rest, BUDGET: budgets}, True


def _budgets(of_file: Any, overrides: Mapping[str, list[Any]]) -> list[float] | None:
    """The budgets that are asked for; None where none are."""
    given = of_file
    for path, values in overrides.items():
        if len(values) != 1:
            raise ConfigError(f"{path}: give the budgets as one list: 'branches.{BUDGET}=[5,10,20,40]'")
        below = path.partition(".")[2]
        given = {**(given or {}), below: values[0]} if below else values[0]
    if given is None or given is False:
        return None
    if not isinstance(given, Mapping) or list(given) != [BUDGET]:
        raise ConfigError(f"branches={given}: give the budgets, {_EXAMPLE}")
    budgets = given[BUDGET]
    if not isinstance(budgets, list) or not budgets or not all(map(_is_budget, budgets)):
        raise ConfigError(f"branches.{BUDGET}={budgets}: give a list of positive numbers, {_EXAMPLE}")
    return [float(budget) for budget in budgets]


def _is_budget(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and 0 < value < math.inf


def _own_budgets(sweep: Mapping[str, Any], overrides: Mapping[str, list[Any]]) -> list[float]:
    """The budgets that the grids, narrowed, name themselves."""
    grids = read_grids(sweep, overrides)
    if any(BUDGET in grid.zip for grid in grids):
        raise ConfigError(f"branches: {BUDGET} stands in a zip: give it outside, once, as the trunk's budget")
    given = [[*grid.product.get(BUDGET, ()), *([grid.fixed[BUDGET]] if BUDGET in grid.fixed else ())] for grid in grids]
    if any(given) and not all(given):
        raise ConfigError(
            f"branches: {BUDGET} is given for some points of the sweep alone: give it for all, or for none"
        )
    return sorted({float(budget) for budgets in given for budget in budgets})


def _listed(budgets: Sequence[float]) -> str:
    return ", ".join(f"{budget:g}" for budget in budgets)


def branching_of(runs: Sequence[RunConfig]) -> Branching:
    """How these runs, which differ in their budgets among other things, branch. Mistakes raise `ConfigError`."""
    points: dict[str, list[RunConfig]] = {}
    for run in runs:
        values = {key: value for key, value in run.to_dict().items() if key != BUDGET}
        points.setdefault(json.dumps(values, sort_keys=True), []).append(run)
    budgets = {run.tokens_per_parameter for run in runs}
    trunks: dict[str, Trunk] = {}
    steps: dict[str, list[int]] = {}
    for of_point in points.values():
        if len(of_point) != len(budgets):
            raise ConfigError(
                f"branches: {_name(of_point[0])} differs from the runs of other budgets in more than {BUDGET}, or some "
                "budgets are excluded there: what goes on from one run is that run with another budget"
            )
        *branches, trunk = sorted(of_point, key=lambda run: run.tokens_per_parameter)
        for branch in branches:
            trunks[branch.run_id] = made = _trunk_of(branch, trunk)
            steps.setdefault(trunk.run_id, []).append(made.step)
    return Branching(trunks, {run: sorted(set(found)) for run, found in steps.items()})


def _name(run: RunConfig) -> str:
    return f"{run.algorithm} at {model_name(run.num_params)} with {run.tokens_per_parameter:g} tokens a parameter"


def _trunk_of(branch: RunConfig, trunk: RunConfig) -> Trunk:
    """Where the branch leaves the trunk."""
    stable = branch.schedule.stable_until(branch.num_steps)
    if stable is None:
        raise ConfigError(
            f"branches: schedule={branch.schedule.name} has no stable phase that runs of several budgets could share: "
            "use schedule=wsd"
        )
    if branch.warmup_steps != trunk.warmup_steps:
        raise ConfigError(
            f"branches: {_name(branch)} warms up for {branch.warmup_steps} steps, its trunk for {trunk.warmup_steps}: "
            "set schedule.max_warmup_fraction=1, and schedule.warmup_steps for the smallest budget"
        )
    if branch.num_steps == trunk.num_steps:
        raise ConfigError(f"branches: {_name(branch)} has {branch.num_steps} steps, as many as its trunk: leave it out")
    step = min(stable, branch.num_steps - 1)
    if step <= branch.warmup_steps:
        raise ConfigError(
            f"branches: {_name(branch)} has {branch.num_steps} steps, of which {branch.warmup_steps} of warm-up and "
            f"{branch.num_steps - step + 1} of decay leave none that are stable: shorten these, or leave it out"
        )
    return Trunk(trunk.run_id, step, step / trunk.num_steps, step / branch.num_steps)


def branched(works: Sequence[Work], branching: Branching) -> list[Work]:
    """The same works: branches know their trunk and expect what is left to do, trunks keep the steps that they need."""
    return [_branched(work, branching) for work in works]


def _branched(work: Work, branching: Branching) -> Work:
    trunk = branching.trunks.get(work.name)
    if trunk is not None:
        return replace(work.expecting(work.need.expected_minutes * (1 - trunk.spared)), trunk=trunk)
    execution = {**work.arguments["execution"], "branch_steps": list(branching.steps[work.name])}
    return replace(work, arguments={**work.arguments, "execution": execution})


def begin_branch(work: Work) -> bool:
    """Whether the branch's folder has its trunk's checkpoint, which is put there where the trunk has left it.

    Raises `ConfigError` where that cannot be.
    """
    assert work.trunk is not None
    child = RunFolder(work.folder)
    if has_begun(child):
        return True
    parent = RunFolder(child.path.with_name(work.trunk.run))
    if work.trunk.step not in parent.checkpoint_steps():
        return False
    try:
        budget = RunConfig.from_dict(child.read_config()).tokens_per_parameter
        made = prepare_continuation(parent, budget, work.trunk.step)
    except AlreadyRunning:
        # By another sweep, or by hand.
        return False
    except OSError as error:
        if is_disk_full(error):
            raise
        raise ConfigError(f"{error.filename or child.path}: {error.strerror}") from None
    if made.path != child.path:
        raise ConfigError(f"{parent.path} with {BUDGET}={budget:g} is run {made.run_id}, not {child.run_id}")
    return True


def is_lost(branch: Work) -> bool:
    """Whether its trunk has ended and what it was to go on from is not there."""
    if branch.trunk is None or has_begun(RunFolder(branch.folder)):
        return False
    parent = RunFolder(Path(branch.folder).with_name(branch.trunk.run))
    return parent.result_file.exists() and branch.trunk.step not in parent.checkpoint_steps()


def trunks_needed(root: Path) -> set[str]:
    """The runs under a root from whose checkpoints branches of its sweeps have yet to go on."""
    found: set[str] = set()
    for folder in SweepFolder.all_under(root):
        works = Works.of(folder.read_definition().works)
        found |= {trunk for name, trunk in works.trunks.items() if not has_begun(RunFolder.of(root, name))}
    return found
