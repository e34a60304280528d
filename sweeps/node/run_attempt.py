"""Does the work of one attempt in this process, its output in the attempt's folder."""

from __future__ import annotations

import contextlib
import importlib
import os
import signal
import socket
import sys
import time
import traceback
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NoReturn

from muloco_runner.record import ExitCode
from sweeps.engine.outcome import Ending
from sweeps.engine.work import Attempt, Work
from sweeps.node.attempt_files import write_ending

TASK_RANK = "MULOCO_TASK_RANK"
"""Environment variable with the rank among the attempt's own tasks; RANK may be that of whatever launched the sweep."""


_to_say: list[Callable[[int], None]] = []
"""What is to be done with the exit code before this process ends, the last first."""


def run_attempt(attempt: Attempt) -> int:
    """Does the work of one task in this process, and leaves its `Ending` in the attempt's folder."""
    started_at = time.time()

    def say(code: int) -> None:
        write_ending(attempt, Ending(code, socket.gethostname(), started_at, time.time()))

    return saying(say, lambda: run_task(attempt))


def saying(say: Callable[[int], None], work: Callable[[], int]) -> int:
    """Return the exit code of the work once `say` has been given it, also where the work calls `leave`."""
    _to_say.append(say)
    code = work()
    _to_say.pop()
    say(code)
    return code


def leave(code: int) -> NoReturn:
    """End this process here, its exit code said: for work that has callers which must not go on."""
    for say in reversed(_to_say):
        say(code)
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)


def run_task(attempt: Attempt, rank: int = 0) -> int:
    """Does one rank's share of the work in this process, its output in the attempt's folder; returns its exit code."""
    folder = attempt.folder
    folder.mkdir(parents=True, exist_ok=True)
    os.environ[TASK_RANK] = str(rank)
    with _output_to(folder, f".rank{rank}" if rank else ""):
        try:
            work = attempt.work
            function = resolve_entry(work.entry)
            return int(function(work.folder, attempt.number, **work.arguments, **attempt.adjustments))
        except SystemExit as leaving:
            return exit_code_of_exit(leaving)
        except BaseException:
            traceback.print_exc()
            return int(ExitCode.CRASH)


def exit_code_of_exit(leaving: SystemExit) -> int:
    """Return the exit code of a program that `sys.exit` ends."""
    return leaving.code if isinstance(leaving.code, int) else int(leaving.code is not None)


def resolve_entry(entry: str) -> Callable[..., int]:
    module, _, function = entry.partition(":")
    resolved: Callable[..., int] = getattr(importlib.import_module(module), function)
    return resolved


def preload(work: Work) -> None:
    """What this work's module would rather do once than in every process. What goes wrong here will go wrong in the
    attempt itself, where it is reported and affects no other."""
    with contextlib.suppress(Exception):
        module = importlib.import_module(work.entry.partition(":")[0])
        hook = getattr(module, "preload", None)
        if hook is not None:
            hook(work.folder)


def die_with(parent: int) -> None:
    """Linux kills this process when its parent dies: an attempt that nobody watches would run unseen."""
    import ctypes

    pr_set_pdeathsig = 1
    ctypes.CDLL(None).prctl(pr_set_pdeathsig, signal.SIGKILL)
    if os.getppid() != parent:
        os._exit(ExitCode.CRASH)


@contextlib.contextmanager
def _output_to(folder: Path, ending: str) -> Iterator[None]:
    """File descriptors 1 and 2 into the attempt's folder, for this process and its children."""
    saved = os.dup(1), os.dup(2)
    sys.stdout.flush()
    sys.stderr.flush()
    with open(folder / f"stdout{ending}.log", "ab") as out, open(folder / f"stderr{ending}.log", "ab") as err:
        os.dup2(out.fileno(), 1)
        os.dup2(err.fileno(), 2)
        try:
            yield
        finally:
            sys.stdout.flush()
            sys.stderr.flush()
            os.dup2(saved[0], 1)
            os.dup2(saved[1], 2)
            os.close(saved[0])
            os.close(saved[1])
