"""An optimizer of a user's own against the built-in ones: an empty folder, a wheel, no checkout, kills and all."""

import itertools
import json
import shutil
import time
from pathlib import Path

import pytest
from emulated_slurm import EmulatedSlurm
from installed_wheel import ROOT, Installed

EXAMPLE = ROOT / "examples" / "own_optimizer"
QUICKLY = [
    "tokens_per_parameter=1",
    "global_batch_tokens=1024",
    "data=text",
    "data.path=text",
    "data.validation_fraction=0.3",
]
TWO_SIZES = ["launch", "+sweep=against", "model=29k,42k", "root=results", *QUICKLY]
PARTNERS = {"DiLoCo K=1": "DDP-AdamW", "MuLoCo K=1": "DDP-Muon", "DiLoCo-Lion K=1": "DDP-Lion"}
RUNS = 24


@pytest.fixture
def work(tmp_path: Path) -> Path:
    """A folder with the example and some text."""
    shutil.copytree(EXAMPLE, tmp_path / "work")
    (tmp_path / "work" / "text").mkdir()
    words = " ".join(f"{a} times {b} is {a * b}." for a, b in itertools.product(range(60), repeat=2))
    for number in range(20):
        (tmp_path / "work" / "text" / f"{number}.txt").write_text(words[number * 3000 : (number + 1) * 3000])
    return tmp_path / "work"


@pytest.mark.long
def test_a_sweep_of_an_own_optimizer_on_this_machine(installed: Installed, work: Path) -> None:
    kill_and_continue(installed, work, [])


@pytest.mark.slurm
def test_a_sweep_of_an_own_optimizer_on_slurm(installed: Installed, work: Path, slurm: EmulatedSlurm) -> None:
    allocation = "{name: a, partition: whole, account: lab, gpus_per_node: 8, cpus_per_node: 96, whole_nodes: true"
    cluster = [f"cluster.allocations=[{allocation}, quota: {{nodes: 8}}}}]", "cluster.tick_seconds=0.5"]
    kill_and_continue(installed, work, ["cluster=h100", "cluster.device=cpu", *cluster])


def kill_and_continue(installed: Installed, work: Path, cluster: list[str]) -> None:
    first = installed.start(work, "muloco-sweep", *TWO_SIZES, *cluster)
    deadline = time.monotonic() + 600
    while not results(work) and first.poll() is None:
        assert time.monotonic() < deadline
        time.sleep(0.05)
    first.kill()
    said, _ = first.communicate()
    assert first.returncode == -9, said
    # The controller's lease is known to be dead at once: it was of this host.
    said = installed.run(work, "muloco-sweep", *TWO_SIZES, *cluster)
    assert f"{RUNS} runs: {RUNS} done" in said
    before = results(work)
    assert len(before) == RUNS
    assert "trying" not in installed.run(work, "muloco-sweep", *TWO_SIZES, *cluster)
    assert results(work) == before, "the same command again trains nothing"
    installed.run(work, "muloco-report", "results", "--bootstrap", "0")
    report = json.loads((work / "results" / "report" / "report.json").read_text())
    assert set(report["series"]) == {*PARTNERS, *PARTNERS.values()}
    points = report["num_workers"]["points"]
    assert {point["series"]: point["baseline"] for point in points} == PARTNERS
    assert len(points) == 2 * len(PARTNERS), "each at both sizes"
    assert not report["audit"]["excluded"]


def results(work: Path) -> dict[str, tuple[int, int]]:
    """Of each finished run when its result was written, and how many attempts it took."""
    found = {}
    for file in work.glob("results/runs/*/result.json"):
        found[file.parent.name] = (file.stat().st_mtime_ns, len(list(file.parent.glob("attempts/*"))))
    return found
