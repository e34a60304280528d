"""Main memory grows after attempts that ran out of it, up to what the user allows."""

import pytest

from sweeps.engine.cluster_config import AllocationConfig
from sweeps.engine.job_needs import job_memory
from sweeps.engine.policy import Cause, PastAttempt, after
from sweeps.engine.run_states import AttemptState, RunState
from sweeps.engine.work import Need, Work


def run_with(need: Need, *causes: Cause) -> RunState:
    run = RunState(Work("r", "/r", "m:f", need=need))
    for number, cause in enumerate(causes, start=1):
        run.attempts.append(AttemptState(number, f"t{number}", "a", 0, 0.0, cause=cause))
    return run


OUT = Cause.OUT_OF_HOST_MEMORY
NEED = Need(memory_gigabytes=3.0, max_memory_gigabytes=10.0)


@pytest.mark.parametrize(
    ("need", "causes", "expected"),
    [
        (Need(), [], (None, False)),
        (Need(memory_gigabytes=3.0), [], (3.0, False)),
        (NEED, [], (3.0, True)),
        (NEED, [OUT], (6.0, True)),
        (NEED, [OUT, Cause.CRASH, OUT], (10.0, False)),
        (NEED, [OUT, OUT, OUT], (10.0, False)),
    ],
)
def test_memory(need: Need, causes: list[Cause], expected: tuple[float | None, bool]) -> None:
    assert job_memory([run_with(need, *causes)], AllocationConfig("a")) == expected


def test_a_pack_shares_its_nodes_memory_and_an_allocation_sets_it() -> None:
    allocation = AllocationConfig("a", whole_nodes=True, memory_gigabytes=2.0, max_memory_gigabytes=4.0)
    pack = [run_with(Need()), run_with(Need(), OUT)]
    assert job_memory(pack[:1], allocation) == (2.0, True)
    assert job_memory(pack, allocation) == (4.0, True)
    assert job_memory([*pack, run_with(NEED)], allocation) == (4.0, True)


def test_there_is_no_next_attempt_with_the_same_memory() -> None:
    assert after([PastAttempt(OUT, advanced=False, can_change=True)]).hold is None
    held = after([PastAttempt(OUT, advanced=False, can_change=False)]).hold
    assert held is not None
    assert "max_memory_gigabytes" in held
