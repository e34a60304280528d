"""The end of a job's process as an interpreter ends: threads joined, exit handlers run, open files written.

Jobs are forked from a process with handlers of its own, and must not return into the application's script; so they end
by `os._exit`, which does none of this.
"""

from __future__ import annotations

import atexit
import contextlib
import gc
import io
import logging
import sys
import threading
import traceback
import weakref
from collections.abc import Callable
from multiprocessing import util


def begin_process() -> None:
    """Forget the exit handlers of the process that this one was forked from: they are for its end."""
    atexit._clear()
    weakref.finalize._registry.clear()  # type: ignore[attr-defined]


def end_process() -> None:
    """Do what an interpreter does at its end, but for ending; an error is printed and stops nothing."""
    steps: tuple[Callable[[], object], ...] = (
        # Also shuts executors down.
        threading._shutdown,  # type: ignore[attr-defined]
        atexit._run_exitfuncs,
        # Their own handlers went with those of the process before.
        util._exit_function,  # type: ignore[attr-defined]
        weakref.finalize._exitfunc,  # type: ignore[attr-defined]
        logging.shutdown,
        _write_open_files,
    )
    for step in steps:
        try:
            step()
        except Exception:
            traceback.print_exc()


def _write_open_files() -> None:
    for found in gc.get_objects():
        if isinstance(found, io.TextIOWrapper | io.BufferedWriter | io.BufferedRandom) and found not in (
            sys.stdout,
            sys.stderr,
        ):
            with contextlib.suppress(ValueError, OSError):
                found.flush()
