"""Lets the tests of this folder import `planted` beside them, and gives them one study with its report."""

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

    root = tmp_path_factory.mktemp("study")
    law, models = Law(noise=0.001), ("82k", "134k", "235k", "503k")
    write_sweep(root, law, models, batches=[2**e for e in range(11, 18)], lrs=(0.01,))
    write_sweep(root, law, models[:1], batches=(8192,), lrs=(0.005, 0.02), seeds=(0, 1), workers=(1, 4))
    write_sweep(root, law, models[:3], batches=(4096, 8192), lrs=(0.01,), budgets=(10.0, 50 / 3))
    out = root / "report"
    assert run([str(root), "--out", str(out), *REPORT]) == 0
    return root, out
