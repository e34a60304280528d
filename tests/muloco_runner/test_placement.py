"""The same run on one, two and four real processes: what must be equal, and to what.

Workers on other ranks: equal to the bit (pseudogradients are averaged in worker order wherever they were made). A
worker's batch split over replicas: gradients are summed in another order, so losses agree to rounding.
"""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from muloco_runner.config import (
    DataParallelConfig,
    DiLoCoConfig,
    ExecutionConfig,
    OuterMuonConfig,
    QuantisationConfig,
    RunConfig,
    StreamingConfig,
    TopKConfig,
)
from muloco_runner.job import run_job
from muloco_runner.ranks import rank_place
from muloco_runner.record import ExitCode, RunFolder, StepRecord
from muloco_runner.topology import Topology

SCRIPT = Path(__file__).parent / "ranks_script.py"
MakeRun = Callable[..., RunConfig]
MakeFolder = Callable[..., RunFolder]
ROUNDING = 2e-4
"""Relative bound on losses over 50 steps where the order of a sum differs; 6e-8 a step, grown by training."""


def start_ranks(count: int, folders: list[RunFolder], job: str, **execution: object) -> list[subprocess.Popen[bytes]]:
    settings = json.dumps({"device": "cpu", "log_interval_steps": 1, **execution})
    processes = []
    for rank in range(count):
        environment = {
            **os.environ,
            "OMP_NUM_THREADS": "1",
            "SLURM_PROCID": str(rank),
            "SLURM_STEP_NUM_TASKS": str(count),
            "SLURM_LOCALID": str(rank),
            "SLURM_JOB_ID": job,
        }
        command = [sys.executable, str(SCRIPT), settings, *(str(folder.path) for folder in folders)]
        processes.append(subprocess.Popen(command, env=environment, stderr=subprocess.PIPE))
    return processes


def all_runs(tiny_run: MakeRun) -> list[RunConfig]:
    single = [tiny_run("data_parallel", inner, num_steps=50) for inner in ("adamw", "muon")]
    several = [
        tiny_run("diloco", inner, num_workers=workers, num_steps=50, sync_interval=10)
        for inner in ("adamw", "muon")
        for workers in (1, 2, 4)
    ]
    quantised = QuantisationConfig("linear", bits=4, granularity="row", exchange="reduce_scatter")
    streaming = StreamingConfig(2, 3, 0.1)
    sparse = TopKConfig(fraction=0.1, values="statistical", bits=4)
    common = {"num_steps": 50, "sync_interval": 10}
    compressed = [
        tiny_run(
            "diloco", "muon", num_workers=2, compression=QuantisationConfig(bits=2), streaming=streaming, **common
        ),
        tiny_run("diloco", "adamw", num_workers=4, compression=quantised, **common),
        tiny_run("diloco", "muon", num_workers=4, compression=sparse, outer_optimizer=OuterMuonConfig(), **common),
    ]
    return single + several + compressed


