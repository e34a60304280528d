"""What a multirun hands back for a job that has no result."""

import pickle
from pathlib import Path

from hydra.core.utils import JobReturn, JobStatus

from sweeps.engine.policy import RULES, Cause
from sweeps.engine.run_states import AttemptState, RunState
from sweeps.engine.work import Work
from sweeps.hydra_apps.job_adapter import HYDRA_JOB
from sweeps.hydra_apps.launch import _return_of
from sweeps.hydra_apps.program import RESULT


def test_a_refused_retry_does_not_raise_the_older_exception(tmp_path: Path) -> None:
    run = RunState(Work("r", str(tmp_path), "m:f", adapter=HYDRA_JOB))
    run.attempts.append(AttemptState(1, "tag-1", "here", 0, 0.0, cause=Cause.CRASH))
    left = tmp_path / "attempts" / "1"
    left.mkdir(parents=True)
    (left / RESULT).write_bytes(pickle.dumps(JobReturn(status=JobStatus.FAILED, _return_value=ValueError("old"))))
    run.held = f"crash: {RULES[Cause.CRASH].advice}"
    assert str(_return_of(run, [], tmp_path)._return_value) == "old"
    run.held = "the scheduler refuses it: Requested reservation is invalid"
    assert str(_return_of(run, [], tmp_path)._return_value) == run.held
