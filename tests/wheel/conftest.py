"""One environment with the wheel for all tests of this folder."""

import importlib.util
import subprocess
import sys
from pathlib import Path

import pytest
from installed_wheel import ROOT, Installed


@pytest.fixture(scope="session")
def installed(tmp_path_factory: pytest.TempPathFactory) -> Installed:
    """Heavy packages are borrowed from the environment of the tests."""
    place = tmp_path_factory.mktemp("installed")
    isolated = ["--no-build-isolation"] if importlib.util.find_spec("hatchling") else []
    _pip("wheel", "--quiet", "--no-deps", *isolated, "--wheel-dir", str(place), str(ROOT))
    (wheel,) = place.glob("*.whl")
    folder = place / "environment"
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", str(folder)], check=True)
    (site,) = folder.glob("lib/python*/site-packages")
    borrowed = [path for path in sys.path if Path(path).name in ("site-packages", "dist-packages")]
    (site / "borrowed.pth").write_text("\n".join(borrowed) + "\n")
    python = str(folder / "bin" / "python")
    _pip("--python", python, "install", "--quiet", "--no-deps", "--no-index", str(wheel))
    # Only what a user would have set.
    variables = {"PYTHONPATH": "", "MULOCO_CONF": "", "XDG_CACHE_HOME": str(place / "cache"), "OMP_NUM_THREADS": "1"}
    return Installed(folder, variables)


def _pip(*words: str) -> None:
    done = subprocess.run([sys.executable, "-m", "pip", *words], capture_output=True, text=True, check=False, cwd="/")
    assert done.returncode == 0, done.stderr
