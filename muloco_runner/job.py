"""One attempt at one run: the folder it works in, the signals that stop it, and the exit code it ends with.

    python -m muloco_runner.job RESULTS/runs/RUN_ID --attempt 2

Whatever happens ends as one of `ExitCode`, and as a line in `status.json`. Imports torch only when it starts to train.
"""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import json
import platform
import signal
import socket
import sys
import time
import traceback
from collections.abc import Callable, Iterator
from importlib import metadata
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING

from muloco_runner.config import ConfigError, ExecutionConfig, RunConfig
from muloco_runner.data.epochs import describe_epochs
from muloco_runner.record import (
    AlreadyRunning,
    AttemptTimes,
    ExitCode,
    RecordError,
    RecordHeader,
    RunFolder,
    RunStatus,
    StepRecord,
)
from muloco_runner.targets import make_importable, refuse_sharded

if TYPE_CHECKING:
    from muloco_runner.data.corpus import Corpus
    from muloco_runner.distributed.communicator import Communicator

_STOP_SIGNALS = (signal.SIGUSR1, signal.SIGUSR2, signal.SIGTERM, signal.SIGINT)
"""Ask for a checkpoint and the exit code that says so; a second SIGINT interrupts at once."""


def run_job(
    folder: RunFolder,
    execution: ExecutionConfig,
    attempt: int = 1,
    on_record: Callable[[StepRecord], None] = lambda record: None,
) -> ExitCode:
    """Trains the run of `folder` to its end, or to the next checkpoint when asked to stop.

    Called on every rank of the job. A finished run is left as it is. Failures are printed, written to `status.json`
    and returned as exit codes, never raised.
    """
    started_at = time.monotonic()
    try:
        run = RunConfig.from_dict(folder.read_config())
    except (ConfigError, RecordError) as error:
        print(error, file=sys.stderr)
        return ExitCode.CONFIG_CANNOT_RUN
    try:
        if folder.read_result() is not None:
            return ExitCode.FINISHED
        with _stop_requests(execution, started_at) as should_stop:
            return _attempt(run, folder, execution, attempt, should_stop, on_record)
    except AlreadyRunning as error:
        # The folder is the other process's: not even the status may change.
        print(error, file=sys.stderr)
        return ExitCode.CRASH
    except BaseException as error:
        code = _exit_code(error)
        cause = _first_cause(folder.attempt_dir(attempt), _cause(error))
        if code is ExitCode.CRASH:
            traceback.print_exc()
        else:
            print(cause, file=sys.stderr)
        _report_failure(folder, attempt, code, cause)
        if isinstance(error, KeyboardInterrupt | SystemExit):
            raise
        return code


def run_with_progress(folder: RunFolder, execution: ExecutionConfig, attempt: int) -> ExitCode:
    """`run_job` that shows its progress on standard output, on rank 0: a bar on a terminal, lines in a log."""
    from muloco_runner.distributed.rendezvous import process_rank
    from muloco_runner.training.progress import show_progress

    try:
        run = RunConfig.from_dict(folder.read_config())
    except (ConfigError, RecordError):
        return run_job(folder, execution, attempt)  # says what is wrong
    with show_progress(run, enabled=process_rank().rank == 0) as on_record:
        return run_job(folder, execution, attempt, on_record)


