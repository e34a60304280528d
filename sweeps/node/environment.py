"""What an attempt runs with, in attempts/<n>/environment.json: the code, the packages, the host."""

from __future__ import annotations

import contextlib
import functools
import os
import platform
import socket
import sys
from importlib import metadata
from pathlib import Path

from muloco_runner.record import RunFolder
from sweeps.engine.work import Attempt
from sweeps.node.code_snapshot import describe_source, git_state

_OF_THE_SCHEDULER = ("SLURM_JOB_ID", "SLURM_JOB_NODELIST", "SLURM_JOB_PARTITION", "SLURM_JOB_ACCOUNT", "SLURM_JOB_QOS")
"""Named one by one: an environment may hold secrets."""


def record_environment(attempt: Attempt) -> None:
    """Write what the attempt runs with, before it starts. A file that cannot be written stops no work."""
    source = Path(attempt.work.source) if attempt.work.source else None
    values = {
        "code": describe_source(),
        "source": {"folder": str(source), "git": git_state(source)} if source is not None else None,
        "python": platform.python_version(),
        "executable": sys.executable,
        "packages": installed_packages(),
        "host": socket.gethostname(),
        "num_tasks": attempt.work.need.tasks,
        "scheduler": {name: os.environ[name] for name in _OF_THE_SCHEDULER if name in os.environ},
    }
    with contextlib.suppress(OSError):
        RunFolder(attempt.work.folder).write_environment(attempt.number, values)


@functools.cache
def installed_packages() -> dict[str, str]:
    """Versions by name. Read once for all attempts that are forked from a process that has asked."""
    found = {}
    for distribution in metadata.distributions():
        with contextlib.suppress(Exception):
            found[distribution.metadata["Name"]] = distribution.version
    return dict(sorted(found.items()))
