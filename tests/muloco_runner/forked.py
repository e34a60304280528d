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
from dataclasses import dataclass
from multiprocessing.context import ForkServerContext
from pathlib import Path

import muloco_runner.job
from muloco_runner.record import RecordHeader, RunFolder, StepRecord

JOB = Path(muloco_runner.job.__file__)
"""What `python -m muloco_runner.job` runs."""


@dataclass(frozen=True)
class SignalAt:
    """A signal that a process sends once it has recorded a step: whoever watches from outside may be late."""

    number: int
    step: int = 0
    checkpoint_step: int = 0
    """There is a checkpoint of this step or a later one by then."""
    pid: int | None = None
    """To whom; None for itself."""


class ForkedProcess:
    """`python SCRIPT ARGUMENTS` on one thread, with the methods of `subprocess.Popen` that tests need."""

    def __init__(
        self,
        script: Path,
        arguments: Sequence[str],
        environment: Mapping[str, str] | None = None,
        signal_at: SignalAt | None = None,
    ) -> None:
        self._errors = tempfile.NamedTemporaryFile(prefix="stderr-")  # noqa: SIM115  # as long as this object
        values = dict(os.environ if environment is None else environment)
        given = (str(script), list(arguments), values, self._errors.name, signal_at)
        self._process = _server().Process(target=_run, args=given)
        self._process.start()

    @property
    def pid(self) -> int:
        assert self._process.pid is not None
        return self._process.pid

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


def on_two_ranks(script: Path, arguments: Sequence[str]) -> None:
    """Run `python SCRIPT ARGUMENTS` on two gloo ranks of one job; one that fails raises with what it said."""
    ranks = [
        ForkedProcess(
            script,
            arguments,
            {**os.environ, "RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": "2", "MULOCO_RDZV_ID": "two"},
        )
        for rank in "01"
    ]
    codes = [rank.wait() for rank in ranks]
    assert codes == [0, 0], "\n".join(rank.errors() for rank in ranks)


@functools.cache
def _server() -> ForkServerContext:
    context = multiprocessing.get_context("forkserver")
    # torch's optimizers load dynamo at their first step.
    context.set_forkserver_preload(["torch._dynamo", "muloco_runner.training.loop", "muloco_runner.training.fsdp"])
    return context


def _run(
    script: str, arguments: list[str], environment: dict[str, str], errors: str, signal_at: SignalAt | None
) -> None:
    import torch

    if signal_at is not None:
        _send_once_recorded(signal_at)

    os.environ.clear()
    os.environ.update(environment)
    os.dup2(os.open(errors, os.O_WRONLY | os.O_APPEND), 2)
    torch.set_num_threads(1)
    sys.argv = [script, *arguments]
    runpy.run_path(script, run_name="__main__")


def _send_once_recorded(told: SignalAt) -> None:
    append, sent = RunFolder.append_record, False

    def append_and_send(self: RunFolder, line: RecordHeader | StepRecord) -> None:
        nonlocal sent
        append(self, line)
        if sent or not isinstance(line, StepRecord) or line.step < told.step:
            return
        newest = max((int(path.name.rpartition("-")[2]) for path in self.checkpoint_dir.glob("step-*")), default=0)
        if newest >= told.checkpoint_step:
            sent = True
            os.kill(os.getpid() if told.pid is None else told.pid, told.number)

    RunFolder.append_record = append_and_send  # type: ignore[method-assign]
