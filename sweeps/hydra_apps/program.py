"""A Hydra application as its jobs load it: pickled once a multirun, called once a job.

    application.pkl                      folder, import path, script and source of the driver, and the application
                                         itself by cloudpickle
    runs/<job>/job_return.pkl            what a finished job returned
    runs/<job>/attempts/<n>/job_return.pkl   what an attempt returned that failed

Pickles are read only from the multirun's own folder, which its user alone writes.
"""

from __future__ import annotations

import contextlib
import functools
import importlib
import io
import operator
import os
import pickle
import signal
import sys
import traceback
from collections import ChainMap
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from types import CodeType, FunctionType, SimpleNamespace
from typing import Any, ClassVar

import cloudpickle
from hydra._internal.callbacks import Callbacks
from hydra.core.singleton import Singleton
from hydra.core.utils import JobReturn, JobStatus, run_job, setup_globals
from hydra.types import HydraContext, TaskFunction
from omegaconf import DictConfig, open_dict, read_write
from omegaconf.basecontainer import BaseContainer

from muloco_runner.config import ConfigError
from muloco_runner.record import ExitCode, write_atomically
from sweeps.hydra_apps.job_progress import begin_reports, report_failure, report_warning
from sweeps.hydra_apps.main_script import (
    MainScript,
    driver_script,
    lives_in_script,
    name_of,
    reference_to,
    run_as_main,
)
from sweeps.hydra_apps.process_end import begin_process, end_process
from sweeps.hydra_apps.sources import SourceFinder, application_sources
from sweeps.node.run_attempt import TASK_RANK, exit_code_of_exit, leave

RESULT = "job_return.pkl"


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
    """Replaces the program, so that jobs that start later run the newest. Raises `ConfigError` where it has no pickle.

    It names no module of ours: a job that was submitted before an upgrade reads it with the modules of its time.
    """
    script = driver_script() if lives_in_script(program.task_function) else None
    dumps = partial(_dumps, in_script=script is not None)
    fields = SimpleNamespace(**vars(program))
    if script is not None:
        # The script itself hands it over in the job.
        fields.task_function = None
    try:
        dumps(fields.hydra_context.callbacks if fields.hydra_context is not None else None)
    except Exception:
        # A callback that holds a lock or an open file is made anew in the job, from its config.
        fields.hydra_context = HydraContext(fields.hydra_context.config_loader, None)  # type: ignore[arg-type]
    try:
        body = dumps(fields)
    except Exception as error:
        raise ConfigError(
            f"the application cannot be sent to its jobs ({type(error).__name__}: {error}): define the function under "
            "hydra.main, and what it uses, at the top level of a module or of the script"
        ) from error
    content = {
        "folder": os.getcwd(),
        "search": sys.path,
        "script": script.to_dict() if script is not None else None,
        "task": name_of(program.task_function),
        "sources": application_sources(script.file if script is not None else None),
        "resolvers": _resolvers(dumps),
        "body": body,
    }
    write_atomically(path, pickle.dumps(content))


def _resolvers(dumps: Callable[[object], bytes]) -> dict[str, bytes]:
    """Return the resolvers of interpolations that this process knows, one by one: jobs miss those of few scripts."""
    found = {}
    for name, resolver in BaseContainer._resolvers.items():
        with contextlib.suppress(Exception):
            found[name] = dumps(resolver)
    return found


def _program_of(content: Mapping[str, Any], task: TaskFunction | None) -> Program:
    """Return the program, with the task function that the script has handed over where it did."""
    program = Program(**vars(pickle.loads(content["body"])))
    if task is not None:
        program.task_function = task
    if program.hydra_context.callbacks is None:
        program.hydra_context = HydraContext(program.hydra_context.config_loader, Callbacks(program.config))
    for name, resolver in content["resolvers"].items():
        if name not in BaseContainer._resolvers:
            BaseContainer._resolvers[name] = pickle.loads(resolver)
    return program


def run(folder: str, attempt: int, program: str, overrides: Sequence[str], number: int, job: str) -> int:
    """Run one job in its own process. An exception of the application is returned too, as a failed result.

    `sys.exit` ends a job as it ends a program: without a code, or with 0, it has succeeded.
    """
    # SLURM's warning of the time limit would end an application that does not handle it.
    for warning in (signal.SIGUSR1, signal.SIGUSR2):
        signal.signal(warning, signal.SIG_IGN)
    begin_process()
    kept = Path(folder) / "attempts" / str(attempt) if os.environ[TASK_RANK] == "0" else None
    if kept is not None:
        begin_reports(folder, attempt)
    content = pickle.loads(Path(program).read_bytes())
    # In the driver's folder and with its import path, since pickles name modules.
    os.chdir(content["folder"])
    sys.path[:0] = [path for path in content["search"] if path not in sys.path]
    sys.meta_path.insert(0, SourceFinder(content["sources"]))
    if content["script"] is None:
        return _run_and_keep(kept, _program_of(content, None), list(overrides), number, job)

    def work(task: TaskFunction) -> None:
        try:
            code = _run_and_keep(kept, _program_of(content, task), list(overrides), number, job)
        except SystemExit as leaving:
            code = exit_code_of_exit(leaving)
        except BaseException:
            traceback.print_exc()
            code = int(ExitCode.CRASH)
        leave(code)

    run_as_main(MainScript(**content["script"]), content["sources"], tuple(content["task"]), work)
    raise AssertionError("work ends the process")


