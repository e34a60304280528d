"""How long runs have yet to work, as the commands say: by the runs' own progress where there is any."""

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from muloco_runner.record import AttemptTimes, RunFolder, RunStatus
from sweeps.cli import queries
from sweeps.cli.command_line import parse
from sweeps.cli.live_snapshot import Snapshot
from sweeps.cli.status import Basis
from sweeps.cli.status_table import status_table
from sweeps.engine.cluster import JobRequest
from sweeps.engine.outcome import Progress
from sweeps.engine.policy import Cause
from sweeps.engine.work import Adapter, Attempt, Need, Work
from sweeps.hydra_apps.job_adapter import HYDRA_JOB
from sweeps.store.definition import Definition
from sweeps.store.folder import SweepFolder
from sweeps.store.lease import Lease
from sweeps.store.ledger import Ledger
from sweeps.training.adapter import TRAINING

NOW = 1_800_000_000.0
STARTED = NOW - 1200.0
CLUSTER = {"kind": "local", "allocations": [{"name": "here", "quota": {"nodes": 1, "jobs": 1}}]}


@pytest.fixture(autouse=True)
def now(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sweeps.cli.live_snapshot.time.time", lambda: NOW)


@pytest.fixture
def running(tmp_path: Path) -> Callable[..., Snapshot]:
    """One run of 90 minutes by the estimate, at work for 20; its newest report is 200 s old."""

    def make(adapter: Adapter, earlier: dict[str, Any] | None = None, **report: Any) -> Snapshot:
        folder = SweepFolder(tmp_path, "sample")
        work = Work("w", str(tmp_path / "runs" / "w"), "sample_work:count", {}, Need(expected_minutes=90.0),
                    {"algorithm": "sample"}, adapter=adapter)  # fmt: skip
        folder.write_definition(Definition("sample", "local", CLUSTER, [work]))
        lease = Lease(folder.lease_dir)
        ledger = Ledger(folder.ledger_file, lease, lambda: STARTED)
        number = 1
        if earlier is not None:
            ending = {"cause": Cause.PREEMPTED.value, "detail": "", "at": STARTED, "started_at": STARTED, **earlier}
            ledger.append("intended", tag=f"{folder.tag_prefix}000001", allocation="here", runs={"w": 1})
            ledger.append("ended", tag=f"{folder.tag_prefix}000001", endings={"w": ending}, gpu_hours=0.0,
                          struck_nodes=[])  # fmt: skip
            number = 2
        tag = f"{folder.tag_prefix}{number:06d}"
        folder.write_request(JobRequest(tag, "here", (Attempt(work, number),), 1, 0, 1, 100.0))
        ledger.append("intended", tag=tag, allocation="here", runs={"w": number})
        ledger.append("started", tag=tag, at=STARTED, nodes=["node"])
        lease.release()
        if report:
            run = RunFolder(work.folder)
            times = report.pop("times", None)
            status = RunStatus("w", "running", attempt=number, times=times and times.to_dict(), **report)
            run.write_status(status)
            os.utime(run.status_file, (NOW - 200, NOW - 200))
        return Snapshot(folder)

    return make


TIMES = AttemptTimes(as_of=NOW - 200, first_step_at=NOW - 600)


@pytest.mark.parametrize(
    ("adapter", "report", "expected"),
    [
        # 40 steps in the 1000 s to its report, 40 to go, 200 s of them gone.
        (HYDRA_JOB, {"step": 60, "num_steps": 100, "resumed_step": 20}, (800 / 60, "progress")),
        # The same in the 400 s since its first step: what came before is start-up.
        (TRAINING, {"step": 60, "num_steps": 100, "resumed_step": 20, "times": TIMES}, (200 / 60, "progress")),
        # Since it began it has not got on.
        (HYDRA_JOB, {"step": 20, "num_steps": 100, "resumed_step": 20}, (70.0, "estimate")),
        (TRAINING, {"step": 60, "num_steps": 100, "times": AttemptTimes(NOW)}, (70.0, "estimate")),
        # Nobody knows of how many.
        (HYDRA_JOB, {"step": 60}, (70.0, "estimate")),
        (HYDRA_JOB, {}, (70.0, "estimate")),
        # It takes longer than its speed promised.
        (HYDRA_JOB, {"step": 100, "num_steps": 100}, (0.0, "progress")),
    ],
)  # fmt: skip
def test_progress_counts_before_the_estimate(
    running: Callable[..., Snapshot], adapter: Adapter, report: dict[str, Any], expected: tuple[float, str]
) -> None:
    snapshot = running(adapter, **report)
    told = snapshot.to_dict()
    (run,) = told["runs"]
    assert (run["minutes_left"], run["minutes_left_by"]) == (pytest.approx(expected[0], abs=1e-3), expected[1])
    assert told["minutes_left"] == pytest.approx(expected[0])
    assert told["minutes_left_by"] == {basis.value: int(basis.value == expected[1]) for basis in Basis}


def test_a_resumed_run_has_left_what_it_measured(running: Callable[..., Snapshot]) -> None:
    snapshot = running(TRAINING, earlier={"checkpoint_step": 70, "minutes_left": 32.0})
    told = snapshot.to_dict()
    assert (told["runs"][0]["minutes_left"], told["runs"][0]["minutes_left_by"]) == (12.0, "progress")


def test_people_are_told_whose_word_it_is(
    running: Callable[..., Snapshot], capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    snapshot = running(HYDRA_JOB, step=60, num_steps=100, resumed_step=20)
    console = Console(width=120, highlight=False)
    with console.capture() as drawn:
        console.print(status_table(snapshot.status(None), 5, "root", 120))
    assert "At least 13 min 20 s left, 1 of 1 run by their own progress." in drawn.get()
    assert "33.3 min" in drawn.get()  # 20 so far, and those
    queries.explain_run(parse(["explain", "w", str(snapshot.folder.root)]))
    assert "the end of attempt 1, in about 13 min 20 s by its own progress." in capsys.readouterr().out


def test_a_time_that_passes_is_no_news_to_watch(
    running: Callable[..., Snapshot], capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = running(HYDRA_JOB, step=60, num_steps=100).folder
    lease = Lease(folder.lease_dir)
    passed: list[float] = []

    def pass_on(seconds: float) -> None:
        passed.append(seconds)
        monkeypatch.setattr("sweeps.cli.live_snapshot.time.time", lambda: NOW + len(passed))
        if len(passed) == 3:
            lease.release()

    monkeypatch.setattr(queries.time, "sleep", pass_on)
    assert queries.watch(parse(["watch", str(folder.root), "--json"])) == 0
    lines = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert [(one["controlled"], len(one["runs"])) for one in lines] == [(True, 1), (False, 0)]


def test_a_speed_needs_two_points() -> None:
    assert Progress(1, NOW, share=0.5).minutes_to_end(STARTED, NOW) is None
    assert Progress(1, STARTED, share=0.5, share_before=0.0).minutes_to_end(STARTED, NOW) is None
    assert Progress(1, NOW, share=0.5, share_before=0.0).minutes_to_end(STARTED, NOW) == pytest.approx(20.0)
