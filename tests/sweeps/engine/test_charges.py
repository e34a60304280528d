"""Every charged hour falls into one kind, whatever clocks and reports say."""

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from muloco_runner.record import AttemptTimes
from sweeps.engine.charges import AttemptCharge, attempt_seconds, itemise
from sweeps.engine.policy import Cause

TIMES = AttemptTimes(
    as_of=700.0,
    first_step_at=100.0,
    compile_seconds=40.0,
    early_compile_seconds=5.0,
    evaluation_seconds=30.0,
    saving_seconds=20.0,
    loading_seconds=10.0,
    unsaved_seconds=200.0,
)


def charge(cause: Cause, times: AttemptTimes | None = TIMES, processors: int = 8) -> AttemptCharge:
    return AttemptCharge("run", processors, 0.0, 720.0, cause, times)


@pytest.mark.parametrize("cause", [Cause.PREEMPTED, Cause.TIMEOUT, Cause.CRASH, Cause.NODE_FAILURE, Cause.HANG])
def test_work_after_the_last_checkpoint_is_lost_by_cause(cause: Cause) -> None:
    assert attempt_seconds(charge(cause)) == {
        "checkpoints": 30.0,
        "start-up": 85.0,
        f"lost: {cause.value}": 220.0,
        "evaluation": 30.0,
        "compile": 40.0,
        "training": 315.0,
    }


def test_a_finished_attempt_has_lost_nothing() -> None:
    found = attempt_seconds(charge(Cause.FINISHED))
    assert (found["training"], found["shut-down"]) == (515.0, 20.0)
    assert not any(kind.startswith("lost") for kind in found)


def test_one_stopped_in_order_has_only_to_shut_down() -> None:
    times = AttemptTimes(700.0, 100.0, ended=True)
    expected = {"start-up": 100.0, "shut-down": 20.0, "training": 600.0}
    assert attempt_seconds(charge(Cause.PREEMPTED, times)) == expected


def test_who_says_nothing_is_not_itemised() -> None:
    assert attempt_seconds(charge(Cause.CRASH, None)) == {"work, not itemised": 720.0}
    assert attempt_seconds(charge(Cause.SETUP_FAILED, None)) == {"start-up": 720.0}
    assert attempt_seconds(charge(Cause.CRASH, AttemptTimes(700.0))) == {"start-up": 720.0}


@pytest.mark.parametrize("times", [None, AttemptTimes(700.0)])
def test_hours_of_who_could_write_nothing_are_lost(times: AttemptTimes | None) -> None:
    assert attempt_seconds(charge(Cause.DISK_FULL, times)) == {"lost: disk full": 720.0}
    assert attempt_seconds(charge(Cause.CANNOT_WRITE, times)) == {"lost: cannot write": 720.0}


def test_unused_gpus_of_a_pack_are_idle() -> None:
    whole, short = charge(Cause.FINISHED, processors=2), AttemptCharge("short", 1, 0.0, 360.0, Cause.FINISHED)
    hours, unused = itemise(4 * 720 / 3600, [whole, short])
    assert sum(hours["run"].values()) == pytest.approx(0.4)
    assert hours["short"] == {"work, not itemised": pytest.approx(0.1)}
    assert unused == {"idle in a pack": pytest.approx(0.3)}


def test_a_job_that_nobody_saw_start_is_not_itemised() -> None:
    unseen = AttemptCharge("run", 8, None, 720.0, Cause.LOST)
    assert itemise(1.5, [unseen]) == ({}, {"work, not itemised": 1.5})


SECONDS = st.floats(-1e3, 1e6)
REPORTS = st.builds(
    AttemptTimes, SECONDS, st.none() | SECONDS, SECONDS, SECONDS, SECONDS, SECONDS, SECONDS, SECONDS, st.booleans()
)
CHARGES = st.builds(
    AttemptCharge,
    st.uuids().map(str),
    st.integers(1, 8),
    st.none() | SECONDS,
    SECONDS,
    st.sampled_from(Cause),
    st.none() | REPORTS,
)


@given(st.floats(0, 1e4), st.lists(CHARGES, max_size=8))
def test_kinds_add_up_to_the_charge_and_none_is_negative(charged: float, attempts: list[AttemptCharge]) -> None:
    by_run, unused = itemise(charged, attempts)
    hours = [length for kinds in (*by_run.values(), unused) for length in kinds.values()]
    assert all(length >= 0 for length in hours)
    assert math.isclose(sum(hours), charged, abs_tol=1e-9)