def _run_and_keep(attempt: Path | None, program: Program, overrides: list[str], number: int, job: str) -> int:
    """Return an exit code. The task that keeps the result is given the attempt's folder."""
    try:
        job_return = _run(program, overrides, number, job)
    except SystemExit as leaving:
        end_process()
        if isinstance(leaving.code, str):
            print(leaving.code, file=sys.stderr)
        if attempt is not None and leaving.code != ExitCode.WANTS_MORE_TIME:
            report_failure(f"sys.exit({leaving.code!r})")
        raise
    end_process()
    failed = job_return.status is not JobStatus.COMPLETED
    error = job_return._return_value
    if failed:
        traceback.print_exception(error)
        error.add_note(f"The job's output: {attempt}/stderr.log")
    if attempt is not None:
        target = attempt if failed else attempt.parents[1]
        write_atomically(target / RESULT, _pickled(job_return))
        if failed:
            report_failure(f"{type(error).__name__}: {error}")
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
        task_function=_may_exit(program.task_function),
        config=config,
        job_dir_key="hydra.sweep.dir",
        job_subdir_key="hydra.sweep.subdir",
    )


def _may_exit(task: TaskFunction) -> TaskFunction:
    """Return the same function, which has ended well where it calls `sys.exit()` or `sys.exit(0)`."""

    @functools.wraps(task)
    def ended(config: DictConfig) -> Any:
        try:
            return task(config)
        except SystemExit as leaving:
            if leaving.code in (None, int(ExitCode.FINISHED)):
                return None
            raise

    return ended


def set_value(node: DictConfig, key: str, value: Any) -> None:
    """Set a key in one of Hydra's own nodes, which some versions protect."""
    with read_write(node), open_dict(node):
        node[key] = value


def _pickled(job_return: JobReturn) -> bytes:
    """Pickle for the driver. What no pickle takes is replaced: an exception by its text, a result by None."""
    try:
        body = _dumps(job_return)
        pickle.loads(body)
    except Exception as error:
        value = job_return._return_value
        if job_return.status is JobStatus.COMPLETED:
            why = " ".join(f"{type(error).__name__}: {error}".split())
            report_warning(f"its result, a {type(value).__qualname__}, cannot be sent back ({why}): None is given")
            job_return.return_value = None
        else:
            job_return.return_value = RuntimeError("".join(traceback.format_exception_only(value)).strip())
        return _dumps(job_return)
    return body


def _dumps(content: object, in_script: bool = True) -> bytes:
    """`in_script` says whether whoever reads the pickle has the script as `__main__`."""
    file = io.BytesIO()
    pickler = _Pickler(file)
    pickler.in_script = in_script
    pickler.dump(content)
    return file.getvalue()


def _reduce_code(code: CodeType) -> tuple[Any, ...]:
    """Keep the file name of code, which cloudpickle drops, for tracebacks."""
    make, arguments = cloudpickle.Pickler.dispatch_table[CodeType](code)
    return make, tuple(code.co_filename if item == "<dynamic-code>" else item for item in arguments)


class _Named:
    """A module as a pickle refers to it, the script too."""

    def __init__(self, module: str) -> None:
        self.module = module

    def __reduce__(self) -> tuple[Any, ...]:
        return importlib.import_module, (self.module,)


class _Pickler(cloudpickle.Pickler):  # type: ignore[misc]
    """Refers to what has a name in a module or in the script, decorated or not; takes the rest by value."""

    dispatch_table: ClassVar = ChainMap({CodeType: _reduce_code}, cloudpickle.Pickler.dispatch_table)
    in_script = True

    def reducer_override(self, obj: Any) -> Any:
        if isinstance(obj, FunctionType | type):
            reference = reference_to(obj)
            if reference is not None and self._is_ours_to_name(obj, *reference):
                module, path = reference
                return operator.attrgetter(path), (_Named(module),)
        return super().reducer_override(obj)

    def _is_ours_to_name(self, obj: Any, module: str, path: str) -> bool:
        """Return whether cloudpickle would take it by value although whoever reads the pickle knows it by name."""
        return self.in_script if module == "__main__" else path != obj.__qualname__


def read_return(folder: Path) -> JobReturn | None:
    """Return what a job or an attempt left in its folder; None where it left nothing."""
    try:
        found = pickle.loads((folder / RESULT).read_bytes())
    except FileNotFoundError:
        return None
    assert isinstance(found, JobReturn)
    return found
