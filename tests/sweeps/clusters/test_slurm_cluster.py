"""Which job is which, and what SLURM is asked: the cluster with commands that say what a test wants."""

from __future__ import annotations

import os
import re
import time
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import pytest

from muloco_runner.config import ConfigError
from sweeps.clusters.slurm.job_rows import rows_of
from sweeps.clusters.slurm.parse import QueuedJob, parse_squeue
from sweeps.clusters.slurm.slurm_cluster import SlurmCluster
from sweeps.clusters.slurm.variables import overruled_variables
from sweeps.engine.cluster import JobEnd, JobIdentity, JobState, RefusalKind, Refused
from sweeps.engine.cluster_config import AllocationConfig, ClusterConfig

UID = os.getuid()
TAG = "study-3fa2c1-000004"
NOW = float(int(time.time()))
JOB = JobIdentity(TAG, NOW, "17", UID, NOW)


def when(at: float) -> str:
    return time.strftime("%Y-%m-%dT%H:%M:%S", time.localtime(at))


def queued(
    number: str = "17", name: str = TAG, comment: str = "", at: float = NOW, state: str = "RUNNING", uid: int = UID
) -> str:
    """A row as `squeue` prints it."""
    asked = "1|8|1|cpu=8,node=1|N/A|N/A|N/A|gpu|lab|normal|5:00"
    return f"{number}|{uid}|{state}|{asked}|{when(at)}|{when(at)}|N/A|node01|None|(null)|{name}|{comment}|\n"


def accounted(number: str = "17", name: str = TAG, at: float = NOW, state: str = "COMPLETED") -> str:
    """A row as `sacct` prints it where comments are not stored."""
    return f"{number}|{UID}|{state}|0:0|1|{when(at)}|{when(at)}|{when(at)}|node01|{name}|\n"


def row(**values: object) -> QueuedJob:
    return parse_squeue(queued(**values))[0]  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("job", "found"),
    [
        (row(comment="billed to 12"), True),
        (row(name="renamed"), True),
        (row(at=NOW + 600), True),
        (row(name="another", at=NOW + 600), False),
        (row(number="18"), False),
        (row(uid=UID + 1), False),
    ],
    ids=["comment", "renamed", "requeued", "number given again", "a copy of the script", "another user's"],
)
def test_a_recorded_job_is_its_number_user_and_submit_time(job: QueuedJob, found: bool) -> None:
    assert (TAG in rows_of([JOB], [job])) is found


@pytest.mark.parametrize(
    ("job", "found"),
    [
        (row(), True),
        (row(number="18", comment="billed"), True),
        (row(name="rewritten", comment=TAG), True),
        (row(name="rewritten", at=NOW + 20), True),
        (row(name="another", at=NOW + 600), False),
        (row(number="18", name="another"), False),
    ],
)
def test_until_it_is_recorded_a_job_is_its_tag(job: QueuedJob, found: bool) -> None:
    # As after sbatch, and as in a ledger of earlier versions.
    assert (TAG in rows_of([replace(JOB, uid=None, submitted_at=None)], [job])) is found


def test_the_recorded_number_goes_first_then_the_living() -> None:
    ended, alive = row(number="16", state="FAILED"), row(number="18")
    unrecorded = JobIdentity(TAG, NOW)
    assert rows_of([unrecorded], [ended, alive, ended])[TAG] is alive
    assert rows_of([replace(unrecorded, job_id="16")], [ended, alive])[TAG] is ended


