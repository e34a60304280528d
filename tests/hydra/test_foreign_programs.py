"""Small programs of other people: under `hydra/launcher=quota` they do what they do under Hydra's own launcher."""

import json
import os
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from emulated_slurm import EmulatedSlurm

PROGRAMS = Path(__file__).parent / "programs"
NAMES = sorted(path.stem for path in PROGRAMS.glob("*.py") if path.stem not in ("told", "lazily"))
AS_MODULES = ["pkg.app", "pkg"]
LOCAL = ["hydra/launcher=quota", "hydra.launcher.tick_seconds=0.05", "hydra.launcher.quota.jobs=2"]
SLURM = [
    "hydra/launcher=quota",
    "hydra.launcher.cluster=slurm",
    "hydra.launcher.tick_seconds=0.3",
    "hydra.launcher.resources.wall_minutes=2",
]


def run(folder: Path, name: str, *launcher: str) -> tuple[dict[str, str], list[str], str]:
    """Run two points; return their results, what started, and what was printed."""
    folder.mkdir(parents=True, exist_ok=True)
    program = ["-m", name] if name in AS_MODULES else [str(PROGRAMS / f"{name}.py")]
    environment = {**os.environ, "PYTHONPATH": str(PROGRAMS)}
    if name == "given_rank":
        environment |= {"RANK": "3", "WORLD_SIZE": "8", "LOCAL_RANK": "3", "SLURM_PROCID": "5"}
    own = ["--tag=mine"] if name == "own_arguments" else []
    done = subprocess.run(
        [sys.executable, *program, *own, "--multirun", "hydra.sweep.dir=out", "++x=2,3", *launcher],
        cwd=folder, env=environment, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
        text=True, timeout=900, check=False,
    )  # fmt: skip
    results = {path.parent.name: path.read_text() for path in (folder / "out").glob("*/result")}
    starts = folder / "starts"
    assert not (folder / "alert").exists()
    assert done.returncode == 0, done.stdout
    return results, sorted(starts.read_text().splitlines() if starts.exists() else []), done.stdout


def both(folder: Path, name: str, *launcher: str) -> str | None:
    """Return how the two launchers differ."""
    # Hydra's own launcher ends with the first job that calls sys.exit.
    expected = {"0": "2", "1": "3"} if name == "exits_well" else run(folder / "own", name)[0]
    results, starts, said = run(folder / "quota", name, *launcher)
    if results == expected and starts == ["++x=2", "++x=3"] and len(expected) == 2:
        return None
    return f"{name}: {results}, not {expected}; started {starts}\n{said}"


@pytest.mark.parametrize("name", ["in_contexts", "pkg"])
def test_a_program_gives_what_it_gives_under_hydras_launcher(name: str, tmp_path: Path) -> None:
    assert both(tmp_path, name, *LOCAL) is None


def test_a_result_without_a_pickle_is_a_warning(tmp_path: Path) -> None:
    results, _, said = run(tmp_path, "unpicklable_result", *LOCAL)
    assert results == {"0": "2", "1": "3"}
    assert "#1: its result, a dict, cannot be sent back (TypeError: cannot pickle '_thread.lock' object)" in said


EDITS_ITSELF = """
from pathlib import Path

import hydra
from hydra.core.hydra_config import HydraConfig

SAYS = "as launched"


@hydra.main(version_base=None, config_path=None)
def main(config):
    import beside

    (Path(HydraConfig.get().runtime.output_dir) / "result").write_text(SAYS + ", " + beside.SAYS)
    for file in (Path(__file__), Path(__file__).with_name("beside.py")):
        file.write_text(file.read_text().replace("as launched", "edited"))


if __name__ == "__main__":
    main()
"""


def test_jobs_run_the_source_that_was_launched(tmp_path: Path) -> None:
    (tmp_path / "edits_itself.py").write_text(EDITS_ITSELF)
    (tmp_path / "beside.py").write_text('SAYS = "as launched"')
    words = ["--multirun", "hydra.sweep.dir=out", "+x=1,2", *LOCAL, "hydra.launcher.quota.jobs=1"]
    subprocess.run([sys.executable, "edits_itself.py", *words], cwd=tmp_path, check=True, capture_output=True)
    assert [path.read_text() for path in (tmp_path / "out").glob("*/result")] == ["as launched, as launched"] * 2
    assert "edited" in (tmp_path / "edits_itself.py").read_text()


@pytest.mark.thorough
def test_another_script_of_the_same_name_has_results_of_its_own(tmp_path: Path) -> None:
    words = ["--multirun", "hydra.sweep.dir=out", f"hydra.launcher.root={tmp_path}/shared", "+x=3", *LOCAL]
    said = []
    for letter in "ab":
        (tmp_path / letter).mkdir()
        text = (PROGRAMS / "given_rank.py").read_text().replace("tell(config.x)", f'tell("{letter}")')
        fails = text.replace("    return config.x", "    return 1 / (config.x - 3)") if letter == "a" else text
        (tmp_path / letter / "train.py").write_text(fails)
        environment = {**os.environ, "PYTHONPATH": str(PROGRAMS)}
        done = subprocess.run(
            [sys.executable, "train.py", *words], cwd=tmp_path / letter, env=environment,
            check=False, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
        )  # fmt: skip
        said.append(done.stdout)
    assert [path.read_text() for path in (tmp_path / "b" / "out").glob("*/result")] == ["b"], said


