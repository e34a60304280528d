"""One real SLURM for the whole test session; each test finds it empty and idle."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent / "cluster"))
from emulated_slurm import EmulatedSlurm, why_unavailable


@pytest.fixture(scope="session")
def slurm_session(tmp_path_factory: pytest.TempPathFactory) -> Iterator[EmulatedSlurm]:
    reason = why_unavailable()
    if reason is not None:
        if os.environ.get("MULOCO_REQUIRE_SLURM"):
            pytest.fail(f"MULOCO_REQUIRE_SLURM is set, but {reason}")
        pytest.skip(f"no real SLURM here: {reason}")
    cluster = EmulatedSlurm(tmp_path_factory.mktemp("slurm"))
    try:
        cluster.start()
        yield cluster
    finally:
        cluster.stop()


@pytest.fixture
def slurm(slurm_session: EmulatedSlurm) -> EmulatedSlurm:
    slurm_session.cancel_everything()
    return slurm_session
