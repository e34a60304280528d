"""From an attempt's end to its cause, and from causes to what happens next."""

import itertools
import signal
from pathlib import Path

import pytest

from muloco_runner.record import ExitCode
from sweeps.engine import policy
from sweeps.engine.cluster import JobEnd
from sweeps.engine.outcome import Ending
from sweeps.engine.policy import (
    RULES,
    Cause,
    PastAttempt,
    after,
    cause_beside_cancelled,
    cause_of,
    doubled,
    how_it_ended,
)


def ending(code: int) -> Ending:
    return Ending(code, "host", 0.0, 1.0)


@pytest.mark.parametrize(
    ("code", "cause"),
    [
        (ExitCode.FINISHED, Cause.FINISHED),
        (ExitCode.WANTS_MORE_TIME, Cause.WANTS_MORE_TIME),
        (ExitCode.OUT_OF_MEMORY, Cause.OUT_OF_MEMORY),
        (ExitCode.CONFIG_CANNOT_RUN, Cause.CONFIG_CANNOT_RUN),
        (ExitCode.CRASH, Cause.CRASH),
        (137, Cause.CRASH),
        (128 + signal.SIGTERM, Cause.WANTS_MORE_TIME),
    ],
)
def test_an_attempts_own_word_counts_for_more_than_the_schedulers(code: int, cause: Cause) -> None:
    by = {JobEnd.PREEMPTED: Cause.PREEMPTED, JobEnd.CANCELLED: Cause.CANCELLED_OUTSIDE}
    for end in JobEnd:
        asked_to_stop = cause is Cause.WANTS_MORE_TIME
        assert cause_of(ending(code), end, 0, True) is (by.get(end, cause) if asked_to_stop else cause)


def test_one_asked_to_stop_long_before_its_time_was_preempted() -> None:
    stopped = Ending(ExitCode.WANTS_MORE_TIME, "host", 0.0, 1.0, stopped_early=True)
    assert cause_of(stopped, JobEnd.EXITED, 75, True) is Cause.PREEMPTED


def test_one_that_saved_itself_when_cancelled_was_not_preempted() -> None:
    for early in (True, False):
        stopped = Ending(ExitCode.WANTS_MORE_TIME, "host", 0.0, 1.0, stopped_early=early)
        cause = cause_of(stopped, JobEnd.CANCELLED, 75, True)
        assert cause is Cause.CANCELLED_OUTSIDE
        assert after(history(cause, advanced=True)).hold is not None


def test_without_its_own_word_nothing_is_a_success() -> None:
    for end, code in itertools.product(JobEnd, (None, 0, 1, 75)):
        assert cause_of(None, end, code, True) is not Cause.FINISHED
    assert cause_of(None, JobEnd.TIMEOUT, 0, True) is Cause.TIMEOUT
    assert cause_of(None, JobEnd.EXITED, 75, True) is Cause.WANTS_MORE_TIME


def history(*causes: Cause, advanced: bool = False) -> list[PastAttempt]:
    return [PastAttempt(cause, advanced) for cause in causes]


NOT_COUNTED = (Cause.STOPPED, Cause.CANCELLED_WITH_JOB)
FAILURES = [cause for cause in Cause if cause not in (Cause.FINISHED, *NOT_COUNTED)]


@pytest.mark.parametrize("cause", FAILURES)
def test_every_cause_has_a_budget_and_then_holds_with_advice(cause: Cause) -> None:
    budget = RULES[cause].retries
    assert budget is not None
    for tries in range(1, budget + 1):
        verdict = after(history(*[cause] * tries))
        assert not verdict.done
        assert verdict.hold is None
    held = after(history(*[cause] * (budget + 1)))
    assert held.hold is not None
    assert held.hold.startswith(cause.value)
    assert len(held.hold) > len(cause.value) + 10


@pytest.mark.parametrize("cause", [Cause.WANTS_MORE_TIME, Cause.TIMEOUT, Cause.PREEMPTED])
def test_who_advances_may_go_on_for_ever(cause: Cause) -> None:
    assert after(history(*[cause] * 200, advanced=True)).hold is None


@pytest.mark.parametrize("cause", NOT_COUNTED)
def test_being_stopped_with_others_never_counts_against_a_run(cause: Cause) -> None:
    assert after(history(*[cause] * 200)).hold is None


@pytest.mark.parametrize(
    ("left", "end", "cause"),
    [
        (None, JobEnd.CANCELLED, Cause.CANCELLED_WITH_JOB),
        (None, JobEnd.LOST, Cause.CANCELLED_WITH_JOB),
        (None, JobEnd.NODE_FAILURE, Cause.NODE_FAILURE),
        (ending(ExitCode.WANTS_MORE_TIME), JobEnd.CANCELLED, Cause.CANCELLED_WITH_JOB),
        (ending(ExitCode.WANTS_MORE_TIME), JobEnd.EXITED, Cause.CANCELLED_WITH_JOB),
        (ending(ExitCode.OUT_OF_MEMORY), JobEnd.CANCELLED, Cause.OUT_OF_MEMORY),
        (ending(ExitCode.FINISHED), JobEnd.CANCELLED, Cause.FINISHED),
    ],
)
def test_what_befell_a_run_beside_a_cancelled_one_is_its_cause(left: Ending | None, end: JobEnd, cause: Cause) -> None:
    assert cause_beside_cancelled(left, end, 0, True) is cause


def test_two_attempts_without_progress_hold_even_after_progress() -> None:
    advanced = history(Cause.WANTS_MORE_TIME, advanced=True)
    stuck = history(Cause.WANTS_MORE_TIME)
    assert after([*advanced, *stuck]).hold is None
    assert after([*advanced, *stuck, *stuck]).hold is not None
    assert after([*stuck, *advanced, *stuck]).hold is None


