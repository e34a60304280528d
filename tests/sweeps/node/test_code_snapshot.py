"""Attempts run the code that was there when a controller began, and say which it was."""

import json
import os
import shutil
import subprocess
import sys
import time
from pathlib import Path

import pytest

from sweeps.clusters.local import LocalCluster
from sweeps.clusters.slurm.script import job_script
from sweeps.engine.cluster import JobIdentity, JobRequest, JobState
from sweeps.engine.cluster_config import AllocationConfig
from sweeps.engine.work import Attempt, Need, Work
from sweeps.node.code_snapshot import HERE, describe_source, git_state, keep_source

PROBE = """
from pathlib import Path

def run(folder, attempt):
    Path(folder, "said").write_text("%s")
    return 0
"""


def git(folder: Path, *words: str) -> None:
    names = ["-c", "user.name=n", "-c", "user.email=e@localhost"]
    subprocess.run(["git", "-C", str(folder), *names, *words], check=True, capture_output=True)


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    """A working tree with one commit."""
    folder = tmp_path / "tree"
    (folder / "sweeps").mkdir(parents=True)
    (folder / "sweeps" / "a.py").write_text("A = 1\n")
    (folder / "conf").mkdir()
    (folder / "conf" / "c.yaml").write_text("c: 1\n")
    (folder / "notes.md").write_text("nothing that runs\n")
    git(folder, "init", "-q")
    git(folder, "add", ".")
    git(folder, "commit", "-qm", "first")
    return folder


def test_each_state_of_the_code_is_kept_once(tree: Path, tmp_path: Path) -> None:
    place = keep_source(tmp_path, tree)
    assert place.parent == tmp_path / "code"
    assert (place / "sweeps" / "a.py").read_text() == "A = 1\n"
    assert not (place / "changes.patch").exists()
    assert keep_source(tmp_path, tree) == place
    (tree / "sweeps" / "a.py").write_text("A = 2\n")
    edited = keep_source(tmp_path, tree)
    assert edited != place
    assert (edited / "sweeps" / "a.py").read_text() == "A = 2\n"
    assert (place / "sweeps" / "a.py").read_text() == "A = 1\n"
    (tree / "sweeps" / "a.py").write_text("A = 1\n")
    assert keep_source(tmp_path, tree) == place
    assert len(list((tmp_path / "code").iterdir())) == 2


def test_a_copy_says_its_commit_and_what_was_changed(tree: Path, tmp_path: Path) -> None:
    (tree / "sweeps" / "a.py").write_text("A = 2\n")
    place = keep_source(tmp_path, tree)
    said = describe_source(place)
    state = git_state(tree)
    assert state is not None
    assert said["git"]["commit"] == state["commit"]
    assert said["git"]["changed_files"] == ["sweeps/a.py"]
    assert said["id"] == place.name
    assert "+A = 2" in (place / "changes.patch").read_text()
    # A controller that runs from the copy keeps no other.
    assert keep_source(tmp_path / "elsewhere", place) == place


def test_what_git_does_not_track_is_in_no_record(tree: Path, tmp_path: Path) -> None:
    (tree / "sweeps" / "a.py").write_text("A = 2\n")
    for name in (".env", "sweeps/.env", "sweeps/token", "secrets.yaml"):
        (tree / name).write_text("TOKEN=hunter2\n")
    place = keep_source(tmp_path, tree)
    assert not [path for path in place.rglob("*") if path.is_file() and "hunter2" in path.read_text()]
    # New modules belong to the code, tracked or not.
    (tree / "sweeps" / "b.py").write_text("B = 1\n")
    assert (keep_source(tmp_path, tree) / "sweeps" / "b.py").exists()


def test_an_installed_package_is_kept_without_a_commit(tree: Path, tmp_path: Path) -> None:
    installed = tree / ".venv" / "site-packages"
    shutil.copytree(tree / "sweeps", installed / "sweeps")
    (tree / ".gitignore").write_text(".venv\n")
    place = keep_source(tmp_path, installed)
    assert describe_source(place)["git"] is None
    assert (place / "sweeps" / "a.py").exists()
    assert git_state(tmp_path / "nowhere") is None


def test_queued_work_runs_the_code_of_its_time(tmp_path: Path) -> None:
    tree = tmp_path / "my tree"
    for part in ("muloco_runner", "sweeps"):
        shutil.copytree(HERE / part, tree / part, ignore=shutil.ignore_patterns("__pycache__"))
    probe = tree / "sweeps" / "probe.py"
    cluster = LocalCluster(tmp_path / "cluster", 1)
    cluster.start()
    probe.write_text(PROBE % "old")
    old = keep_source(tmp_path, tree)
    probe.write_text(PROBE % "new")
    new = keep_source(tmp_path, tree)
    probe.write_text("raise SyntaxError")
    try:
        for number, code in enumerate((old, new), start=1):
            work = Work(f"w{number}", str(tmp_path / f"w{number}"), "sweeps.probe:run", need=Need(), source=str(tree))
            request = JobRequest(f"t-{number}", "here", (Attempt(work, 1),), 1, 0, 1, 1.0, code=str(code))
            cluster.submit(request)
            wait_for_end(cluster, request.tag)
            assert (Path(work.folder) / "said").read_text() == ("old", "new")[number - 1]
            record = json.loads((Path(work.folder) / "attempts" / "1" / "environment.json").read_text())
            assert record["code"]["id"] == code.name
            assert record["packages"]["torch"]
            assert record["source"] == {"folder": str(tree), "git": None}
            assert record["host"]
    finally:
        cluster.stop()


def wait_for_end(cluster: LocalCluster, tag: str) -> None:
    deadline = time.monotonic() + 600
    while cluster.observe([JobIdentity(tag)]).jobs[tag].state is not JobState.ENDED:
        assert time.monotonic() < deadline
        time.sleep(0.05)


def test_a_job_of_slurm_imports_from_its_copy(tmp_path: Path) -> None:
    copy = tmp_path / "a copy's place"
    (copy / "sweeps").mkdir(parents=True)
    (copy / "sweeps" / "__init__.py").write_text("")
    work = Work("w", str(tmp_path), "m:f")
    request = JobRequest("t-1", "a", (Attempt(work, 1),), 1, 0, 1, 1.0, code=str(copy))
    script = job_script(request, AllocationConfig("a"), [], tmp_path)
    assert f"exec {sys.executable} -P -u -m sweeps.clusters.slurm.runner" in script
    # What comes before the job itself, as bash reads it, in a folder that has such a package too.
    asked = script.split("exec ")[0] + f"{sys.executable} -P -c 'import sweeps; print(sweeps.__file__)'"
    (tmp_path / "submitit").mkdir()
    environment = {**os.environ, "SLURM_JOB_ID": "17"}
    done = subprocess.run(["bash", "-c", asked], capture_output=True, text=True, cwd=HERE, check=True, env=environment)
    assert done.stdout.strip() == str(copy / "sweeps" / "__init__.py")
