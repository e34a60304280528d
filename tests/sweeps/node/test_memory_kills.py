"""Kills for memory, as control groups count them."""

from pathlib import Path

import pytest

from sweeps.node.memory_kills import memory_kills

JOB = "slurm/uid_7/job_12"
V1 = f"9:cpu:/x\n4:memory:/{JOB}/step_batch/task_0\n"
V2 = "0::/system.slice/slurmstepd.scope/job_12/step_batch/user/task_0\n"
V2_JOB = "system.slice/slurmstepd.scope/job_12"


@pytest.mark.parametrize(
    ("groups", "files", "expected"),
    [
        ("", {}, 0),
        (V1, {}, 0),
        (V1, {f"memory/{JOB}/memory.oom_control": "oom_kill_disable 0\nunder_oom 0\noom_kill 2\n"}, 2),
        # Of other jobs of the same user.
        (V1, {"memory/slurm/uid_7/memory.oom_control": "oom_kill 5\n"}, 0),
        (V2, {f"{V2_JOB}/step_batch/user/task_0/memory.events": "low 0\noom 1\noom_kill 1\noom_group_kill 0\n"}, 1),
        (V2, {f"{V2_JOB}/memory.events": "oom_kill 3\n", "system.slice/memory.events": "oom_kill 9\n"}, 3),
        ("0::/user.slice/session.scope\n", {"user.slice/memory.events": "oom_kill 4\n"}, 0),
        ("0::/user.slice/session.scope\n", {"user.slice/session.scope/memory.events": "oom_kill 4\n"}, 4),
    ],
)
def test_counts(groups: str, files: dict[str, str], expected: int, tmp_path: Path) -> None:
    for name, text in {"proc/self/cgroup": groups, **{f"sys/fs/cgroup/{k}": v for k, v in files.items()}}.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(text)
    assert memory_kills(tmp_path) == expected
