"""How often the kernel has killed a process of this job for the memory that the job used."""

from __future__ import annotations

import re
from pathlib import Path

_COUNT = re.compile(r"^oom_kill (\d+)$", re.MULTILINE)


def memory_kills(root: Path = Path("/")) -> int:
    """Return the count of this process's control groups, versions 1 and 2; 0 where none keeps one.

    Signals and exit codes do not tell such a kill from any other, and SLURM reports one within a step as FAILED.
    """
    try:
        groups = (root / "proc/self/cgroup").read_text().splitlines()
    except OSError:
        return 0
    for line in groups:
        _, controllers, path = line.split(":", 2)
        if controllers == "":
            files = _upwards(root / "sys/fs/cgroup", path, "memory.events")
        elif "memory" in controllers.split(","):
            files = _upwards(root / "sys/fs/cgroup/memory", path, "memory.oom_control")
        else:
            continue
        counts = [int(count) for file in files for count in _COUNT.findall(_text(file))]
        if counts:
            return sum(counts)
    return 0


def _upwards(mount: Path, path: str, name: str) -> list[Path]:
    """Return the files of the group and of those above it that are its job's: a limit may stand at each of them, where
    version 1 counts the kills. Groups above the job's count what others' jobs do."""
    parts = [part for part in path.split("/") if part]
    jobs = [depth for depth, part in enumerate(parts, start=1) if part.startswith("job_")]
    top = jobs[-1] if jobs else len(parts)
    return [mount.joinpath(*parts[:depth], name) for depth in range(len(parts), top - 1, -1)]


def _text(path: Path) -> str:
    try:
        return path.read_text()
    except OSError:
        return ""
