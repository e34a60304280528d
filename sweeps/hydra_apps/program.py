"""A Hydra application as its jobs load it: pickled once a multirun, called once a job.

    program.pkl                          folder and import path of the driver, and the application itself by cloudpickle
    runs/<job>/job_return.pkl            what a finished job returned
    runs/<job>/attempts/<n>/job_return.pkl   what an attempt returned that failed

Pickles are read only from the multirun's own folder, which its user alone writes.
"""

from __future__ import annotations

import contextlib
import io
import os
import pickle
import signal
import sys
import traceback
from collections import ChainMap
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from types import CodeType, SimpleNamespace
from typing import Any, ClassVar

import cloudpickle
from hydra.core.singleton import Singleton
from hydra.core.utils import JobReturn, JobStatus, run_job, setup_globals
from hydra.types import HydraContext, TaskFunction
from omegaconf import DictConfig, open_dict, read_write

from muloco_runner.record import ExitCode, RunFolder, RunStatus, write_atomically

RESULT = "job_return.pkl"
_LONGEST_LINE = 300


@dataclass
class Program:
    """All that a job of the application needs except its overrides."""

    hydra_context: HydraContext
    task_function: TaskFunction
    config: DictConfig
    """Config of the multirun."""
    singletons: Any
    sweep_dir: str | None
    """First folder of the multirun, where Hydra would now name another by the time."""


def write_program(path: Path, program: Program) -> None:
    """Replaces the program, so that jobs that start later run the newest.

    It names no module of ours: a job that was submitted before an upgrade reads it with the modules of its time.
    """
    fields = SimpleNamespace(**vars(program))
    write_atomically(path, pickle.dumps((os.getcwd(), sys.path, _dumps(fields))))


def _read_program(path: Path) -> Program:
    """Load the program in the driver's folder and with its import path, since pickles name modules."""
    folder, search, body = pickle.loads(path.read_bytes())
    os.chdir(folder)
    sys.path[:0] = [path for path in search if path not in sys.path]
    return Program(**vars(pickle.loads(body)))


def run(folder: str, attempt: int, program: str, overrides: Sequence[str], number: int, job: str) -> int:
    """Run one job in its own process. An exception of the application is returned too, as a failed result."""
    # SLURM's warning of the time limit would end an application that does not handle it.
    for warning in (signal.SIGUSR1, signal.SIGUSR2):
        signal.signal(warning, signal.SIG_IGN)
    run_folder = RunFolder(folder)
    rank = int(os.environ.get("RANK") or os.environ.get("SLURM_PROCID") or 0)
    if rank == 0:
        # Left by an earlier attempt; it would seem to be this one's.
        run_folder.status_file.unlink(missing_ok=True)
    job_return = _run(_read_program(Path(program)), list(overrides), number, job)
    failed = job_return.status is not JobStatus.COMPLETED
    error = job_return._return_value
    if failed:
        traceback.print_exception(error)
        error.add_note(f"The job's output: {run_folder.path}/attempts/{attempt}/stderr.log")
    if rank == 0:
        target = run_folder.path / "attempts" / str(attempt) / RESULT if failed else run_folder.path / RESULT
        write_atomically(target, _pickled(job_return))
        if failed:
            cause = " ".join(f"{type(error).__name__}: {error}".split())[:_LONGEST_LINE]
            run_folder.write_status(RunStatus(run_folder.path.name, "failed", attempt=attempt, exit_cause=cause))
    return int(ExitCode.CRASH if failed else ExitCode.FINISHED)


def _run(program: Program, overrides: list[str], number: int, job: str) -> JobReturn:
    Singleton.set_state(program.singletons)
    setup_globals()
    config = program.hydra_context.config_loader.load_sweep_config(program.config, overrides)
    set_value(config.hydra.job, "id", os.environ.get("SLURM_JOB_ID", job))
    set_value(config.hydra.job, "num", number)
    if program.sweep_dir is not None:
        set_value(config.hydra.sweep, "dir", program.sweep_dir)
    return run_job(
        hydra_context=program.hydra_context,
        task_function=program.task_function,
        config=config,
        job_dir_key="hydra.sweep.dir",
        job_subdir_key="hydra.sweep.subdir",
    )


def set_value(node: DictConfig, key: str, value: Any) -> None:
    """Set a key in one of Hydra's own nodes, which some versions protect."""
    with read_write(node), open_dict(node):
        node[key] = value


def _pickled(job_return: JobReturn) -> bytes:
    """Pickle for the driver; an exception that cannot be unpickled is replaced by its text."""
    failed = job_return.status is not JobStatus.COMPLETED
    with contextlib.suppress(Exception) if failed else contextlib.nullcontext():
        body = _dumps(job_return)
        pickle.loads(body)
        return body
    text = "".join(traceback.format_exception_only(job_return._return_value)).strip()
    job_return.return_value = RuntimeError(text)
    return _dumps(job_return)


def _dumps(content: object) -> bytes:
    file = io.BytesIO()
    _Pickler(file).dump(content)
    return file.getvalue()


def _reduce_code(code: CodeType) -> tuple[Any, ...]:
    """Keep the file name of code, which cloudpickle drops, for tracebacks."""
    make, arguments = cloudpickle.Pickler.dispatch_table[CodeType](code)
    return make, tuple(code.co_filename if item == "<dynamic-code>" else item for item in arguments)


class _Pickler(cloudpickle.Pickler):  # type: ignore[misc]
    dispatch_table: ClassVar = ChainMap({CodeType: _reduce_code}, cloudpickle.Pickler.dispatch_table)


def read_return(folder: Path) -> JobReturn | None:
    """Return what a job or an attempt left in its folder; None where it left nothing."""
    try:
        found = pickle.loads((folder / RESULT).read_bytes())
    except FileNotFoundError:
        return None
    assert isinstance(found, JobReturn)
    return found
