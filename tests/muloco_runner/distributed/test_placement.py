"""The same run on one, two and four real processes: what must be equal, and to what.

With micro-batches of one size, equal to the bit wherever workers and replicas are: micro-batches and replicas are
summed pairwise in one order, pseudogradients in worker order. With other micro-batches, or where replicas shard the
model, losses agree to rounding.
"""

import dataclasses
import functools
import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from forked import ForkedProcess, SignalAt, on_two_ranks
from random_runs import random_runs
from submitit.helpers import TorchDistributedEnvironment

from muloco_runner.config import (
    DataParallelConfig,
    DiLoCoConfig,
    ExecutionConfig,
    MuonConfig,
    OuterMuonConfig,
    QuantisationConfig,
    RunConfig,
    StreamingConfig,
    TopKConfig,
)
from muloco_runner.distributed.rendezvous import process_rank
from muloco_runner.job import run_job
from muloco_runner.record import ExitCode, RunFolder, StepRecord

SCRIPT = Path(__file__).parent / "ranks_script.py"
MakeRun = Callable[..., RunConfig]
MakeFolder = Callable[..., RunFolder]
STEPS, SYNC_INTERVAL = 18, 6
FEW = (1, -3, -2)
"""Of the table's runs, for `make test`."""
ROUNDING = 2e-4
"""Relative bound on losses over so many steps where the order of a sum differs; 6e-8 a step, grown by training."""
ONE_SIZE: dict[str, int] = {"micro_batch_sequences": 2, "log_interval_steps": SYNC_INTERVAL}
"""Of micro-batch, that splits every share of a batch below. Logging asks all ranks, which takes longer than a step."""

BY_KIND: dict[str, Any] = {
    "embedding_lr_factor": 2.0,
    "head_lr_factor": 0.5,
    "scalar_lr_factor": 3.0,
    "weight_decay_form": "cautious",
}


def start_ranks(
    count: int, folders: list[RunFolder], job: str, to_last: SignalAt | None = None, **execution: object
) -> list[ForkedProcess]:
    return start_jobs(count, [(execution, folders)], job, to_last)


def start_jobs(
    count: int, jobs: list[tuple[dict[str, object], list[RunFolder]]], job: str, to_last: SignalAt | None = None
) -> list[ForkedProcess]:
    """`to_last` is sent by rank 0, which keeps the record, to the last rank."""
    arguments = []
    for execution, folders in jobs:
        arguments.append(json.dumps({"device": "cpu", "log_interval_steps": 1, **execution}))
        arguments += [str(folder.path) for folder in folders]
    processes: list[ForkedProcess] = []
    for rank in reversed(range(count)):
        if to_last is not None and processes:
            to_last = dataclasses.replace(to_last, pid=processes[0].pid)
        environment = {
            **os.environ,
            "SLURM_PROCID": str(rank),
            "SLURM_STEP_NUM_TASKS": str(count),
            "SLURM_LOCALID": str(rank),
            "SLURM_JOB_ID": job,
        }
        processes.append(ForkedProcess(SCRIPT, arguments, environment, to_last if rank == 0 else None))
    return processes[::-1]


def runs_of_the_table(tiny_run: MakeRun) -> list[RunConfig]:
    single = [tiny_run("data_parallel", inner, num_steps=STEPS) for inner in ("adamw", "muon")]
    averaged = [
        tiny_run("gpa", inner, num_workers=workers, num_steps=STEPS, sync_interval=SYNC_INTERVAL)
        for inner, workers in (("muon", 1), ("adamw", 2))
    ]
    several = [
        tiny_run("diloco", inner, num_workers=workers, num_steps=STEPS, sync_interval=SYNC_INTERVAL)
        for inner in ("adamw", "muon")
        for workers in (1, 2, 4)
    ]
    # With one worker also what the inner optimizer may do otherwise, by kind of parameter.
    several = [
        dataclasses.replace(run, inner_optimizer=dataclasses.replace(run.inner_optimizer, **BY_KIND))
        if run.num_workers == 1
        else run
        for run in several
    ]
    quantised = QuantisationConfig("linear", bits=4, granularity="row", exchange="reduce_scatter")
    streaming = StreamingConfig(2, 3, 0.1)
    # Exact values: what a quantiser rounds, another order of sums may round the other way.
    sparse = TopKConfig(fraction=0.1)
    common = {"num_steps": STEPS, "sync_interval": SYNC_INTERVAL}
    compressed = [
        tiny_run(
            "diloco",
            "muon",
            num_workers=2,
            compression=sparse,
            streaming=streaming,
            outer_optimizer=OuterMuonConfig(),
            **common,
        ),
        tiny_run("diloco", "adamw", num_workers=4, compression=quantised, **common),
        tiny_run("diloco", "muon", num_workers=4, compression=QuantisationConfig(bits=2), **common),
    ]
    return single + averaged + several + compressed


