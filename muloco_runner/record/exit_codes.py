"""The exit codes with which an attempt reports how it ended, and the signals that ask it to stop."""

from __future__ import annotations

import signal
from enum import IntEnum


class ExitCode(IntEnum):
    """A trainer's own report of how it ended: the one channel that no scheduler rewrites."""

    FINISHED = 0
    """Also when the run diverged: that is a result, not a failure."""
    CRASH = 1
    USAGE = 2
    """A user's mistake, found before anything was started."""
    CONFIG_CANNOT_RUN = 65
    """The config is valid but cannot run here: bad data path, bad shape, a checkpoint of other data."""
    OUT_OF_MEMORY = 70
    """Of a GPU's memory."""
    OUT_OF_HOST_MEMORY = 71
    """The kernel killed it for the main memory that it, or its job, used: said by what watches it."""
    WANTS_MORE_TIME = 75
    """Checkpointed after a signal or at a deadline."""
    SETUP_FAILED = 78
    """The job's script failed in its `setup`, before the attempt began."""


STOP_SIGNALS = (signal.SIGUSR1, signal.SIGUSR2, signal.SIGTERM)
"""Ask for a checkpoint and `ExitCode.WANTS_MORE_TIME`."""
KILLED_BY_SIGNAL = 128
"""A process that signal N killed has exit code 128 + N, as in a shell."""
STOPPED_CODES = tuple(KILLED_BY_SIGNAL + number for number in STOP_SIGNALS)
"""Exit codes of a process that was asked to stop before it had set its handlers."""
