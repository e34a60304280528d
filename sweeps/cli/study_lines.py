"""What people are told of a sweep that goes on by its results: what it may become, and how it stands."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from sweeps.engine.sweep_state import SweepState
from sweeps.engine.tuning.growth import Growth
from sweeps.engine.tuning.study import Axis, Group, Study
from sweeps.formatting import plural

if TYPE_CHECKING:
    from sweeps.training.sweep import Sweep

_MOST_LINES = 12


def plan_lines(sweep: Sweep) -> Iterator[str]:
    """Yield the bounds of each kind of group, and the most that the sweep can become."""
    study = sweep.definition.study
    assert study is not None
    assert study.extend is not None
    rule = study.extend
    more = sum(most_added(study, group) for group in study.groups)
    yield (
        f"extend: from {plural(len(study.places), 'run')}, of {len(study.groups)} series and sizes, to at most "
        f"{len(study.places) + more:,}, until every best value has {plural(rule.margin, 'point')} on each side; "
        f"at most {rule.max_runs:,} more for each series and size"
    )
    found: dict[str, list[str]] = {}
    for group in study.groups:
        axes = [axis for axis in (*group.axes, group.batches) if axis.grows]
        found.setdefault("; ".join(_bounds(axis) for axis in axes), []).append(group.label)
    for bounds, labels in list(found.items())[:_MOST_LINES]:
        names = ", ".join(labels[:_MOST_LINES]) + (", ..." if len(labels) > _MOST_LINES else "")
        yield f"  {bounds}: {names}"
    yield "The hours above are those of the file's own runs; --max-gpu-hours caps all of them together"
    if sweep.folder.ledger_file.exists():
        yield from study_lines(study, state_so_far(sweep))


def state_so_far(sweep: Sweep) -> SweepState:
    """Return what the sweep's ledger says of it, as it is asked for now."""
    return sweep.folder.read_state(sweep.definition).state


def most_added(study: Study, group: Group) -> int:
    """Return the most runs that the lattice and the rule let a group take up."""
    assert study.extend is not None
    there = len({place.setting for place in study.places.values() if place.group == group.id})
    return min(study.extend.max_runs, max(0, group.most_settings - there) * len(group.seeds))


def _bounds(axis: Axis) -> str:
    own = f"{axis.values[axis.first]:.6g} to {axis.values[axis.last]:.6g}"
    return f"{axis.key} {own}, within {axis.values[0]:.6g} to {axis.values[-1]:.6g}"


def study_lines(study: Study, state: SweepState) -> Iterator[str]:
    """Yield how each group stands, and how many runs were added."""
    lines = list(Growth(study).lines(state))
    yield from lines[:_MOST_LINES]
    if len(lines) > _MOST_LINES:
        yield f"and {len(lines) - _MOST_LINES} more"
    yield f"extend: {plural(len(state.added), 'run')} added to {len(study.places)}"


def study_as_dict(study: Study, state: SweepState) -> dict[str, Any]:
    """Return the same for `--json`: runs of the file and added ones, the most there can be, how each group stands."""
    return {
        "runs": len(study.places),
        "added": len(state.added),
        "at_most": len(study.places) + sum(most_added(study, group) for group in study.groups),
        "groups": dict(line.split(": ", 1) for line in Growth(study).lines(state)),
    }
