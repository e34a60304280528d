"""What launchers for SLURM are known to get wrong, on a real SLURM: with ours, and with hydra-submitit-launcher, which
fails each of these tests. And a foreign application under SLURM's limits, killed midway."""

import importlib.util
import re
from pathlib import Path

import pytest
from driving import fail, finish, kill, numbers, run, squares, start, starts, wait_until
from emulated_slurm import EmulatedSlurm, wait_for

from sweeps.store.lease import read_holder

pytestmark = pytest.mark.slurm

QUOTA = ["hydra/launcher=quota", "hydra.launcher.cluster=slurm", "hydra.launcher.tick_seconds=0.3"]
CAPPED = ["hydra.launcher.account=lab", "hydra.launcher.qos=capped"]
SUBMITIT = ["hydra/launcher=submitit_slurm", "hydra.launcher.timeout_min=5"]


def has_submitit() -> bool:
    return importlib.util.find_spec("hydra_plugins.hydra_submitit_launcher") is not None


@pytest.fixture(
    params=[
        pytest.param(QUOTA, id="quota"),
        pytest.param(
            SUBMITIT,
            id="submitit_slurm",
            marks=pytest.mark.xfail(strict=True, reason="a gap of hydra-submitit-launcher 1.2.0"),
        ),
    ]
)
def launcher(request: pytest.FixtureRequest, slurm: EmulatedSlurm, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    if not has_submitit():
        pytest.skip("compared where hydra-submitit-launcher is installed: `make test-hydra-next`")
    monkeypatch.setenv("SLURM_CONF", str(slurm.configuration))
    words: list[str] = request.param
    return words


def accounted(slurm: EmulatedSlurm, after: int) -> set[str]:
    """Ends of the jobs with a higher number, by accounting's word."""
    lines = slurm.run("sacct", "-nPX", "-o", "JobIDRaw,State").splitlines()
    return {state.split()[0] for number, state in (line.split("|") for line in lines) if int(number) > after}


def newest_job(slurm: EmulatedSlurm) -> int:
    """As slurmctld knows it: accounting learns of jobs seconds later."""
    found = re.search(r"NEXT_JOB_ID\s*=\s*(\d+)", slurm.run("scontrol", "show", "config"))
    assert found is not None
    return int(found[1]) - 1


def is_held(lease: Path) -> bool:
    holder = read_holder(lease)
    return holder is not None and holder.is_alive


def test_a_failed_job_is_failed_in_accounting_too(launcher: list[str], slurm: EmulatedSlurm, tmp_path: Path) -> None:
    before = newest_job(slurm)
    assert "cannot square 3" in fail(tmp_path, *launcher, "number=3", "fails=true")
    wait_for(lambda: accounted(slurm, before) - {"PENDING", "RUNNING"}, "the job in accounting")
    assert accounted(slurm, before) == {"FAILED"}


def test_a_limit_on_submitted_jobs_is_waited_for(launcher: list[str], slurm: EmulatedSlurm, tmp_path: Path) -> None:
    slurm.limit(MaxSubmitJobsPerUser="3")
    run(tmp_path, *launcher, *CAPPED, numbers(5))
    assert squares(tmp_path) == {0, 1, 4, 9, 16}


def test_after_a_kill_the_same_command_starts_nothing_twice(launcher: list[str], tmp_path: Path) -> None:
    words = [*launcher, numbers(2), "seconds=4"]
    first = start(tmp_path, *words)
    wait_until(lambda: len(starts(tmp_path)) == 2)
    kill(first)
    run(tmp_path, *words)
    assert squares(tmp_path) == {0, 1}
    assert starts(tmp_path) == ["0", "1"]


def test_a_multirun_can_be_left_alone(launcher: list[str], tmp_path: Path) -> None:
    gate = tmp_path / "gate"
    words = [*launcher, "hydra/sweeper=grid", numbers(2), f"gate={gate}"]
    said = run(tmp_path, *words, "hydra.sweeper.detach=true")
    assert "muloco-sweep status" in said
    assert squares(tmp_path) == set()
    gate.touch()
    wait_until(lambda: squares(tmp_path) == {0, 1})
    (lease,) = tmp_path.glob("multirun/sweeps/*/lease")
    wait_until(lambda: not is_held(lease))
    # The same command collects.
    assert "2 done" in run(tmp_path, *words)
    assert starts(tmp_path) == ["0", "1"]


def test_a_foreign_application_under_a_quota_is_killed_and_goes_on(
    slurm: EmulatedSlurm, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SLURM_CONF", str(slurm.configuration))
    slurm.limit(MaxSubmitJobsPerUser="3")
    most = 0

    def enough(count: int) -> bool:
        nonlocal most
        most = max(most, len(slurm.run("squeue", "-h", "-t", "CF,R", "-o", "%i").split()))
        return len(starts(tmp_path)) >= count

    gate = tmp_path / "gate"
    words = [*QUOTA, *CAPPED, "hydra.launcher.quota.nodes=2", numbers(20), f"gate={gate}"]
    first = start(tmp_path, *words)
    wait_until(lambda: enough(2) and most >= 2)
    gate.touch()
    wait_until(lambda: enough(7))
    kill(first)
    second = start(tmp_path, *words)
    wait_until(lambda: enough(20))
    said = finish(second)
    assert "20 done" in said
    assert squares(tmp_path) == {number**2 for number in range(20)}
    assert starts(tmp_path) == sorted(map(str, range(20)))
    assert most == 2


def test_each_job_has_its_own_settings(slurm: EmulatedSlurm, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("SLURM_CONF", str(slurm.configuration))
    before = newest_job(slurm)
    per_job = [
        "hydra.launcher.partition=${part}",
        "hydra.launcher.mem=${number}G",
        "part=gpu,debug",
        "hydra.launcher.account=lab",
        "hydra.launcher.qos=${priority}",
        "priority=normal,high",
        "number=2,3",
    ]
    words = [*QUOTA, "hydra/sweeper=grid", "hydra.launcher.quota.jobs=4", *per_job]
    said = fail(tmp_path, *words)
    assert re.search(r"part=debug .*\) can never run: partition debug MaxTime=30 minutes", said), said
    assert newest_job(slurm) == before
    run(tmp_path, *words, "hydra.launcher.resources.wall_minutes=1${number}")

    def told() -> list[list[str]]:
        rows = slurm.run("sacct", "-nPX", "-o", "JobIDRaw,Partition,QOS,ReqMem,TimelimitRaw,State").splitlines()
        return sorted(row.split("|")[1:] for row in rows if int(row.split("|")[0]) > before)

    expected = [
        [part, qos, f"{number}G", f"1{number}", "COMPLETED"]
        for part in ("debug", "gpu")
        for qos in ("high", "normal")
        for number in (2, 3)
    ]
    wait_for(lambda: [row[-1] for row in told()] == ["COMPLETED"] * len(expected), "accounting of the jobs")
    assert told() == expected
