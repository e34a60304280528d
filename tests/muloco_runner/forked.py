"""Processes of the trainer that import nothing: forked from one server, which has imported torch and the trainer.

A process of its own takes seconds to import them; each process of tests has one server, from its first use to its end.
"""

from __future__ import annotations

import functools
import multiprocessing
import os
import runpy
import sys
import tempfile
from collections.abc import Mapping, Sequence
from multiprocessing.context import ForkServerContext
from pathlib import Path

import muloco_runner.job

JOB = Path(muloco_runner.job.__file__)
"""What `python -m muloco_runner.job` runs."""


class ForkedProcess:
    """`python SCRIPT ARGUMENTS` on one thread, with the methods of `subprocess.Popen` that tests need."""

    def __init__(self, script: Path, arguments: Sequence[str], environment: Mapping[str, str] | None = None) -> None:
        self._errors = tempfile.NamedTemporaryFile(prefix="stderr-")  # noqa: SIM115  # as long as this object
        values = dict(os.environ if environment is None else environment)
        self._process = _server().Process(target=_run, args=(str(script), list(arguments), values, self._errors.name))
        self._process.start()

    @property
    def returncode(self) -> int | None:
        return self._process.exitcode

    def poll(self) -> int | None:
        return self._process.exitcode

    def wait(self, timeout: float = 600) -> int:
        self._process.join(timeout)
        code = self._process.exitcode
        if code is None:
            self.kill()
            raise TimeoutError(f"no end within {timeout} s; it said: {self.errors()}")
        return code

    def send_signal(self, number: int) -> None:
        if self._process.pid is not None and self.poll() is None:
            os.kill(self._process.pid, number)

    def kill(self) -> None:
        self._process.kill()

    def errors(self) -> str:
        """All of standard error so far."""
        return Path(self._errors.name).read_text()


@functools.cache
def _server() -> ForkServerContext:
    context = multiprocessing.get_context("forkserver")
    # torch's optimizers load dynamo at their first step.
    context.set_forkserver_preload(["torch._dynamo", "muloco_runner.training.loop", "muloco_runner.training.fsdp"])
    return context


def _run(script: str, arguments: list[str], environment: dict[str, str], errors: str) -> None:
    import torch

    os.environ.clear()
    os.environ.update(environment)
    os.dup2(os.open(errors, os.O_WRONLY | os.O_APPEND), 2)
    torch.set_num_threads(1)
    sys.argv = [script, *arguments]
    runpy.run_path(script, run_name="__main__")
