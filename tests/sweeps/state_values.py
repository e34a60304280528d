"""A sweep's state in plain values, so that two of them can be compared."""

from typing import Any

from sweeps.engine.counters import Counters
from sweeps.engine.sweep_state import SweepState


def values_of(state: SweepState) -> dict[str, Any]:
    """All that a state knows; sums of minutes to nine digits, since they depend on the order of their terms."""
    return {
        "runs": [run.to_line() for run in state.runs.values()],
        "jobs": state.jobs,
        "num_jobs": state.num_jobs,
        "strikes": state.node_failures,
        "slow": state.slow_nodes,
        "settings": (state.paused, state.own_limits, state.defer_until, state.left_after, state.commands),
        "counters": counter_values(state.counters),
        "queues": {shape: [run.work.name for run in queue] for shape, queue in state.waiting.items() if len(queue)},
        "spent": {name: round(hours, 6) for name, hours in state.spent_gpu_hours.items()},
        "goodput": {
            processor: {kind: round(hours, 6) for kind, hours in goodput.hours.items()}
            | {unit: round(done, 6) for unit, done in goodput.progress.items()}
            | {"progress_hours": round(goodput.progress_hours, 6)}
            for processor, goodput in state.goodput.items()
        },
        "crashes": {key: names for key, names in state.crashes.items() if names},
        "failed": state.failed,
        "study": (state.losses, state.added, state.rungs, state.num_rungs, state.stopped, state.blocked),
        "behind": {trunk: names for trunk, names in state.behind.items() if names},
    }


def counter_values(counters: Counters) -> dict[str, Any]:
    groups = {group: +counts for group, counts in counters.groups.items() if any(counts.values())}
    return {
        "groups": groups,
        "held": {why: set(names) for why, names in counters.held.items()},
        "fresh": +counters.fresh,
        "tried": counters.tried,
        "left": {key: round(minutes, 6) for key, minutes in counters.left.items() if round(minutes, 6)},
        "finished": {
            group: (one.count, round(one.actual_minutes, 6), round(one.expected_minutes, 6))
            for group, one in counters.finished.items()
            if one.count
        },
        "counts": +counters.counts,
        "resubmitted": counters.resubmitted,
    }


def counted_anew(state: SweepState) -> Counters:
    counters = Counters()
    for run in state.runs.values():
        counters.add(run)
    return counters
