"""Runs the foreign application as people do: a command in a folder, its state and results beside it."""

import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

APP = Path(__file__).parent / "foreign_app.py"
GRID_APP = Path(__file__).parent / "grid_app" / "app.py"


def start(folder: Path, *words: str, app: Path = APP) -> "subprocess.Popen[str]":
    """A multirun."""
    return start_command(folder, "--multirun", "hydra.sweep.dir=out", *words, app=app)


def start_command(folder: Path, *words: str, app: Path = APP) -> "subprocess.Popen[str]":
    command = [sys.executable, str(app), *words]
    return subprocess.Popen(command, cwd=folder, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)


def finish(process: "subprocess.Popen[str]", seconds: float = 600) -> str:
    """What it printed; ended well."""
    output, _ = process.communicate(timeout=seconds)
    assert process.returncode == 0, output
    return output


def run(folder: Path, *words: str, app: Path = APP) -> str:
    return finish(start(folder, *words, app=app))


def fail(folder: Path, *words: str, app: Path = APP) -> str:
    process = start(folder, *words, app=app)
    output, _ = process.communicate(timeout=600)
    assert process.returncode == 1, output
    return output


def starts(folder: Path) -> list[str]:
    """What each job that began wrote down."""
    file = folder / "starts"
    return sorted(file.read_text().splitlines()) if file.exists() else []


def squares(folder: Path) -> set[int]:
    return {int(path.read_text()) for path in (folder / "out").glob("*/square")}


def numbers(count: int) -> str:
    return "number=" + ",".join(map(str, range(count)))


def wait_until(happens: Callable[[], bool], seconds: float = 600) -> None:
    deadline = time.monotonic() + seconds
    while not happens():
        assert time.monotonic() < deadline, f"it did not happen within {seconds:.0f} s"
        time.sleep(0.05)


def kill(process: "subprocess.Popen[str]") -> None:
    """As the machine would: no instruction more."""
    process.kill()
    process.wait()
    assert process.stdout is not None
    process.stdout.close()
