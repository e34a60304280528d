"""The project's packages are its own in every program, whatever else bears their names."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

import muloco_sweeps
from muloco_sweeps import python_command

TAKEN = "raise RuntimeError('the package of another')"


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A user's folder with packages of the project's names."""
    for name in ("sweeps", "analysis", "muloco_runner"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "__init__.py").write_text(TAKEN)
    return tmp_path


def python(folder: Path, *words: str) -> "subprocess.CompletedProcess[str]":
    """Both in that folder and with it on the path, before all else."""
    path = os.pathsep.join([str(folder), str(muloco_sweeps.ROOT)])
    return subprocess.run(
        [sys.executable, *words], cwd=folder, capture_output=True, text=True, check=False,
        env={**os.environ, "PYTHONPATH": path},
    )  # fmt: skip


def test_a_program_is_not_the_one_of_the_folder(folder: Path) -> None:
    for module, said in (("sweeps", "muloco-sweep"), ("analysis", "muloco-report"), ("muloco_runner", "muloco-train")):
        done = python(folder, *python_command(module)[1:], "--help")
        assert said in done.stdout, done.stderr


def test_a_script_drops_its_own_folder_from_the_path(folder: Path) -> None:
    (folder / "yaml.py").write_text(TAKEN)
    (folder / "muloco-sweep").write_text("from muloco_sweeps import sweep\nsweep()\n")
    done = subprocess.run(
        [sys.executable, str(folder / "muloco-sweep"), "plan", "+sweep=nothing"],
        cwd=folder, capture_output=True, text=True, check=False,
        env={**os.environ, "PYTHONPATH": str(muloco_sweeps.ROOT)},
    )  # fmt: skip
    assert (done.returncode, done.stderr.count("\n")) == (2, 1), done.stderr
    assert "+sweep=nothing" in done.stderr


def test_a_name_that_is_loaded_already_is_refused(folder: Path) -> None:
    (folder / "sweeps" / "__init__.py").write_text("")
    code = "import sweeps, muloco_sweeps\nmuloco_sweeps.claim_names()"
    done = python(folder, "-c", code)
    last = done.stderr.splitlines()[-1]
    assert f"sweeps is {folder}/sweeps/__init__.py in this process" in last, done.stderr
    assert "rename the other" in last


def test_a_name_that_another_distribution_owns_is_refused(tmp_path: Path) -> None:
    """As pip leaves it where two distributions bring one package."""
    (tmp_path / "muloco_sweeps.py").write_text(Path(muloco_sweeps.__file__).read_text())
    for name in ("muloco_runner", "sweeps"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "__init__.py").write_text((muloco_sweeps.ROOT / name / "__init__.py").read_text())
    (tmp_path / "sweeps" / "__init__.py").write_text("__version__ = '1'\n")
    info = tmp_path / "sweeps-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: sweeps\nVersion: 1.0\n")
    (info / "RECORD").write_text("sweeps/__init__.py,,\n")
    done = subprocess.run(
        [sys.executable, "-P", "-m", "muloco_sweeps", "sweeps", "plan"],
        capture_output=True, text=True, check=False, env={**os.environ, "PYTHONPATH": str(tmp_path)},
    )  # fmt: skip
    assert done.returncode == 2
    assert done.stderr == (
        f"sweeps: {tmp_path}/sweeps/__init__.py is not that of muloco-sweeps (sweeps has installed it): install the "
        "two in environments of their own, or reinstall muloco-sweeps last\n"
    )
