"""What people are told of a sweep that goes on by its results: what it may become, and how it stands."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from sweeps.engine.sweep_state import SweepState
from sweeps.engine.tuning.growth import Growth
from sweeps.engine.tuning.rules_in_words import rule_lines
from sweeps.engine.tuning.study import Axis, Study
from sweeps.formatting import plural

if TYPE_CHECKING:
    from sweeps.training.sweep import Sweep

_MOST_LINES = 12


def plan_lines(sweep: Sweep) -> Iterator[str]:
    """Yield the bounds of each kind of group, what gets more seeds, and the most that the sweep can become."""
    study = sweep.definition.study
    assert study is not None
    most = len(study.places) + most_added(study)
    yield (
        f"The sweep goes on by its results: from {plural(len(study.places), 'run')}, of {len(study.groups)} series and "
        f"sizes, to at most {most:,}; --max-gpu-hours caps all of them, and the hours above are "
        "those of the file's own"
    )
    yield from rule_lines(study)
    if study.grows_by is not None:
        yield from _lattice_lines(study)
    if sweep.folder.ledger_file.exists():
        yield from study_lines(study, state_so_far(sweep))


def _lattice_lines(study: Study) -> Iterator[str]:
    """Yield what the keys may become, and of which groups."""
    found: dict[str, list[str]] = {}
    for group in study.groups:
        axes = [axis for axis in (*group.axes, group.batches) if axis.grows]
        found.setdefault("; ".join(_bounds(axis) for axis in axes), []).append(group.label)
    for bounds, labels in list(found.items())[:_MOST_LINES]:
        names = ", ".join(labels[:_MOST_LINES]) + (", ..." if len(labels) > _MOST_LINES else "")
        yield f"  {bounds}: {names}"


def state_so_far(sweep: Sweep) -> SweepState:
    """Return what the sweep's ledger says of it, as it is asked for now."""
    return sweep.folder.read_state(sweep.definition).state


def most_added(study: Study) -> int:
    """Return the most runs that the lattices and the rules let the sweep take up."""
    there = Counter(group for group, _ in {(place.group, place.setting) for place in study.places.values()})
    paired = {id for ids in study.decide.contests for id in ids} if study.decide is not None else set[str]()
    most = 0
    for group in study.groups:
        settings = there[group.id] if study.grows_by is None else max(there[group.id], group.most_settings)
        if study.grows_by is not None:
            more = max(0, group.most_settings - there[group.id]) * len(group.seeds)
            most += min(study.grows_by.max_runs, more)
        if study.replicate is not None:
            rule, there_are = study.replicate, len(group.seeds)
            batches = min(settings, len(group.batches.values)) if rule.each_batch else 0
            most += min(rule.best, settings) * max(0, rule.seeds - there_are)
            most += batches * max(0, rule.each_batch - there_are)
        if study.decide is not None and group.id in paired:
            most += study.decide.rule.max_seeds
    return most


def _bounds(axis: Axis) -> str:
    own = " to ".join(dict.fromkeys(f"{axis.values[position]:.6g}" for position in (axis.first, axis.last)))
    ends = [why for why in (axis.below, axis.above) if why]
    beyond = f" (beyond them: {'; '.join(ends)})" if ends else ""
    return f"{axis.key} {own}, within {axis.values[0]:.6g} to {axis.values[-1]:.6g}{beyond}"


def study_lines(study: Study, state: SweepState) -> Iterator[str]:
    """Yield how each group stands, and how many runs were added."""
    lines = list(Growth(study).lines(state))
    yield from lines[:_MOST_LINES]
    if len(lines) > _MOST_LINES:
        yield f"and {len(lines) - _MOST_LINES} more"
    yield f"{plural(len(state.added), 'run')} added to {len(study.places)}"
    if study.halve is not None or state.counts["stopped"]:
        processor, hours = saved_hours(state)
        yield f"{plural(state.counts['stopped'], 'run')} stopped early: about {hours:,.2f} {processor}-hours saved"


def saved_hours(state: SweepState) -> tuple[str, float]:
    """Return the processor, GPU or CPU, and its hours that runs which were stopped early would have taken to their
    ends, by the speed that they measured, else by what they were expected to take."""
    hours, processor = 0.0, "CPU"
    for name in state.stopped:
        run = state.runs.get(name)
        if run is None or not run.is_stopped:
            continue
        need, left = run.work.need, run.attempts[-1].minutes_left
        if left is None:
            reached = max((float(share) for share in state.rungs.get(name, {})), default=0.0)
            left = (1 - reached) * need.expected_minutes
        processor = "GPU" if need.gpus else processor
        hours += (need.gpus or need.nodes * need.cpus_per_node) * left / 60
    return processor, hours


def study_as_dict(study: Study, state: SweepState) -> dict[str, Any]:
    """Return the same for `--json`: runs of the file and added ones, the most there can be, how each group and each
    contest stands."""
    growth = Growth(study)
    return {
        "runs": len(study.places),
        "added": len(state.added),
        "at_most": len(study.places) + most_added(study),
        "stopped": dict(state.stopped),
        "saved_hours": dict([saved_hours(state)]),
        "groups": {group.label: growth.words_of(group) for group in growth.standings(state)},
        "contests": [
            {"groups": [group.label for group in one.groups], "scale": one.scale, "outcome": one.outcome}
            for one in growth.contests()
        ],
    }
