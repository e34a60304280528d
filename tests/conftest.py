"""One real SLURM for the whole test session; each test finds it empty and idle."""

from __future__ import annotations

import os
import signal
import sys
import tempfile
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent / "cluster"))
from emulated_slurm import EmulatedSlurm, why_unavailable

if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    # Started in the background, by a shell: all that tests start, and then interrupt, would be deaf too.
    signal.signal(signal.SIGINT, signal.default_int_handler)
# Set in many people's shells; here one line is asked of a mistake.
os.environ.pop("HYDRA_FULL_ERROR", None)
# pytest-xdist sets it in its workers: words are wrapped at a width that somebody has asked for.
os.environ.pop("COLUMNS", None)
# It guards against a loss of power, which no test causes; random histories would wait for the disk thousands of times.
os.fsync = lambda fd: None
if find_spec("absl") is not None:  # comes with the extras
    # Its handler closes the stream that it met when it was imported, once Hydra sets logging up: pytest's own.
    import absl.logging

    absl.logging.get_absl_handler().python_handler.setStream(sys.__stderr__)
# What a user's sweeps have in common; two processes of tests have a cluster each.
_STATE = tempfile.TemporaryDirectory(prefix="state-", ignore_cleanup_errors=True)
os.environ["MULOCO_STATE"] = _STATE.name

LONGEST_FIRST = [
    f"{file}.py"
    for file in (
        "test_readme",
        "hydra/test_quota_launcher",
        "muloco_runner/optimizers/test_triton",
        "muloco_runner/distributed/test_placement",
        "hydra/test_foreign_programs",
        "hydra/test_acceptance",
        "sweeps/cli/test_commands",
        "muloco_runner/training/test_checkpointing",
        "muloco_runner/training/test_fsdp",
        "sweeps/simulation/test_simulate",
        "muloco_runner/memory/test_estimate",
    )
]
"""Begun last, one of these would keep one process of tests at work while the others are done."""


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    folder = Path(__file__).parent
    rank = {folder / file: number for number, file in enumerate(LONGEST_FIRST)}
    items.sort(key=lambda item: rank.get(item.path, len(rank)))


def pytest_make_parametrize_id(val: object, argname: str) -> str | None:
    """Bytes, such as an archive's, may hold the time at which they were made: processes must agree on a test's name."""
    return argname if isinstance(val, bytes) else None


@pytest.fixture(autouse=True)
def environment_left_as_found() -> Iterator[None]:
    """Which tests share a process is chance: one that leaves a variable behind would fail another, now and then."""
    before = dict(os.environ)
    yield
    after = dict(os.environ)
    changed = {name for name in {*before, *after} if before.get(name) != after.get(name)}
    # pytest, torch and the libraries of others write down there what they are at.
    # The cluster of all tests says where it is, at the first test that wants it.
    ours = {name for name in changed if not name.startswith(("PYTEST", "TORCH", "TRITON", "KMP", "SLURM_CONF"))}
    assert not ours, f"left changed in the environment: {sorted(ours)}"


@pytest.fixture(scope="session")
def slurm_session() -> Iterator[EmulatedSlurm]:
    reason = why_unavailable()
    if reason is not None:
        if os.environ.get("MULOCO_REQUIRE_SLURM"):
            pytest.fail(f"MULOCO_REQUIRE_SLURM is set, but {reason}")
        pytest.skip(f"no real SLURM here: {reason}")
    # pytest's own folders are closed to the other users whose jobs run here.
    with tempfile.TemporaryDirectory(prefix="slurm-", ignore_cleanup_errors=True) as state:
        os.chmod(state, 0o755)
        cluster = EmulatedSlurm(Path(state))
        try:
            cluster.start()
            yield cluster
        finally:
            cluster.stop()


@pytest.fixture
def slurm(slurm_session: EmulatedSlurm) -> EmulatedSlurm:
    slurm_session.cancel_everything()
    slurm_session.is_used = True
    return slurm_session


@pytest.fixture
def shared_slurm(slurm_session: EmulatedSlurm) -> EmulatedSlurm:
    """For tests that do not mind the jobs of others like them."""
    if slurm_session.is_used:
        slurm_session.cancel_everything()
    return slurm_session
