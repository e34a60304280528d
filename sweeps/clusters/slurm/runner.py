"""What a SLURM job starts: `python -m sweeps.clusters.slurm.runner FOLDER`, submitit's runner under our signals.

submitit's own handlers requeue the job on SIGUSR2 and ignore SIGTERM. Signals that ask for a checkpoint are blocked
before it installs them, and wait until what it runs (`sweeps.clusters.slurm.batch_job`) has installed ours.
"""

from __future__ import annotations

import os
import signal
import sys

from muloco_runner.record import STOP_SIGNALS

BLOCKED = (*STOP_SIGNALS, signal.SIGCONT)
"""Signals that submitit handles, and ours."""


def main(folder: str) -> None:
    """Run the payload that the job's script has linked in `folder`; it ends this process with its exit code."""
    signal.pthread_sigmask(signal.SIG_BLOCK, BLOCKED)
    # Names a signal on which submitit would requeue the job; one of ours without it.
    os.environ.pop("SUBMITIT_PREEMPT_SIGNAL", None)
    from submitit.core.submission import process_job

    process_job(_without_patterns(folder))


def _without_patterns(folder: str) -> str:
    """Return a path to the folder in which submitit replaces nothing: it takes %j and the like for its own."""
    return f"/proc/{os.getpid()}/fd/{os.open(folder, os.O_PATH)}" if "%" in folder else folder


if __name__ == "__main__":
    main(sys.argv[1])