def test_a_crash_after_progress_is_no_endless_loop() -> None:
    # A run that gains a little and crashes, over and over, is still a crash to be looked at.
    verdicts = [after(history(*[Cause.CRASH] * tries, advanced=True)) for tries in range(1, 30)]
    assert any(verdict.hold for verdict in verdicts)


def test_changed_retries_count_since_the_last_checkpoint() -> None:
    changed = policy.changed_retries(retries=3, max_timeouts=1)
    crash, saved = history(Cause.CRASH), history(Cause.CRASH, advanced=True)
    assert after(crash * 3, changed).hold is None
    assert after(crash * 4, changed).hold is not None
    assert after([*crash * 3, *saved, *crash * 2], changed).hold is None
    assert after([*crash * 3, *saved, *crash * 3], changed).hold is not None
    assert after(history(Cause.SETUP_FAILED) * 3, changed).hold is None
    held = "timeout: no new checkpoint in one attempt: give it more wall time or checkpoint more often"
    assert after(history(Cause.TIMEOUT), changed).hold == held
    assert after(history(Cause.TIMEOUT, advanced=True), changed).hold is None
    assert after(history(Cause.HANG) * 2, changed).hold is None
    # More than the limit on failures in all, which holds where nothing is set.
    assert after(saved * 15, policy.changed_retries(20, 2)).hold is None
    assert policy.changed_retries(1, 2) == {}


def test_one_cause_does_not_spend_the_budget_of_another() -> None:
    assert after(history(Cause.CRASH, Cause.NODE_FAILURE)).hold is None
    assert after(history(Cause.OUT_OF_MEMORY, Cause.CRASH)).hold is None


def test_backoff_doubles() -> None:
    waits = [after(history(*[Cause.PREEMPTED] * tries)).wait_seconds for tries in (1, 2, 3)]
    assert waits[1] == 2 * waits[0]
    assert waits[2] == 2 * waits[1]


def test_backoff_stays_within_a_day() -> None:
    for cause in FAILURES:
        for tries in range(1, (RULES[cause].retries or 0) + 1):
            assert after(history(*[cause] * tries)).wait_seconds <= 24 * 3600, (cause, tries)


def test_a_finished_run_is_done_whatever_came_before() -> None:
    assert after(history(*[Cause.CRASH] * 5, Cause.FINISHED)).done


@pytest.mark.parametrize(
    ("old", "new", "missing"),
    [
        ('    HANG = "hang"', '    HANG = "hang"\n    FIRE = "fire"', "Cause FIRE"),
        ("    ExitCode.OUT_OF_MEMORY: Cause.OUT_OF_MEMORY,\n", "", "ExitCode OUT_OF_MEMORY"),
        ("    JobEnd.LOST: Cause.LOST,\n", "", "JobEnd LOST"),
    ],
)
def test_a_cause_code_or_end_without_a_row_fails_at_import(old: str, new: str, missing: str) -> None:
    source = Path(policy.__file__).read_text()
    assert source.count(old) == 1
    exec(compile(source, policy.__file__, "exec"), {"__name__": policy.__name__})
    with pytest.raises(TypeError, match=missing):
        exec(compile(source.replace(old, new), policy.__file__, "exec"), {"__name__": policy.__name__})


def test_an_endless_number_of_stops_waits_no_longer_than_an_hour() -> None:
    assert after(history(*[Cause.STOPPED] * 5000)).wait_seconds <= 3600.0
    assert [doubled(30.0, times, 100.0) for times in (0, 1, 2, 5000)] == [30.0, 60.0, 100.0, 100.0]


@pytest.mark.parametrize("code", [2, 65, 70, 71, 78, 3])
def test_codes_of_other_applications_are_not_the_trainers(code: int) -> None:
    for left in (ending(code), None):
        assert cause_of(left, JobEnd.EXITED, code, False) is Cause.CRASH
        assert how_it_ended(left, JobEnd.EXITED, code) == f"exit code {code}"
    for said, cause in (
        (75, Cause.WANTS_MORE_TIME),
        (128 + signal.SIGTERM, Cause.WANTS_MORE_TIME),
        (0, Cause.FINISHED),
    ):
        assert cause_of(ending(said), JobEnd.EXITED, said, False) is cause


def test_what_watches_an_application_speaks_our_codes() -> None:
    for code, cause in ((71, Cause.OUT_OF_HOST_MEMORY), (78, Cause.SETUP_FAILED)):
        assert cause_of(Ending(code, "host", 0.0, 1.0, by_watcher=True), JobEnd.EXITED, code, False) is cause


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGSEGV])
def test_a_signal_is_named(number: signal.Signals) -> None:
    code = 128 + number
    assert how_it_ended(None, JobEnd.EXITED, code) == f"killed by {number.name}"
    assert how_it_ended(ending(code), JobEnd.EXITED, 1) == f"killed by {number.name}"
    # The scheduler's code is no news of an attempt that the scheduler has ended.
    assert how_it_ended(None, JobEnd.TIMEOUT, 0) == ""


@pytest.mark.parametrize("cause", [cause for cause in FAILURES if RULES[cause].is_failure])
def test_preemptions_spend_no_budget_for_failures(cause: Cause) -> None:
    preempted = history(*[Cause.PREEMPTED] * 40)
    for tries in range(1, 12):
        failed = history(*[cause] * tries)
        alone = after(failed).hold
        assert after([*preempted, *failed]).hold == alone
        assert after([*failed[:-1], *preempted, failed[-1]]).hold == alone
    assert not RULES[Cause.PREEMPTED].is_failure