SOME_DIVERGE = """
from pathlib import Path

import hydra
from hydra.core.hydra_config import HydraConfig


@hydra.main(version_base=None, config_path=None)
def main(config):
    if config.x < 3:
        raise FloatingPointError("the loss is not finite")
    (Path(HydraConfig.get().runtime.output_dir) / "result").write_text(str(config.x))


if __name__ == "__main__":
    main()
"""


@pytest.fixture(params=["here", pytest.param("slurm", marks=pytest.mark.slurm)])
def launcher(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    if request.param == "here":
        return LOCAL
    shared_slurm: EmulatedSlurm = request.getfixturevalue("shared_slurm")
    monkeypatch.setenv("SLURM_CONF", str(shared_slurm.configuration))
    return SLURM


def test_alike_failures_do_not_hold_the_other_jobs(tmp_path: Path, launcher: list[str]) -> None:
    (tmp_path / "some_diverge.py").write_text(SOME_DIVERGE)
    words = ["--multirun", "hydra.sweep.dir=out", "+x=range(7)", *launcher]
    done = subprocess.run(
        [sys.executable, "some_diverge.py", *words],
        cwd=tmp_path, check=False, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
    )  # fmt: skip
    assert len(list((tmp_path / "out").glob("*/result"))) == 4
    assert done.returncode == 1
    assert "#2 failed: FloatingPointError: the loss is not finite; see " in done.stdout


TAKES_LISTS = """
import hydra
from pathlib import Path


@hydra.main(version_base=None, config_path="conf", config_name="config")
def main(config):
    with open(config.told, "a") as file:
        file.write(f"{[type(one).__name__ for one in config.hidden]} {list(config.hidden)}\\n")


if __name__ == "__main__":
    main()
"""


def test_lists_as_values_are_what_they_are_to_hydra(tmp_path: Path, launcher: list[str]) -> None:
    (tmp_path / "takes_lists.py").write_text(TAKES_LISTS)
    (tmp_path / "conf" / "sweep").mkdir(parents=True)
    (tmp_path / "conf" / "config.yaml").write_text("hidden: [1]\ntold: ???\n")
    (tmp_path / "conf" / "sweep" / "lists.yaml").write_text(
        "grids:\n  - product: {hidden: [[64, 64], [128, 256, a]]}\n"
    )
    told = []
    for name, words in {
        "own": ["hidden=[64,64],[128,256,a]"],
        "quota": ["hydra/sweeper=grid", "+sweep=lists", *launcher],
    }.items():
        subprocess.run(
            [sys.executable, "takes_lists.py", "--multirun", "hydra.sweep.dir=out", f"told={tmp_path}/{name}", *words],
            cwd=tmp_path, check=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
        )  # fmt: skip
        told.append(sorted((tmp_path / name).read_text().splitlines()))
    assert len(told[0]) == 2
    assert told[0] == told[1]


HANGS_AT_FIRST = """
import pathlib, time
import hydra

@hydra.main(version_base=None)
def main(config):
    first = pathlib.Path("first")
    if not first.exists():
        first.touch()
        time.sleep(3600)
    return 7

if __name__ == "__main__":
    main()
"""


@pytest.mark.thorough
def test_a_job_that_reports_nothing_is_tried_again_and_the_end_told(tmp_path: Path) -> None:
    (tmp_path / "hangs.py").write_text(HANGS_AT_FIRST)
    told = tmp_path / "told"
    # Meanwhile nothing is computed. An attempt that a busy machine makes slower than this is tried once more.
    own = ["hydra.launcher.heartbeat_timeout_minutes=0.25", f"hydra.launcher.on_event='tee -a {told}'"]
    done = subprocess.run(
        [sys.executable, "hangs.py", "--multirun", "hydra.sweep.dir=out", "+x=1", *LOCAL, *own],
        cwd=tmp_path, check=False, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, timeout=900,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout
    (ledger,) = tmp_path.glob("multirun/sweeps/*/ledger.jsonl")
    assert '"cause":"hang"' in ledger.read_text()
    event = json.loads(told.read_text())
    assert (event["event"], event["counts"]) == ("ended", {"done": 1})
    assert str(told) not in (ledger.parent / "definition.jsonl").read_text()


@pytest.mark.long  # CI has them on SLURM
def test_every_program_on_this_machine(tmp_path: Path) -> None:
    with ThreadPoolExecutor(2) as pool:
        found = list(pool.map(lambda name: both(tmp_path / name, name, *LOCAL), [*NAMES, *AS_MODULES]))
    assert [difference for difference in found if difference] == []


@pytest.mark.slurm
def test_every_program_on_slurm(shared_slurm: EmulatedSlurm, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SLURM_CONF", str(shared_slurm.configuration))
    with ThreadPoolExecutor(4) as pool:
        found = list(pool.map(lambda name: both(tmp_path / name, name, *SLURM), [*NAMES, *AS_MODULES]))
    assert [difference for difference in found if difference] == []
