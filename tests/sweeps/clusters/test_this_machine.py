"""The part of a machine that a process may use."""

import os
from pathlib import Path

import pytest

from sweeps.clusters.this_machine import usable_cores, usable_gpus

CORES = len(os.sched_getaffinity(0))


@pytest.mark.parametrize(
    ("files", "environment", "expected"),
    [
        ({}, {}, CORES),
        ({"cpu.max": "max 100000\n"}, {}, CORES),
        ({"cpu.max": "100000 100000\n"}, {}, 1),
        ({"cpu.max": "50000 100000\n"}, {}, 1),
        ({"cpu/cpu.cfs_quota_us": "100000\n", "cpu/cpu.cfs_period_us": "100000\n"}, {}, 1),
        ({"cpu/cpu.cfs_quota_us": "-1\n", "cpu/cpu.cfs_period_us": "100000\n"}, {}, CORES),
        ({"cpu.max": "nonsense"}, {}, CORES),
        ({}, {"SLURM_CPUS_PER_TASK": "1"}, 1),
        ({}, {"SLURM_CPUS_PER_TASK": "4096"}, CORES),
    ],
)
def test_cores(files: dict[str, str], environment: dict[str, str], expected: int, tmp_path: Path) -> None:
    for name, text in files.items():
        path = tmp_path / "sys/fs/cgroup" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    assert usable_cores(environment, tmp_path) == expected


def test_a_process_bound_to_one_core_has_one(tmp_path: Path) -> None:
    before = os.sched_getaffinity(0)
    os.sched_setaffinity(0, {min(before)})
    try:
        assert usable_cores({}, tmp_path) == 1
    finally:
        os.sched_setaffinity(0, before)


@pytest.mark.parametrize(
    ("visible", "expected"),
    [
        ("0,3", ["0", "3"]),
        ("GPU-8932f937-d72c,GPU-1a2b", ["GPU-8932f937-d72c", "GPU-1a2b"]),
        ("MIG-GPU-8932/1/0, 2", ["MIG-GPU-8932/1/0", "2"]),
        ("0,-1,2", ["0"]),
        ("", []),
        ("NoDevFiles", []),
        (None, ["0", "2", "10"]),
    ],
)
def test_gpus(visible: str | None, expected: list[str], tmp_path: Path) -> None:
    (tmp_path / "dev").mkdir()
    for name in ("nvidia10", "nvidia2", "nvidia0", "nvidiactl", "nvidia-uvm"):
        (tmp_path / "dev" / name).touch()
    assert usable_gpus({} if visible is None else {"CUDA_VISIBLE_DEVICES": visible}, tmp_path) == expected