def check_traffic(run: RunConfig, count: int, steps: list[StepRecord]) -> None:
    """What was sent arrived, and where nothing but one kind of message was sent it is the formula."""
    for step in steps:
        assert step.rank_bytes_sent is not None
        assert step.rank_bytes_received is not None
        assert step.rank_wait_seconds is not None
        assert sum(step.rank_bytes_sent) == sum(step.rank_bytes_received)
        assert len(step.rank_wait_seconds) == count
    last = steps[-1]
    assert last.bytes_sent is not None
    method = run.method
    if isinstance(method, DataParallelConfig):
        # Loss and gradients, padded to share out; each rank sends all but its own share, and its sum to all others.
        values = -(-(run.num_params + 1) // count) * count
        assert last.rank_bytes_sent == [50 * 2 * (count - 1) * values * 4 // count] * count
    elif isinstance(method, DiLoCoConfig) and isinstance(method.compression, TopKConfig):
        held = run.num_workers // count
        assert last.rank_bytes_sent == [(count - 1) * held * last.bytes_sent] * count


def test_a_run_is_the_same_on_one_two_and_four_processes(tiny_run: MakeRun, new_folder: MakeFolder) -> None:
    runs = all_runs(tiny_run)
    execution = ExecutionConfig(device="cpu", log_interval_steps=1)
    expected = {}
    for run in runs:
        folder = new_folder(run, "one")
        assert run_job(folder, execution) is ExitCode.FINISHED
        expected[run.run_id] = folder
    for count in (2, 4):
        folders = [new_folder(run, str(count)) for run in runs]
        processes = start_ranks(count, folders, str(count))
        errors = [process.communicate(timeout=240)[1].decode() for process in processes]
        assert [process.returncode for process in processes] == [0] * count, "\n".join(errors)
        for run, folder in zip(runs, folders, strict=True):
            ours, whole = folder.read_steps(), expected[run.run_id].read_steps()
            losses, wanted = ([step.loss for step in steps] for steps in (ours, whole))
            result, reference = folder.read_result(), expected[run.run_id].read_result()
            assert result is not None
            assert reference is not None
            assert result.num_ranks == count
            assert result.bytes_sent == reference.bytes_sent
            check_traffic(run, count, ours)
            pairs = (
                (losses, wanted),
                ([result.validation_loss, result.train_loss], [reference.validation_loss, reference.train_loss]),
            )
            for found, one in pairs:
                if Topology(run.num_workers, 0, count).replicas == 1:
                    assert found == one, run.algorithm
                else:
                    assert found == pytest.approx(one, rel=ROUNDING), run.algorithm


@pytest.mark.parametrize(("first", "then"), [(2, 1), (1, 2)])
def test_a_run_that_moves_to_another_number_of_processes_ends_as_if_it_had_always_been_there(
    first: int, then: int, tiny_run: MakeRun, new_folder: MakeFolder, execution: ExecutionConfig
) -> None:
    run = tiny_run(
        "diloco",
        "muon",
        num_workers=2,
        num_steps=400,
        sync_interval=10,
        compression=QuantisationConfig(bits=2),
        streaming=StreamingConfig(2, 3, 0.1),
    )
    whole, moved = new_folder(run, "whole"), new_folder(run, "moved")
    run_job(whole, execution)
    processes = start_ranks(first, [moved], "7")
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline and len(moved.read_steps()) < 25:
        time.sleep(0.02)
    # One rank hears the signal; all stop at the same step.
    processes[-1].send_signal(signal.SIGUSR1)
    assert [process.wait(timeout=60) for process in processes] == [ExitCode.WANTS_MORE_TIME] * first
    assert [process.wait(timeout=120) for process in start_ranks(then, [moved], "9")] == [ExitCode.FINISHED] * then
    assert [s.loss for s in moved.read_steps()] == [s.loss for s in whole.read_steps()]
    result, expected = moved.read_result(), whole.read_result()
    assert result is not None
    assert expected is not None
    assert (result.validation_loss, result.train_loss) == (expected.validation_loss, expected.train_loss)


def test_a_rank_that_dies_ends_the_job_at_once(tiny_run: MakeRun, new_folder: MakeFolder) -> None:
    folder = new_folder(tiny_run("diloco", "adamw", num_workers=2, num_steps=100_000, sync_interval=5))
    processes = start_ranks(2, [folder], "8")
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline and len(folder.read_steps()) < 10:
        time.sleep(0.02)
    processes[1].kill()
    assert processes[0].wait(timeout=60) == ExitCode.CRASH
    status = folder.read_status()
    assert status is not None
    assert (status.state, status.exit_code) == ("failed", ExitCode.CRASH)


def test_ranks_are_read_from_whoever_started_them() -> None:
    torchrun = {"RANK": "3", "WORLD_SIZE": "4", "LOCAL_RANK": "1", "MASTER_ADDR": "host", "MASTER_PORT": "1"}
    srun = {"SLURM_PROCID": "3", "SLURM_STEP_NUM_TASKS": "4", "SLURM_LOCALID": "1", "SLURM_JOB_ID": "9"}
    for environment, launcher in ((torchrun, "torchrun"), (srun, "srun")):
        place = rank_place(environment)
        assert (place.rank, place.num_ranks, place.local_rank, place.launcher) == (3, 4, 1, launcher)
    alone = {"SLURM_PROCID": "0", "SLURM_STEP_NUM_TASKS": "1", "SLURM_LOCALID": "0", "SLURM_JOB_ID": "9"}
    assert rank_place(alone).num_ranks == rank_place({}).num_ranks == 1
