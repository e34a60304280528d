"""The text of SLURM batch scripts: a pure function of the request."""

from __future__ import annotations

import math
import shlex
from collections.abc import Mapping, Sequence
from pathlib import Path

from sweeps.clusters.slurm.slurm_settings import controller_of, options_of
from sweeps.engine.cluster import JobRequest
from sweeps.engine.cluster_config import AllocationConfig, ClusterConfig
from sweeps.node.code_snapshot import import_lines, python_command

SIGNAL_SECONDS = 120
"""SIGUSR1 is sent this long before the time limit, or up to a minute earlier."""
CONTROLLER_OF = "controller-of-"
"""Prefix of the names of jobs that run a sweep's controller."""


def batch_script(options: Mapping[str, object], setup: Sequence[str], command: Sequence[str]) -> str:
    """Return the text of a batch script.

    `options` of sbatch are by their long names, True for one without a value, None for one that is left out. `setup`
    holds the lines of shell from the cluster's file; the command replaces the shell.
    """
    lines = ["#!/bin/bash"]
    for name, value in options.items():
        if value is True:
            lines.append(f"#SBATCH --{name}")
        elif value is not None:
            lines.append(f"#SBATCH --{name}={shlex.quote(str(value))}")
    # exec: a shell would not forward the signals.
    return "\n".join([*lines, *setup, f"exec {shlex.join(command)}", ""])


def job_script(request: JobRequest, allocation: AllocationConfig, setup: Sequence[str], folder: Path) -> str:
    """Return the script of the job that runs a request, whose file is in `folder`/requests."""
    slurm = options_of(allocation)
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
        # A requeue by SLURM would be an attempt that the controller does not count.
        "no-requeue": True,
        "gres": f"gpu:{request.gpus_per_node}" if request.gpus_per_node else None,
        "exclude": ",".join(request.excluded_nodes) or None,
        "partition": slurm.partition,
        "account": slurm.account,
        "qos": slurm.qos,
        **slurm.sbatch,
    }
    command = [*python_command("sweeps.clusters.slurm.batch_job"), str(folder / "requests" / f"{request.tag}.json")]
    return batch_script(options, [*setup, *import_lines(request.code)], command)


def controller_script(
    cluster: ClusterConfig,
    name: str,
    log: Path,
    after: str | None,
    setup: Sequence[str],
    command: Sequence[str],
    delay_seconds: float,
) -> str:
    """Return the script of the job that runs a sweep's controller: once job `after` has ended, and not within
    `delay_seconds` from now."""
    where, first = controller_of(cluster), options_of(cluster.allocations[0])
    options: dict[str, object] = {
        "job-name": name,
        "comment": name,
        "nodes": 1,
        "ntasks": 1,
        "cpus-per-task": 1,
        "mem": f"{math.ceil(1024 * where.memory_gigabytes)}M",
        "time": math.ceil(where.wall_minutes),
        "output": log,
        "open-mode": "append",
        "signal": f"B:USR1@{SIGNAL_SECONDS}",
        "no-requeue": True,
        "dependency": f"afterany:{after}" if after else None,
        # Controllers that fail at once must not follow each other without a pause.
        "begin": f"now+{math.ceil(delay_seconds)}" if after else None,
        "partition": where.partition or first.partition,
        "account": where.account or first.account,
        "qos": where.qos or first.qos,
        **where.sbatch,
    }
    return batch_script(options, setup, command)
