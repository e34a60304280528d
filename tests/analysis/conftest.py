"""Lets the tests of this folder import `planted` beside them, and gives them one study with its report."""

import fcntl
import os
import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent))

REPORT = ("--bootstrap", "50", "--published")


@pytest.fixture(scope="session")
def planted(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """A study of noisy runs and its report."""
    from planted import Law, write_sweep

    from analysis.__main__ import run

    # One for all processes of pytest-xdist, whose own folders lie side by side; tests only read it.
    place = tmp_path_factory.getbasetemp()
    place = place.parent if "PYTEST_XDIST_WORKER" in os.environ else place
    root, out = place / "study", place / "study" / "report"
    with (place / "study.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if out.exists():
            return root, out
        law, models = Law(noise=0.001), ("82k", "134k", "235k", "503k")
        write_sweep(root, law, models, batches=[2**e for e in range(11, 18)], lrs=(0.01,))
        write_sweep(root, law, models[:1], batches=(8192,), lrs=(0.005, 0.02), seeds=(0, 1), workers=(1, 4))
        write_sweep(root, law, models[:3], batches=(4096, 8192), lrs=(0.01,), budgets=(10.0, 50 / 3))
        assert run([str(root), "--out", str(out), *REPORT]) == 0
    return root, out