class Commands:
    """Stand-ins for SLURM's commands: each prints what it is given and notes how it was called."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        folder.mkdir()
        for name in ("squeue", "sacct", "scancel", "sbatch"):
            self.answer(name, "")

    def answer(self, name: str, text: str | bytes, code: int = 0, errors: str = "") -> None:
        data = text if isinstance(text, bytes) else text.encode()
        (self.folder / f"{name}.out").write_bytes(data)
        (self.folder / f"{name}.err").write_text(errors)
        (self.folder / name).write_text(
            f'#!/bin/sh\nenv -0 | tr "\\0\\n" "\\n " > {self.folder}/{name}.env\n'
            f'echo "$@" >> {self.folder}/{name}.calls\n'
            f"cat {self.folder}/{name}.out; cat {self.folder}/{name}.err >&2; exit {code}\n"
        )
        (self.folder / name).chmod(0o755)

    def calls(self, name: str) -> list[str]:
        path = self.folder / f"{name}.calls"
        return path.read_text().splitlines() if path.exists() else []

    def environment(self, name: str) -> Mapping[str, str]:
        lines = (self.folder / f"{name}.env").read_text().splitlines()
        return dict(line.partition("=")[::2] for line in lines)


@pytest.fixture
def commands(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Commands:
    found = Commands(tmp_path / "bin")
    monkeypatch.setenv("PATH", f"{found.folder}:{os.environ['PATH']}")
    return found


@pytest.fixture
def cluster(tmp_path: Path) -> SlurmCluster:
    return SlurmCluster(ClusterConfig("c", "slurm", [AllocationConfig("a")]), tmp_path)


STEERING = {
    "SQUEUE_PARTITION": "debug", "SQUEUE_ACCOUNT": "none", "SQUEUE_NAMES": "x", "SQUEUE_QOS": "low",
    "SQUEUE_STATES": "PENDING", "SQUEUE_USERS": "nobody", "SQUEUE_FORMAT2": "jobid", "SQUEUE_ARRAY": "1",
    "SACCT_FEDERATION": "1", "SCANCEL_INTERACTIVE": "true", "SCANCEL_STATE": "PENDING", "SINFO_PARTITION": "x",
    "SCONTROL_ALL": "1", "SLURM_TIME_FORMAT": "relative", "SLURM_CLUSTERS": "other", "SLURM_JOB_ID": "3",
}  # fmt: skip


def test_nothing_in_the_environment_steers_what_slurm_is_asked(
    commands: Commands, cluster: SlurmCluster, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in {**STEERING, "USER": "somebody", "LOGNAME": "somebody", "SLURM_CONF": "/here"}.items():
        monkeypatch.setenv(name, value)
    cluster.observe([JOB])
    cluster.cancel([JOB])
    for command in ("squeue", "sacct", "scancel"):
        environment = commands.environment(command)
        assert not set(STEERING) & set(environment)
        assert environment["SLURM_CONF"] == "/here"
        (call,) = commands.calls(command)
        assert f"--user={UID}" in call
        assert "somebody" not in call


def test_a_look_costs_one_squeue_and_at_most_one_sacct(commands: Commands, cluster: SlurmCluster) -> None:
    jobs = [replace(JOB, tag=f"s-{n}", job_id=str(n)) for n in range(40)]
    commands.answer("squeue", "".join(queued(str(n), f"s-{n}") for n in range(20)))
    assert len(cluster.observe(jobs).jobs) == 20
    cluster.absent(jobs[20:])
    assert [len(commands.calls(name)) for name in ("squeue", "sacct")] == [2, 1]
    assert commands.calls("squeue")[1].endswith(f"--jobs={','.join(map(str, range(20, 40)))}")


def test_a_number_given_again_is_never_cancelled(commands: Commands, cluster: SlurmCluster) -> None:
    commands.answer("squeue", queued(name="mine", at=NOW + 3600))
    for job in (JOB, replace(JOB, uid=None, submitted_at=None)):
        assert not cluster.observe([job]).jobs
        assert set(cluster.absent([job])) == {TAG}
        assert not cluster.orphaned_jobs("study-3fa2c1-")
        cluster.cancel([job])
        cluster.cancel_pending([job])
    assert all(f"--name={TAG}" in call and "17" not in call.split() for call in commands.calls("scancel"))


@pytest.mark.parametrize(("state", "is_suspended"), [("SUSPENDED", True), ("STOPPED", True), ("RUNNING", False)])
def test_a_suspended_job_is_known(commands: Commands, cluster: SlurmCluster, state: str, is_suspended: bool) -> None:
    commands.answer("squeue", queued(state=state))
    seen = cluster.observe([JOB]).jobs[TAG]
    assert (seen.state, seen.is_suspended) == (JobState.RUNNING, is_suspended)


def test_a_second_job_of_one_tag_is_an_orphan(commands: Commands, cluster: SlurmCluster) -> None:
    commands.answer("squeue", queued() + queued("18"))
    assert cluster.observe([JOB]).jobs[TAG].job_id == "17"
    (copy,) = cluster.orphaned_jobs("study-3fa2c1-")
    assert (copy.job_id, copy.tag) == ("18", TAG)
    cluster.cancel([copy])
    assert commands.calls("scancel") == ["18"]


def test_what_accounting_says_counts_without_comments(commands: Commands, cluster: SlurmCluster) -> None:
    commands.answer("sacct", accounted("16", "s-16", state="FAILED") + accounted())
    observation = cluster.observe([JOB, JobIdentity("s-16", NOW)])
    assert {tag: seen.end for tag, seen in observation.jobs.items()} == {TAG: JobEnd.EXITED, "s-16": JobEnd.EXITED}
    assert observation.jobs["s-16"].job_id == "16"


@pytest.mark.parametrize(
    ("errors", "complete"),
    [
        ("Slurm accounting storage is disabled", True),
        ("sacct: error: Problem talking to the database: Connection refused", False),
    ],
)
def test_no_accounting_is_an_answer_and_silence_is_none(
    commands: Commands, cluster: SlurmCluster, errors: str, complete: bool
) -> None:
    commands.answer("sacct", "", 1, errors)
    observation = cluster.observe([JOB])
    assert (observation.complete, observation.queue_read) == (complete, True)


@pytest.mark.parametrize(
    ("text", "code", "errors", "absent"),
    [
        ("", 1, "slurm_load_jobs error: Invalid job id specified", True),
        ("", 0, "", True),
        ("", 1, "slurm_load_jobs error: Unable to contact slurm controller (connect failure)", False),
        ("slurm_load_jobs error", 0, "", False),
        (queued(comment="foreign"), 0, "", False),
        (queued(name="renamed"), 0, "", False),
    ],
    ids=["purged", "not listed", "no answer", "no rows", "there", "renamed"],
)
def test_only_a_number_that_the_queue_does_not_know_is_absent(
    commands: Commands, cluster: SlurmCluster, text: str, code: int, errors: str, absent: bool
) -> None:
    commands.answer("squeue", text, code, errors)
    assert (TAG in cluster.absent([JOB])) is absent


def test_foreign_bytes_and_states_stop_nothing(commands: Commands, cluster: SlurmCluster) -> None:
    foreign = queued("15", "na|me\nmore", "\n\xff").encode("latin-1") + queued("16", "x", state="ON_MARS").encode()
    commands.answer("squeue", foreign + queued().encode())
    assert cluster.observe([JOB]).jobs[TAG].state is JobState.RUNNING
    commands.answer("squeue", b"\xff\xfe garbage\n")
    assert not cluster.observe([JOB]).queue_read
    commands.answer("squeue", "")
    commands.answer("sacct", b"\xff garbage")
    assert not cluster.observe([JOB]).complete


def test_jobs_of_all_who_look_after_the_sweep_are_read(commands: Commands, cluster: SlurmCluster) -> None:
    theirs = replace(JOB, uid=UID + 7)
    commands.answer("squeue", queued(uid=UID + 7))
    assert cluster.observe([theirs]).jobs[TAG].uid == UID + 7
    assert f"--user={UID},{UID + 7}" in commands.calls("squeue")[0]


def test_an_answer_of_sbatch_without_a_number_is_looked_after(commands: Commands, cluster: SlurmCluster) -> None:
    from sweeps.clusters.slurm.commands import submit_script

    commands.answer("sbatch", "Welcome!\n17;gpu\nYou have 3 jobs.\n")
    assert submit_script(Path("job.sh")) == "17"
    commands.answer("sbatch", "Welcome!\n")
    with pytest.raises(Refused, match="printed no job number: Welcome!") as refused:
        submit_script(Path("job.sh"))
    assert refused.value.kind is RefusalKind.MAY_EXIST


def test_sbatch_is_not_steered_either(commands: Commands, monkeypatch: pytest.MonkeyPatch) -> None:
    from sweeps.clusters.slurm.commands import submit_script

    for name in ("SBATCH_JOB_NAME", "SBATCH_PARTITION", "SBATCH_ARRAY_INX", "SBATCH_TIMELIMIT"):
        monkeypatch.setenv(name, "1")
    commands.answer("sbatch", "17\n")
    submit_script(Path("job.sh"))
    assert not [name for name in commands.environment("sbatch") if name.startswith("SBATCH_")]


def test_variables_of_sbatch_are_followed_refused_or_named() -> None:
    allocation = AllocationConfig("a", options={"partition": "gpu", "mem_gb": 4, "sbatch": {"switches": 1}})
    silent = {"SBATCH_PARTITION": "gpu", "SBATCH_REQ_SWITCH": "1", "SBATCH_DEBUG": "1", "SQUEUE_QOS": "low"}
    assert not list(overruled_variables(silent, allocation))
    assert not list(overruled_variables({"SBATCH_MEM_BIND_TYPE": "none", "SLURM_JOB_ID": "7"}, allocation))
    named = {"SBATCH_PARTITION": "debug", "SBATCH_TIMELIMIT": "5", "SBATCH_MEM_PER_CPU": "8G", "SBATCH_REQ_SWITCH": "2"}
    memory, partition, switches, time_limit = overruled_variables(named, allocation)
    assert memory == "SBATCH_MEM_PER_CPU=8G is not followed: allocation a says mem-gb=4"
    assert partition == "SBATCH_PARTITION=debug is not followed: allocation a says partition=gpu"
    assert switches == "SBATCH_REQ_SWITCH=2 is not followed: allocation a says switches=1"
    assert time_limit.startswith("SBATCH_TIMELIMIT=5 is not followed: use max_wall_minutes")
    for variable, remedy in {
        "SBATCH_ACCOUNT": "`account: x`",
        "SBATCH_RESERVATION": "`additional_parameters: {reservation: x}`",
    }.items():
        with pytest.raises(ConfigError, match=re.escape(remedy)):
            list(overruled_variables({variable: "x"}, allocation))
