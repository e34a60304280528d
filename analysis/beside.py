"""Work in a second process: fits and drawings of a report that do not wait for each other."""

from __future__ import annotations

import multiprocessing
import os
import threading
from collections.abc import Callable
from contextlib import suppress
from typing import TypeVar

T = TypeVar("T")


def beside(work: Callable[[], T]) -> Callable[[], T]:
    """Start `work` in a copy of this process; call what comes back to wait for the result, which must be picklable.

    Where there is no second core, or other threads run here (a copy would hold their locks for ever), and where the
    copy ends without a result, the work is done here when its result is asked for: its errors are raised here.
    """
    if not hasattr(os, "sched_getaffinity") or len(os.sched_getaffinity(0)) < 2 or threading.active_count() > 1:
        return work
    context = multiprocessing.get_context("fork")
    receiver, sender = context.Pipe(duplex=False)

    def send() -> None:
        # An error is raised, and so shown, where the work is done again.
        with suppress(Exception):
            sender.send(work())

    process = context.Process(target=send, daemon=True)
    process.start()
    sender.close()

    def result() -> T:
        found: list[T] = []
        with suppress(EOFError):
            found.append(receiver.recv())
        process.join()
        receiver.close()
        return found[0] if found else work()

    return result
