"""Shards (FSDP2) on two real processes with everything on: killed and resumed there or on one, and compiled."""

import dataclasses
import functools
import json
import os
import signal
from collections.abc import Callable
from pathlib import Path

import pytest
from forked import ForkedProcess

from muloco_runner.config import (
    DiLoCoConfig,
    ExecutionConfig,
    MuonConfig,
    QuantisationConfig,
    RunConfig,
    StreamingConfig,
    TopKConfig,
)
from muloco_runner.job import run_job
from muloco_runner.record import ExitCode, RunFolder

SCRIPT = Path(__file__).parent / "fsdp_script.py"
MakeRun = Callable[..., RunConfig]
MakeFolder = Callable[..., RunFolder]
SHARDS = {"device": "cpu", "sharding": "full", "micro_batch_sequences": 2, "log_interval_steps": 1}
OFTEN = {**SHARDS, "checkpoint_interval_seconds": 0.001}
NUM_STEPS = 30
KILLED_AFTER = 7
"""Step of a checkpoint: each fragment has been shared, what was not sent is remembered."""
COMPILER = os.environ.get("MULOCO_COMPILER", "aot_eager")
"""Traces and splits blocks as inductor does, which spends half a minute more on two cores to generate code."""
ROUNDING = 2e-4
"""Relative bound on losses where sums are taken in another order, as in `test_placement`."""


def losses_of(folder: RunFolder) -> list[float]:
    result = folder.read_result()
    assert result is not None
    assert result.validation_loss is not None
    return [*(step.loss for step in folder.read_steps()), result.train_loss, result.validation_loss]


@pytest.fixture(scope="module")
def runs(tiny_run: MakeRun) -> dict[str, RunConfig]:
    # Each fragment leaves when the other one arrives: at every step one is on its way.
    streaming = StreamingConfig(2, 2, 0.1)
    compiled = tiny_run("diloco", "muon", num_steps=8, sync_interval=4)
    by_kind = MuonConfig(
        weight_decay=0.1,
        weight_decay_rule="constant",
        embedding_lr_factor=2.0,
        scalar_lr_factor=0.5,
        weight_decay_form="cautious",
    )
    common = {"num_steps": NUM_STEPS, "sync_interval": 4, "streaming": streaming}
    return {
        "two bits": tiny_run("diloco", inner_optimizer=by_kind, compression=QuantisationConfig(bits=2), **common),
        # Exact values: what a quantiser rounds, another order of sums may round the other way.
        "top k": tiny_run("diloco", "muon", compression=TopKConfig(fraction=0.1, chunk=64), **common),
        # Evaluated in batches of the micro-batch's size: another one would be compiled once more.
        "compiled": dataclasses.replace(compiled, data=dataclasses.replace(compiled.data, validation_tokens=64)),
    }


@pytest.fixture(scope="module")
def trained(
    runs: dict[str, RunConfig], tmp_path_factory: pytest.TempPathFactory
) -> Callable[[str], dict[str, RunFolder]]:
    """Of a run, by its name above: its folder by the way that it was trained, once for all tests."""
    root = tmp_path_factory.mktemp("sharded")
    killed, lost = -signal.SIGKILL, ExitCode.CRASH

    @functools.cache
    def trained_in_each_way(name: str) -> dict[str, RunFolder]:
        run = runs[name]
        made = {way: RunFolder.of(root / way, run.run_id) for way in ("whole", "on one", "on two", "compiled")}
        for way in ("whole", "on two", "compiled"):
            made[way].write_config(run.to_dict())
        path = {way: str(folder.path) for way, folder in made.items()}
        whole = [json.dumps(SHARDS), path["whole"], "0", "-"]
        if name == "compiled":
            compiled = [json.dumps({**SHARDS, "compile": True}), path["compiled"], "0", "-"]
            assert codes_of_two_ranks([*whole, *compiled], root) == [[0, 0], [0, 0]]
        else:
            interrupted = [json.dumps(OFTEN), path["on two"], str(KILLED_AFTER), path["on one"]]
            resumed = [json.dumps(SHARDS), path["on two"], "0", "-"]
            assert codes_of_two_ranks([*whole, *interrupted, *resumed], root) == [[0, killed, 0], [0, lost, 0]]
        return made

    return trained_in_each_way


def codes_of_two_ranks(jobs: list[str], root: Path) -> list[list[int]]:
    """Exit codes of each rank's jobs."""
    environment = {
        **os.environ,
        "COMPILER": COMPILER,
        "TORCHINDUCTOR_COMPILE_THREADS": "1",
        "TORCHINDUCTOR_CACHE_DIR": str(root / "compiled by inductor"),
        "SLURM_STEP_NUM_TASKS": "2",
    }
    codes = [root / f"codes-{rank}.json" for rank in range(2)]
    ranks = [
        ForkedProcess(SCRIPT, [str(out), *jobs], {**environment, "SLURM_PROCID": str(rank), "SLURM_LOCALID": str(rank)})
        for rank, out in enumerate(codes)
    ]
    assert [rank.wait() for rank in ranks] == [0, 0], "\n".join(rank.errors() for rank in ranks)
    return [json.loads(out.read_text()) for out in codes]


@pytest.mark.parametrize("run", ["two bits", pytest.param("top k", marks=pytest.mark.thorough)])
def test_a_killed_sharded_run_ends_as_the_uninterrupted_one(
    run: str, trained: Callable[[str], dict[str, RunFolder]]
) -> None:
    resumed = trained(run)["on two"]
    result = resumed.read_result()
    assert result is not None
    assert result.attempts > 1
    assert losses_of(resumed) == losses_of(trained(run)["whole"])


@pytest.mark.thorough
def test_a_killed_sharded_run_goes_on_whole_on_one_rank(
    trained: Callable[[str], dict[str, RunFolder]], runs: dict[str, RunConfig]
) -> None:
    moved, method = trained("top k")["on one"], runs["top k"].method
    assert isinstance(method, DiLoCoConfig)
    assert KILLED_AFTER <= max(int(path.name[5:]) for path in moved.checkpoint_dir.glob("step-*")) < NUM_STEPS
    execution = ExecutionConfig(device="cpu", micro_batch_sequences=2, log_interval_steps=1)
    assert run_job(moved, execution, attempt=9) is ExitCode.FINISHED
    assert losses_of(moved) == pytest.approx(losses_of(trained("top k")["whole"]), rel=ROUNDING)


@pytest.mark.thorough
def test_compiled_shards_are_shards(trained: Callable[[str], dict[str, RunFolder]]) -> None:
    compiled, eager = (losses_of(trained("compiled")[way]) for way in ("compiled", "whole"))
    assert compiled == pytest.approx(eager, rel=1e-5)