def check_traffic(run: RunConfig, count: int, steps: list[StepRecord]) -> None:
    """What was sent arrived."""
    delayed = isinstance(run.method, DiLoCoConfig) and run.method.streaming.delay_steps
    # What travels beside training is sent and received at other moments; in the end all has come.
    for step in steps[-1:] if delayed else steps:
        assert step.rank_bytes_sent is not None
        assert step.rank_bytes_received is not None
        assert step.rank_wait_seconds is not None
        assert sum(step.rank_bytes_sent) == sum(step.rank_bytes_received)
        assert len(step.rank_wait_seconds) == count


def check_formula(run: RunConfig, count: int, last: StepRecord) -> None:
    """Where few kinds of messages were sent their bytes are a formula."""
    assert last.bytes_sent is not None
    assert last.rank_bytes_sent is not None
    method = run.method
    # At each step four integers say whether to stop; their sum is sent twice but for a rank's own part.
    flags = STEPS * 2 * (count - 1) * 16 // count
    if isinstance(method, DataParallelConfig):
        # Loss and gradients, padded to share out; each rank sends all but its own share, and its sum to all others.
        values = -(-(run.num_params + 1) // count) * count
        sent = STEPS * 2 * (count - 1) * values * 4 // count + flags
        if isinstance(run.inner_optimizer, MuonConfig):
            # Then the matrices that each owner has orthogonalised, in as many places as the rank with most of them has.
            assert all(sent < number < 1.5 * sent for number in last.rank_bytes_sent)
        else:
            assert last.rank_bytes_sent == [sent] * count
    elif isinstance(method, DiLoCoConfig) and method.compression == QuantisationConfig(bits=2):
        held = run.num_workers // count
        assert last.rank_bytes_sent == [(count - 1) * held * last.bytes_sent + flags] * count


def finish(processes: list[ForkedProcess], code: ExitCode = ExitCode.FINISHED) -> None:
    codes = [process.wait() for process in processes]
    assert codes == [code] * len(processes), "\n".join(process.errors() for process in processes)


def losses_of(folder: RunFolder) -> list[float]:
    """Of every logged step, then the final ones."""
    result = folder.read_result()
    assert result is not None
    assert result.validation_loss is not None
    return [*(step.loss for step in folder.read_steps()), result.train_loss, result.validation_loss]


@pytest.fixture(scope="module")
def on_one_process(tmp_path_factory: pytest.TempPathFactory) -> Callable[[RunConfig], RunFolder]:
    """The folder of a run that one process has trained, once for all tests."""
    root = tmp_path_factory.mktemp("one")

    @functools.cache
    def trained(run_id: str) -> RunFolder:
        folder = RunFolder.of(root, run_id)
        assert run_job(folder, ExecutionConfig(device="cpu", **ONE_SIZE)) is ExitCode.FINISHED
        return folder

    def of(run: RunConfig) -> RunFolder:
        RunFolder.of(root, run.run_id).write_config(run.to_dict())
        return trained(run.run_id)

    return of


@pytest.mark.parametrize(
    ("count", "few"), [(2, True), *(pytest.param(count, False, marks=pytest.mark.thorough) for count in (2, 4))]
)
def test_a_run_is_the_same_on_one_two_and_four_processes(
    count: int,
    few: bool,
    tiny_run: MakeRun,
    on_one_process: Callable[[RunConfig], RunFolder],
    new_folder: MakeFolder,
) -> None:
    """The few: gradients and matrices of Muon shared, sparse fragments under training, and quantised rows.

    MULOCO_RANDOM_RUNS=100 hunts for more than the suite has time for."""
    table = runs_of_the_table(tiny_run)
    drawn = random_runs(0, int(os.environ.get("MULOCO_RANDOM_RUNS", "4")), tiny_run)
    if few:
        table, drawn = [table[number] for number in FEW], []
    everywhere = [
        (run, new_folder(run, "copies"), on_one_process(run))
        for run in table + drawn
        if run.worker_batch_sequences % max(1, count // run.num_workers) == 0
    ]
    # Shards need replicas: one worker on two processes, two workers on four.
    two_replicas = [(run, on_one_process(run)) for run in table if 2 * run.num_workers == count]
    shards = [(run, new_folder(run, "shards"), folder) for run, folder in two_replicas]
    overlapped = [(run, new_folder(run, "overlapped"), folder) for run, folder in two_replicas[-1:]]
    jobs: list[tuple[dict[str, object], list[RunFolder]]] = [
        ({**ONE_SIZE}, [folder for _, folder, _ in everywhere]),
        ({"sharding": "full", "log_interval_steps": SYNC_INTERVAL}, [folder for _, folder, _ in shards]),
        (
            {"reduction": "overlapped", "micro_batch_sequences": 1, "log_interval_steps": SYNC_INTERVAL},
            [folder for _, folder, _ in overlapped],
        ),
    ]
    finish(start_jobs(count, jobs, str(count)))
    for run, folder, expected in everywhere:
        assert losses_of(folder) == losses_of(expected), run
        result, reference = folder.read_result(), expected.read_result()
        assert result is not None
        assert reference is not None
        assert result.num_ranks == count
        assert result.bytes_sent == reference.bytes_sent
        check_traffic(run, count, folder.read_steps())
        if run in table:
            check_formula(run, count, folder.read_steps()[-1])
    for run, folder, expected in shards + overlapped:
        assert losses_of(folder) == pytest.approx(losses_of(expected), rel=ROUNDING), run


@pytest.mark.parametrize(("first", "then"), [(2, 1), (1, 2)])
def test_a_run_may_move_to_another_number_of_processes(
    first: int, then: int, tiny_run: MakeRun, new_folder: MakeFolder, execution: ExecutionConfig
) -> None:
    run = tiny_run(
        "diloco",
        "muon",
        num_workers=2,
        num_steps=40,
        sync_interval=10,
        compression=QuantisationConfig(bits=2),
        streaming=StreamingConfig(2, 3, 0.1),
    )
    whole, moved = new_folder(run, "whole"), new_folder(run, "moved")
    run_job(whole, execution)
    # One rank hears the signal; all stop at the same step.
    processes = start_ranks(first, [moved], "7", SignalAt(signal.SIGUSR1, step=15))
    assert [process.wait() for process in processes] == [ExitCode.WANTS_MORE_TIME] * first
    assert [process.wait() for process in start_ranks(then, [moved], "9")] == [ExitCode.FINISHED] * then
    assert [s.loss for s in moved.read_steps()] == [s.loss for s in whole.read_steps()]
    result, expected = moved.read_result(), whole.read_result()
    assert result is not None
    assert expected is not None
    assert (result.validation_loss, result.train_loss) == (expected.validation_loss, expected.train_loss)


def test_shards_and_whole_models_exchange_checkpoints(tiny_run: MakeRun, new_folder: MakeFolder) -> None:
    runs = [
        tiny_run("diloco", "muon", num_steps=20, sync_interval=1),
        tiny_run("data_parallel", "adamw", num_steps=20),
        tiny_run("gpa", "muon", num_steps=20),
    ]
    execution = ExecutionConfig(device="cpu")
    at_once = {"wall_minutes": 1e-6}  # stops after its first step
    whole, whole_first, shards_first = ([new_folder(run, name) for run in runs] for name in ("a", "b", "c"))
    for one, two in zip(whole, whole_first, strict=True):
        assert run_job(one, execution) is ExitCode.FINISHED
        assert run_job(two, dataclasses.replace(execution, **at_once)) is ExitCode.WANTS_MORE_TIME
    shards: dict[str, object] = {"sharding": "full", "log_interval_steps": 10}
    jobs = [({**shards, **at_once}, shards_first), (shards, whole_first)]
    finish(start_jobs(2, jobs, "11"), ExitCode.WANTS_MORE_TIME)
    for one, two, three in zip(whole, whole_first, shards_first, strict=True):
        assert run_job(three, execution) is ExitCode.FINISHED
        for moved in (two, three):
            assert losses_of(moved)[-4:] == pytest.approx(losses_of(one)[-4:], rel=ROUNDING)


def test_a_rank_that_dies_ends_the_job_at_once_and_changes_nothing(
    tiny_run: MakeRun, new_folder: MakeFolder, execution: ExecutionConfig
) -> None:
    run = tiny_run(
        "diloco",
        "adamw",
        num_workers=2,
        num_steps=100,
        sync_interval=5,
        compression=TopKConfig(fraction=0.1, values="linear", bits=4),
        streaming=StreamingConfig(2, 2, 0.1),
    )
    whole, cut = new_folder(run, "whole"), new_folder(run, "cut")
    # Late enough that there are errors to remember.
    at = SignalAt(signal.SIGKILL, checkpoint_step=20)
    processes = start_ranks(2, [cut], "8", at, checkpoint_interval_seconds=0.01)
    assert processes[0].wait() == ExitCode.CRASH
    status = cut.read_status()
    assert status is not None
    assert (status.state, status.exit_code) == ("failed", ExitCode.CRASH)
    # A step of srun that tries again is of the same job: the dead one's address must not be taken for its own.
    assert not list(cut.path.rglob("rendezvous*"))
    again = start_ranks(2, [cut], "8")
    assert run_job(whole, execution) is ExitCode.FINISHED
    finish(again)
    assert losses_of(cut) == losses_of(whole)


def test_ranks_are_read_from_whoever_started_them(monkeypatch: pytest.MonkeyPatch) -> None:
    torchrun = {"RANK": "3", "WORLD_SIZE": "4", "LOCAL_RANK": "1", "MASTER_ADDR": "host", "MASTER_PORT": "1"}
    srun = {"SLURM_PROCID": "3", "SLURM_STEP_NUM_TASKS": "4", "SLURM_LOCALID": "1", "SLURM_JOB_ID": "9"}
    for environment, launcher in ((torchrun, "torchrun"), (srun, "srun")):
        place = process_rank(environment)
        assert (place.rank, place.num_ranks, place.local_rank, place.launcher) == (3, 4, 1, launcher)
    alone = {"SLURM_PROCID": "0", "SLURM_STEP_NUM_TASKS": "1", "SLURM_LOCALID": "0", "SLURM_JOB_ID": "9"}
    assert process_rank(alone).num_ranks == process_rank({}).num_ranks == 1

    # What submitit exports for its own jobs is what torchrun would.
    job = {**srun, "SLURM_NTASKS": "4", "SLURM_JOB_NUM_NODES": "2", "SLURM_NODEID": "1", "SLURM_JOB_NODELIST": "a,b"}
    for name, value in {**job, "SUBMITIT_EXECUTOR": "slurm"}.items():
        monkeypatch.setenv(name, value)
    for name in torchrun:
        monkeypatch.delenv(name, raising=False)
    before = dict(os.environ)
    try:
        TorchDistributedEnvironment().export(set_cuda_visible_devices=False)
        place = process_rank(os.environ)
    finally:
        os.environ.clear()
        os.environ.update(before)
    assert (place.rank, place.num_ranks, place.local_rank) == (3, 4, 1)


def by_torchrun(script: Path, arguments: list[str]) -> None:
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", str(script)]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    subprocess.run([*command, *arguments], env=environment, check=True, capture_output=True, timeout=900)


@pytest.mark.parametrize("start", [on_two_ranks, pytest.param(by_torchrun, marks=pytest.mark.thorough)])
def test_torchrun_starts_the_ranks_too(
    start: Callable[[Path, list[str]], None], tiny_run: MakeRun, new_folder: MakeFolder
) -> None:
    """By what it says to each rank, and the program itself."""
    folder = new_folder(tiny_run("diloco", "muon", num_workers=2))
    start(SCRIPT, [json.dumps({"device": "cpu", "profile": [1, 1]}), str(folder.path)])
    result = folder.read_result()
    assert result is not None
    assert result.num_ranks == 2
    traces = sorted(str(file.relative_to(folder.path)) for file in folder.path.rglob("trace-*"))
    assert traces == ["attempts/1/trace-0.json", "attempts/1/trace-1.json"], "the first rank's number counts for all"
