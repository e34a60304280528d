"""`hydra/sweeper=grid`: from a file and a command line to jobs, for an application that has its own files."""

import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from driving import GRID_APP, finish, run, start_command, starts
from hydra.core.override_parser.overrides_parser import OverridesParser

from muloco_runner.config import ConfigError
from sweeps.grid import LARGE_SWEEP
from sweeps.hydra_apps.grid_sweep import as_text, content_name, job_overrides

GRID = ["hydra/sweeper=grid"]
PARSER = OverridesParser.create()


def jobs(sweep: dict[str, Any] | None, *arguments: str) -> list[list[str]]:
    return job_overrides(sweep, PARSER, arguments, allow_large=False)


def test_the_command_line_alone_is_a_grid() -> None:
    assert jobs(None, "a=1,2", "b=x") == [["a=1", "b=x"], ["a=2", "b=x"]]
    assert jobs(None, "a=range(0,3)") == [["a=0"], ["a=1"], ["a=2"]]
    assert jobs(None, "a=1") == [["a=1"]]
    assert jobs(None) == [[]]


def test_the_command_line_narrows_and_adds_in_its_own_spelling() -> None:
    sweep = {"grids": [{"product": {"a": [1, 2], "+b": ["x", "y"]}}]}
    assert jobs(sweep, "a=2", "b=y") == [["a=2", "+b=y"]]
    assert jobs(sweep, "+b=z", "a=1") == [["a=1", "+b=z"]]
    assert jobs(sweep, "a=1", "b=x", "+c=5,6") == [["a=1", "+b=x", "+c=5"], ["a=1", "+b=x", "+c=6"]]
    assert jobs(sweep, "a=1", "b=x", "~d") == [["~d", "a=1", "+b=x"]]
    # The word that named the file is not for the jobs.
    assert jobs(sweep, "+sweep=mixed", "a=1", "b=x") == [["a=1", "+b=x"]]


@pytest.mark.parametrize(
    "value",
    [
        *(1, -2.5, 1e-30, True, None, [1, "a,b", None], {"a": [1, 2], "b": "c d"}),
        *("29k", "a b", "it's", "a,b", "", "null", "1e3", "true", "x/y.z-1", "a=b", "{", "é", "c:\\d", "\\'"),
    ],
    ids=repr,
)
def test_a_value_of_a_file_is_the_same_on_the_command_line(value: Any) -> None:
    (parsed,) = PARSER.parse_overrides([f"key={as_text(value)}"])
    assert parsed.value() == value
    assert type(parsed.value()) is type(value)


def test_a_folders_name_depends_on_what_not_on_where() -> None:
    assert content_name(["a=1", "b=2"]) == content_name(["b=2", "a=1"]) != content_name(["a=2", "b=1"])


def test_more_than_a_person_means_is_asked_about(monkeypatch: pytest.MonkeyPatch) -> None:
    sweep = {"grids": [{"product": {"a": list(range(LARGE_SWEEP + 1))}}]}
    monkeypatch.setattr("sys.stdin.isatty", lambda: True, raising=False)
    for answer, taken in (("n", 0), ("", 0), ("y", LARGE_SWEEP + 1)):
        monkeypatch.setattr("builtins.input", lambda question, answer=answer: answer)
        try:
            found = len(job_overrides(sweep, PARSER, [], allow_large=False))
        except ConfigError:
            found = 0
        assert found == taken


@pytest.mark.thorough
def test_a_sweep_keeps_its_folders_and_results_when_it_grows(tmp_path: Path) -> None:
    words = [*GRID, "+sweep=mixed", "hydra/launcher=quota", "hydra.launcher.tick_seconds=0.05"]
    run(tmp_path, *words, "model=small", "lr=0.1,0.4", app=GRID_APP)
    before = {path.name for path in (tmp_path / "out").iterdir()}
    assert "4 runs: 4 done" in run(tmp_path, *words, app=GRID_APP)
    assert starts(tmp_path) == ["large 0.3", "small 0.1", "small 0.2", "small 0.4"]
    after = {path.name for path in (tmp_path / "out").iterdir()}
    assert before < after
    assert len(after) == 5  # and multirun.yaml
    # The jobs' own configs know nothing of the sweep.
    (config,) = {path.read_text().count("sweep") for path in (tmp_path / "out").glob("*/.hydra/config.yaml")}
    assert config == 0


def test_hydras_own_flags_and_completion_know_the_plugins(tmp_path: Path) -> None:
    command = ["hydra/launcher=quota", "hydra/sweeper=grid", "+sweep=mixed"]
    shown = finish(start_command(tmp_path, *command, "--cfg", "hydra", "-p", "hydra.launcher", app=GRID_APP))
    assert "wall_minutes: 60.0" in shown
    assert "lr: 0.1" in finish(start_command(tmp_path, *command, "--cfg", "job", app=GRID_APP))
    assert "GridSweeper" in finish(start_command(tmp_path, "--info", "plugins", app=GRID_APP))
    # Hydra reads no further than letters, digits, dots and slashes of a script's path: not a folder with a dash.
    line = f"python {GRID_APP.name} hydra/launcher=q"
    done = subprocess.run(
        [sys.executable, str(GRID_APP), "-sc", "query=bash"],
        cwd=tmp_path,
        env={"COMP_LINE": line, "COMP_POINT": str(len(line)), "PATH": ""},
        capture_output=True, text=True, timeout=600, check=True,
    )  # fmt: skip
    assert done.stdout.split() == ["hydra/launcher=quota"]
    assert not starts(tmp_path)


def test_a_start_of_any_application_loads_only_settings() -> None:
    code = (
        "import sys; from hydra.core.plugins import Plugins; Plugins.instance()\n"
        "assert 'hydra_plugins.sweeps.quota_launcher' in sys.modules\n"
        "heavy = {'sweeps', 'muloco_runner', 'submitit', 'cloudpickle', 'rich', 'psutil', 'torch'} & set(sys.modules)\n"
        "assert not heavy, heavy"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
