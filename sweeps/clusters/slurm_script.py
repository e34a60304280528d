"""The text of SLURM batch scripts: a pure function of what is asked for."""

from __future__ import annotations

import math
import shlex
from collections.abc import Mapping, Sequence
from pathlib import Path

from sweeps.clusters.interface import JobRequest
from sweeps.config import AllocationConfig
from sweeps.source import import_lines, python_words

SIGNAL_SECONDS = 120
"""USR1 comes so long before the time limit, or up to a minute earlier still."""


def batch_script(options: Mapping[str, object], setup: Sequence[str], command: Sequence[str]) -> str:
    """`options` by their long names, True for one without a value, None for one that is left out; then the lines of
    shell from the cluster's own file, then the command in the shell's place."""
    lines = ["#!/bin/bash"]
    for name, value in options.items():
        if value is True:
            lines.append(f"#SBATCH --{name}")
        elif value is not None:
            lines.append(f"#SBATCH --{name}={shlex.quote(str(value))}")
    # exec: the shell would keep the signals to itself.
    return "\n".join([*lines, *setup, f"exec {shlex.join(command)}", ""])


def job_script(request: JobRequest, allocation: AllocationConfig, setup: Sequence[str], folder: Path) -> str:
    """The job that does a request, whose file lies in `folder`/requests."""
    options: dict[str, object] = {
        "job-name": request.tag,
        "comment": request.tag,
        "nodes": request.nodes,
        "ntasks-per-node": 1,
        "cpus-per-task": request.cpus_per_node,
        "time": max(1, math.ceil(request.wall_minutes)),
        "output": folder / "logs" / f"{request.tag}.log",
        "open-mode": "append",
        "signal": f"B:USR1@{SIGNAL_SECONDS}",
        # A requeue by SLURM would be an attempt that nobody has counted.
        "no-requeue": True,
        "gres": f"gpu:{request.gpus_per_node}" if request.gpus_per_node else None,
        "exclude": ",".join(request.excluded_nodes) or None,
        "partition": allocation.partition,
        "account": allocation.account,
        "qos": allocation.qos,
        **allocation.sbatch,
    }
    command = [*python_words("sweeps.clusters.slurm_job"), str(folder / "requests" / f"{request.tag}.json")]
    return batch_script(options, [*setup, *import_lines(request.code)], command)