def _attempt(
    run: RunConfig,
    folder: RunFolder,
    execution: ExecutionConfig,
    attempt: int,
    should_stop: Callable[[], bool],
    on_record: Callable[[StepRecord], None],
) -> ExitCode:
    from muloco_runner.distributed.rendezvous import joined_ranks, process_rank
    from muloco_runner.distributed.traffic import emulated_link
    from muloco_runner.optimizers import describe_groups
    from muloco_runner.optimizers.orthogonalize import why_no_kernels
    from muloco_runner.training.devices import choose_device, choose_placement_on
    from muloco_runner.training.loop import Trainer
    from muloco_runner.training.session import Session
    from muloco_runner.training.sinks.tensorboard_sink import tensorboard_sink
    from muloco_runner.training.sinks.wandb_sink import wandb_sink

    make_importable(run, folder)
    process = process_rank()
    device = choose_device(execution.device, process)
    placement = choose_placement_on(device, run, execution, process.num_ranks, process.ranks_per_node)
    if placement.sharded and process.num_ranks > run.num_workers:
        refuse_sharded(run, folder)
    with (
        folder.exclusive_use() if process.rank == 0 else contextlib.nullcontext(),
        joined_ranks(
            process,
            run.num_workers,
            device,
            folder.path,  # not the attempt's, on whose number they may not agree yet
            placement.sharded,
            emulated_link(execution, device.type),
            placement.copies,
        ) as communicator,
        wandb_sink(
            run,
            execution.wandb_project if process.rank == 0 else None,
            folder.attempt_dir(attempt),
            execution.wandb_mode,
            execution.wandb_group,
        ) as send_to_wandb,
        tensorboard_sink(folder.path / "tensorboard" if execution.tensorboard and process.rank == 0 else None) as chart,
    ):
        # Ranks started by hand count the attempts that they find, which a node may see later than another.
        attempt = communicator.of_first_rank(attempt)
        corpus = check_can_run(run, folder, folder)

        def report(record: StepRecord) -> None:
            on_record(record)
            send_to_wandb(record)
            chart(record)

        if process.rank == 0:
            print(describe_epochs(run), flush=True)
        session = Session(folder, execution, communicator, device, attempt, should_stop, report, versions())
        _open_record(run, folder, corpus, communicator, attempt)
        trainer = Trainer(run, corpus, session)
        if process.rank == 0 and run.inner_optimizer.orthogonalizes:
            print(describe_groups(trainer.state.workers[0].model), flush=True)
            if device.type == "cuda" and execution.muon_backend == "auto" and (why := why_no_kernels(device)):
                print(f"Muon runs without its fused kernels: {why}", flush=True)
        trainer.metrics.write_status("starting")
        result = trainer.train()
        if result is None:
            trainer.metrics.write_status("stopped", exit_code=int(ExitCode.WANTS_MORE_TIME), exit_cause="asked to stop")
            return ExitCode.WANTS_MORE_TIME
        trainer.metrics.write_result(result)
        return ExitCode.FINISHED


def check_can_run(run: RunConfig, folder: RunFolder | None = None, code_of: RunFolder | None = None) -> Corpus:
    """The run's corpus; a run that this corpus cannot feed raises `ConfigError`. `folder`: its own; `code_of`: the one
    that records its targets' code, None for that which is there now."""
    from muloco_runner.data.check import check_vocabulary
    from muloco_runner.data.corpus import load_corpus
    from muloco_runner.data.mixed_split import token_counts
    from muloco_runner.data.validation_sets import check_validation_sets

    if folder is not None and "data" in run.targets:
        make_importable(run, code_of)
    corpus = load_corpus(run.data, by_path=folder is not None)
    if run.data.content_hash not in (None, corpus.content_hash):
        named = f"data._target_={run.targets['data'][0]}" if "data" in run.targets else f"data.path={run.data.path!r}"
        raise ConfigError(
            f"{named} holds data {corpus.content_hash} now, this run is on "
            f"{run.data.content_hash}: put the first data back, or start a new run on the other data"
            + (": set another data.version" if "data" in run.targets else "")
        )
    check_vocabulary(run, corpus.vocab_size)
    length = run.model.sequence_length
    for name, split in (("training", corpus.train), ("validation", corpus.validation)):
        smallest = min(token_counts(split))
        if smallest <= length:
            raise ConfigError(
                f"data: {smallest} {name} tokens hold no sequence of model.sequence_length={length}: "
                "give more text, change data.validation_fraction or lower the length"
            )
    if run.data.validation_tokens < length:
        raise ConfigError(
            f"data.validation_tokens={run.data.validation_tokens} is shorter than one sequence of "
            f"model.sequence_length={length}: raise it"
        )
    check_validation_sets(run)
    return corpus


def check_same_data(folder: RunFolder, corpus: Corpus) -> None:
    """A run that was started on other data than `corpus` raises `ConfigError`."""
    header = folder.read_header()
    if header is not None and header.corpus_hash != corpus.content_hash:
        raise ConfigError(
            f"{folder.path} was started on data {header.corpus_hash}, the data there is now is {corpus.content_hash}: "
            "point data.path at the first data, or choose another root"
        )


def preload_for(folder: RunFolder) -> None:
    """Imports and reads what every run on this data needs, for a process that forks one child a run."""
    import torch._dynamo  # noqa: F401  # torch's optimizers load it at their first step: seconds

    from muloco_runner.data.corpus import baselines
    from muloco_runner.training import loop as train  # noqa: F401

    try:
        run = RunConfig.from_dict(folder.read_config())
        if "data" in run.targets:
            return  # children may have other states of that code, and what is imported here they would all get
        check_can_run(run, folder, folder)
        baselines(run.data)
    except (ConfigError, RecordError):
        return  # the run itself will report it


def versions() -> dict[str, str]:
    """Versions of the packages that decide a run's numbers."""
    found = {"python": platform.python_version()}
    for package in ("torch", "numpy", "muloco-sweeps"):
        with contextlib.suppress(metadata.PackageNotFoundError):
            found[package] = metadata.version(package)
    return found


