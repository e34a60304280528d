"""Runs SLURM's commands and returns what they print."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Sequence
from pathlib import Path

from sweeps.clusters.slurm.parse import classify_refusal
from sweeps.engine.cluster import RefusalKind, Refused

_ANSWER_SECONDS = 60.0
"""Timeout of a command."""


def submit_script(script: Path) -> str:
    """Submit a batch script and return the job's number. Raises `Refused`."""
    done = _run(["sbatch", "--parsable", str(script)])
    if done is None:
        raise Refused(RefusalKind.MAY_EXIST, "sbatch did not answer")
    if done.returncode:
        raise Refused(classify_refusal(done.stderr), " ".join(done.stderr.split()))
    return done.stdout.strip().partition(";")[0]


def _run(command: Sequence[str]) -> subprocess.CompletedProcess[str] | None:
    """Run one of SLURM's commands; return None at a timeout, after which its effect is unknown."""
    # Inside of a job, the job's own SLURM variables must not reach the jobs that it submits.
    environment = {
        name: value for name, value in os.environ.items() if not name.startswith("SLURM_") or name == "SLURM_CONF"
    }
    try:
        return subprocess.run(
            command,
            # Some of these commands ask questions on a terminal.
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=_ANSWER_SECONDS,
            check=False,
            env=environment,
        )
    except subprocess.TimeoutExpired:
        return None


def answer_of(*command: str) -> str | None:
    """Return what one of SLURM's commands prints; None where it fails or does not answer."""
    done = _run(command)
    return None if done is None or done.returncode else done.stdout
