"""Runs SLURM's commands and returns what they print, whatever the user's environment says."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Sequence
from pathlib import Path

from sweeps.clusters.slurm.parse import classify_refusal, says_unknown_job, submitted_number
from sweeps.clusters.slurm.variables import unsteered
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
    number = submitted_number(done.stdout)
    if number is None:
        raise Refused(RefusalKind.MAY_EXIST, f"sbatch printed no job number: {' '.join(done.stdout.split())}")
    return number


def _run(command: Sequence[str]) -> subprocess.CompletedProcess[str] | None:
    """Run one of SLURM's commands; return None at a timeout, after which its effect is unknown."""
    try:
        return subprocess.run(
            command,
            # Some of these commands ask questions on a terminal.
            stdin=subprocess.DEVNULL,
            capture_output=True,
            encoding="utf-8",
            # Names and comments of jobs may hold any bytes.
            errors="replace",
            timeout=_ANSWER_SECONDS,
            check=False,
            env=unsteered(os.environ),
        )
    except subprocess.TimeoutExpired:
        return None


def answer_of(*command: str) -> str | None:
    """Return what one of SLURM's commands prints; None where it fails or does not answer."""
    done = _run(command)
    return None if done is None or done.returncode else done.stdout


def accounting_of(*command: str) -> str | None:
    """The same for `sacct`; nothing, an answer, where the cluster keeps no accounting at all."""
    done = _run(command)
    if done is not None and done.returncode and "accounting storage is disabled" in done.stderr.lower():
        return ""
    return None if done is None or done.returncode else done.stdout


def listing_of(*command: str) -> str | None:
    """The same for `squeue --jobs`; nothing, an answer, where it knows of none of the jobs."""
    done = _run(command)
    if done is not None and done.returncode and says_unknown_job(done.stderr):
        return ""
    return None if done is None or done.returncode else done.stdout
