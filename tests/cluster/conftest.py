"""Our commands speak to the emulated cluster, and its jobs find the samples of work."""

from __future__ import annotations

import multiprocessing
import os
from collections.abc import Iterator
from pathlib import Path

import pytest
from emulated_slurm import EmulatedSlurm


@pytest.fixture(autouse=True)
def environment(slurm: EmulatedSlurm, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SLURM_CONF", str(slurm.configuration))
    # Tests put commands of their own before SLURM's.
    monkeypatch.setenv("PATH", os.environ["PATH"])
    monkeypatch.setenv("PYTHONPATH", str(Path(__file__).parent))


@pytest.fixture(autouse=True)
def no_driver_left(slurm: EmulatedSlurm) -> Iterator[None]:
    """A driver that a failed test leaves behind would submit jobs into the next one."""
    yield
    for driver in multiprocessing.active_children():
        driver.kill()
        driver.join()