def _open_record(run: RunConfig, folder: RunFolder, corpus: Corpus, communicator: Communicator, attempt: int) -> None:
    """Writes the header once; a record of other data is refused."""
    if communicator.topology.is_main:
        from muloco_runner.data.corpus import baselines

        environment = {
            "python": platform.python_version(),
            "executable": sys.executable,
            "packages": versions(),
            "host": socket.gethostname(),
            "num_tasks": communicator.topology.num_ranks,
        }
        folder.write_environment(attempt, environment)
        header = folder.read_header()
        check_same_data(folder, corpus)
        if header is None:
            folder.append_record(
                RecordHeader(
                    run_id=run.run_id,
                    algorithm=run.algorithm,
                    config=run.to_dict(),
                    corpus_hash=corpus.content_hash,
                    num_params=run.num_params,
                    num_steps=run.num_steps,
                    num_tokens=run.num_tokens,
                    bytes_per_token=corpus.bytes_per_token,
                    baselines=baselines(run.data),
                    versions=versions(),
                    created_at=time.time(),
                )
            )


@contextlib.contextmanager
def _stop_requests(execution: ExecutionConfig, started_at: float) -> Iterator[Callable[[], bool]]:
    """Yields a function that returns True after a stop signal or past the deadline."""
    received: list[int] = []

    def record_signal(number: int, frame: FrameType | None) -> None:
        if number == signal.SIGINT and number in received:
            raise KeyboardInterrupt
        received.append(number)

    deadline = float("inf") if execution.wall_minutes is None else started_at + 60 * execution.wall_minutes
    before = {number: signal.signal(number, record_signal) for number in _STOP_SIGNALS}
    try:
        yield lambda: bool(received) or time.monotonic() > deadline
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _exit_code(error: BaseException) -> ExitCode:
    if isinstance(error, ConfigError | RecordError):
        return ExitCode.CONFIG_CANNOT_RUN
    if isinstance(error, MemoryError) or "OutOfMemory" in type(error).__name__:
        return ExitCode.OUT_OF_MEMORY
    # The CPU allocator has no exception of its own.
    if isinstance(error, RuntimeError) and "DefaultCPUAllocator" in str(error):
        return ExitCode.OUT_OF_MEMORY
    return ExitCode.CRASH


def _cause(error: BaseException) -> str:
    """One line: what was raised and, unless it is a user's mistake, where."""
    text = " ".join(str(error).split())
    if isinstance(error, ConfigError | RecordError):
        return text
    frames = traceback.extract_tb(error.__traceback__)
    where = f" ({Path(frames[-1].filename).name}:{frames[-1].lineno})" if frames else ""
    return f"{type(error).__name__}: {text}{where}"


def _first_cause(attempt_dir: Path, cause: str) -> str:
    """The failure of the rank that failed first: the others only saw it vanish."""
    attempt_dir.mkdir(parents=True, exist_ok=True)
    try:
        with open(attempt_dir / "failure.txt", "x") as file:
            file.write(cause)
    except FileExistsError:
        return (attempt_dir / "failure.txt").read_text() or cause
    return cause


def _report_failure(folder: RunFolder, attempt: int, code: ExitCode, cause: str) -> None:
    """Writes the last heartbeat again as a failure. A full disk must not hide the exit code."""
    with contextlib.suppress(OSError, RecordError):
        status = folder.read_status() or RunStatus(folder.run_id, "failed")
        if status.attempt != attempt or status.times is None:
            # It has said nothing yet, so it has taken no step.
            status.times, status.resumed_step = AttemptTimes(time.time()).to_dict(), None
        status.state, status.attempt = "failed", attempt
        status.exit_code, status.exit_cause = int(code), cause
        folder.write_status(status)


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m muloco_runner.job", description=(__doc__ or "").split("\n")[0])
    parser.add_argument("folder", type=Path, help="a run's folder, with its config.yaml")
    parser.add_argument("--attempt", type=int, default=1)
    parser.add_argument("--execution", default="{}", help="ExecutionConfig as JSON")
    arguments = parser.parse_args()
    known = {f.name for f in dataclasses.fields(ExecutionConfig)}
    values = json.loads(arguments.execution)
    unknown = set(values) - known
    if unknown:
        parser.error(f"--execution: no such setting {', '.join(sorted(unknown))}; known: {', '.join(sorted(known))}")
    sys.exit(run_job(RunFolder(arguments.folder), ExecutionConfig(**values), arguments.attempt))


if __name__ == "__main__":
    main()
