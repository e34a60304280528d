"""What of this machine this process may use: of a shared machine, a container or a SLURM job that is a part."""

from __future__ import annotations

import contextlib
import math
import os
from collections.abc import Mapping
from pathlib import Path

_CPU_QUOTAS = (
    # cgroup v2: "200000 100000", or "max 100000"; v1 has one file for each of the two.
    ("sys/fs/cgroup/cpu.max",),
    ("sys/fs/cgroup/cpu/cpu.cfs_quota_us", "sys/fs/cgroup/cpu/cpu.cfs_period_us"),
)


def usable_cores(environment: Mapping[str, str] = os.environ, root: Path = Path("/")) -> int:
    """Return how many cores this process may keep busy: the least of its affinity, its container's quota and, within a
    SLURM job, the cores of a task."""
    limits = [os.cpu_count() or 1]
    if hasattr(os, "sched_getaffinity"):
        limits.append(len(os.sched_getaffinity(0)))
    for names in _CPU_QUOTAS:
        with contextlib.suppress(OSError, ValueError):
            quota, period = " ".join((root / name).read_text() for name in names).split()
            if quota != "max" and int(quota) > 0:
                limits.append(math.ceil(int(quota) / int(period)))
    with contextlib.suppress(KeyError, ValueError):
        limits.append(int(environment["SLURM_CPUS_PER_TASK"]))
    return max(1, min(limits))


def usable_gpus(environment: Mapping[str, str] = os.environ, root: Path = Path("/")) -> list[str]:
    """Return the GPUs that this process may use, as CUDA_VISIBLE_DEVICES names them: numbers, UUIDs of GPUs or of their
    MIG parts; where that is not set, the numbers of the driver's device files."""
    visible = environment.get("CUDA_VISIBLE_DEVICES")
    if visible is None:
        numbers = [path.name.removeprefix("nvidia") for path in (root / "dev").glob("nvidia[0-9]*")]
        return sorted((number for number in numbers if number.isdigit()), key=int)
    found: list[str] = []
    for word in visible.split(","):
        name = word.strip()
        # As CUDA reads it: what follows a word that names no device does not count.
        if not name.isdigit() and not name.startswith(("GPU-", "MIG-")):
            break
        found.append(name)
    return found
