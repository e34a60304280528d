"""Runs a function in a forked process: what it leaves in classes and modules ends with it."""

from __future__ import annotations

import contextlib
import multiprocessing
import signal
import sys
from collections.abc import Callable
from functools import cache
from multiprocessing.connection import Connection
from typing import Any, TypeVar

import torch

from muloco_runner.config import ConfigError

_SECONDS = 240
Result = TypeVar("Result")


def in_own_process(function: Callable[[], Result], what: str) -> Result:
    """What the function returns, pickled: no tensors, whose memory would end with it.

    What it raises, and an end of its process without an answer, raises `ConfigError` that calls it `what`.
    """
    _load_what_a_step_loads()
    context = multiprocessing.get_context("fork")
    receiver, sender = context.Pipe(duplex=False)
    process = context.Process(target=_run, args=(function, what, sender))
    process.start()
    sender.close()
    try:
        problem, value = receiver.recv()
    except EOFError:
        process.join()
        if process.exitcode == -signal.SIGALRM:
            raise ConfigError(f"{what} took more than {_SECONDS} s: it hangs") from None
        raise ConfigError(f"{what} ended its process (exit code {process.exitcode})") from None
    process.join()
    if problem:
        raise ConfigError(problem)
    result: Result = value
    return result


@cache
def _load_what_a_step_loads() -> None:
    """torch imports seconds of modules at its first optimizer's first step: here, not in each process."""
    parameter = torch.zeros(1, requires_grad=True)
    parameter.grad = torch.ones(1)
    torch.optim.SGD([parameter], 0.1).step()


def _run(function: Callable[[], Any], what: str, sender: Connection) -> None:
    signal.alarm(_SECONDS)  # also where nobody waits for it any more
    with contextlib.redirect_stdout(sys.stderr):
        try:
            answer = "", function()
        except ConfigError as error:
            answer = str(error), None
        except Exception as error:
            answer = f"{what} failed: {type(error).__name__}: {error}", None
    sender.send(answer)
