"""The folders under examples/, as somebody runs them who has copied one; tests of own_optimizer are beside this."""

import re
import shutil
from pathlib import Path

import pytest
from installed_wheel import ROOT, Installed

EXAMPLES = ROOT / "examples"


def commands(name: str) -> list[list[str]]:
    """The lines of shell in an example's README, comments cut off."""
    blocks = re.findall(r"```sh\n(.*?)```", (EXAMPLES / name / "README.md").read_text(), re.S)
    return [line.partition("#")[0].split() for block in blocks for line in block.splitlines() if line.strip()]


@pytest.mark.thorough
def test_a_hydra_application_of_the_users_own(installed: Installed, tmp_path: Path) -> None:
    work = tmp_path / "work"
    shutil.copytree(EXAMPLES / "own_application", work)
    for name in ("sweeps", "analysis", "muloco_runner"):
        (work / name).mkdir()
        (work / name / "__init__.py").write_text("raise RuntimeError('the user s own')")
    single, multirun, status = commands("own_application")
    installed.run(work, *single)
    said = installed.run(work, *multirun)
    assert "6 runs: 6 done" in said
    errors = {file.parent.name: float(file.read_text()) for file in work.glob("out/*/error.txt")}
    assert len(errors) == 6
    assert errors["function=sin,steps=1000"] < errors["function=sin,steps=10"] / 1000
    assert "6 runs: 6 done" in installed.run(work, *multirun)
    assert len(list(work.glob("multirun/sweeps/*/runs/*/attempts/*"))) == 6, "the same command repeats nothing"
    assert "6 runs" in installed.run(work, *status)


@pytest.mark.thorough
def test_a_table_of_the_users_own(installed: Installed, tmp_path: Path) -> None:
    shutil.copytree(EXAMPLES / "own_table", tmp_path / "work")
    (command,) = commands("own_table")
    said = installed.run(tmp_path / "work", *command, "--bootstrap", "0")
    assert "losses from best to worst: ours 2.1137, adam 2.1540" in said
    assert (tmp_path / "work" / "report" / "report.html").is_file()


def test_every_example_is_listed_and_has_commands() -> None:
    folders = {path.name for path in EXAMPLES.iterdir() if path.is_dir()}
    assert set(re.findall(r"\]\((\w+)\)", (EXAMPLES / "README.md").read_text())) == folders
    assert all(commands(name) for name in folders)
