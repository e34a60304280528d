"""Sixty runs of five shapes under a quota of nodes, another job of the same user beside them."""

from __future__ import annotations

from pathlib import Path

import pytest
from emulated_slurm import EmulatedSlurm
from sweeping import GPU, SampleSweep, check, sampled_nodes, standings

from sweeps.controller import Tick
from sweeps.engine.work import Need

pytestmark = pytest.mark.slurm
QUOTA = 3
SHAPES = {(1, 1): 28, (1, 2): 16, (1, 4): 8, (1, 8): 6, (2, 8): 2}
"""Runs by (nodes, GPUs a node)."""


def test_sixty_mixed_runs_keep_the_quota_and_leave_no_node_idle(slurm: EmulatedSlurm, tmp_path: Path) -> None:
    needs: dict[str, Need] = {}
    for (nodes, gpus), number in SHAPES.items():
        for n in range(number):
            needs[f"{nodes}x{gpus}-{n}"] = Need(nodes, gpus, gpus, 5.0, 0.1)
    assert len(needs) == 60
    plans = {name: {"seconds": [5 + 0.5 * (position % 4)]} for position, name in enumerate(needs)}
    whole = {**GPU, "partition": "whole", "cpus_per_node": 96, "whole_nodes": True, "quota": {"nodes": QUOTA}}
    sweep = SampleSweep(tmp_path, plans, whole, needs=needs, tick_seconds=0.2)
    other = slurm.hold_nodes(1, partition="whole")
    slurm.wait_for_start(other)
    while_runs_waited = 0

    def on_tick(tick: Tick) -> None:
        nonlocal while_runs_waited
        if tick.state.counts["waiting"]:
            while_runs_waited = len(samples)

    with sampled_nodes(slurm) as samples:
        state = sweep.run(on_tick)
    assert set(standings(state).values()) == {"done"}
    assert {len(sweep.starts(name)) for name in needs} == {1}
    assert max(samples) <= QUOTA
    idle = [QUOTA - nodes for nodes in samples[1:while_runs_waited]]
    share = sum(idle) / (QUOTA * len(idle))
    assert share < 0.1, f"nodes idle {share:.0%} of the time over {len(idle)} s"
    check(sweep, state, slurm)
