"""Hybrid sharding on four real processes, which stand for two nodes of two: rows within a node, copies across nodes."""

from __future__ import annotations

import functools
import json
import os
from collections.abc import Callable
from pathlib import Path

import pytest
from forked import ForkedProcess

from muloco_runner.compose import compose_app_config
from muloco_runner.config import ConfigError, ExecutionConfig, RunConfig, TopKConfig
from muloco_runner.distributed.rendezvous import process_rank
from muloco_runner.memory import estimate_memory
from muloco_runner.memory.choose import choose_placement
from muloco_runner.record import RunFolder

SCRIPT = Path(__file__).parent / "fsdp_script.py"
MakeRun = Callable[..., RunConfig]
TWO_NODES = {"SLURM_STEP_NUM_TASKS": "4", "SLURM_STEP_TASKS_PER_NODE": "2(x2)"}
KILLED_AFTER = 2
H100 = 80 * 10**9


@pytest.fixture(scope="module")
def trained(tiny_run: MakeRun, tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], RunFolder]:
    """The folder of a run of MuLoCo, trained once in each way: `full` shards, `hybrid` ones, hybrid ones and a kill."""
    root = tmp_path_factory.mktemp("hybrid")
    # What is compressed needs full tensors, each gathered at one owner of a copy.
    run = tiny_run("diloco", "muon", num_steps=6, sync_interval=3, compression=TopKConfig(fraction=0.1))

    @functools.cache
    def trained_by_four_ranks(way: str) -> RunFolder:
        folder = RunFolder.of(root / way, run.run_id)
        folder.write_config(run.to_dict())
        settings = {"device": "cpu", "micro_batch_sequences": 1, "log_interval_steps": 1}
        settings["sharding"] = "full" if way == "full" else "hybrid"
        jobs = [json.dumps(settings), str(folder.path), "0", "-"]
        if way == "killed":
            often = json.dumps({**settings, "checkpoint_interval_seconds": 0.001})
            jobs = [often, str(folder.path), str(KILLED_AFTER), "-", *jobs]
        environment = {**os.environ, **TWO_NODES, "COMPILER": "eager"}
        ranks = [
            ForkedProcess(
                SCRIPT,
                [str(root / f"codes-{rank}.json"), *jobs],
                {**environment, "SLURM_PROCID": str(rank), "SLURM_LOCALID": str(rank % 2)},
            )
            for rank in range(4)
        ]
        assert [rank.wait() for rank in ranks] == [0] * 4, "\n".join(rank.errors() for rank in ranks)
        return folder

    return trained_by_four_ranks


def losses_of(folder: RunFolder) -> list[float]:
    result = folder.read_result()
    assert result is not None
    assert result.validation_loss is not None
    return [*(step.loss for step in folder.read_steps()), result.validation_loss]


@pytest.mark.thorough
def test_hybrid_shards_train_as_full_ones(trained: Callable[[str], RunFolder]) -> None:
    hybrid, full = (losses_of(trained(way)) for way in ("hybrid", "full"))
    assert hybrid == pytest.approx(full, rel=2e-4)
    # Other sums: copies are averaged after the backward pass.
    assert hybrid != full


@pytest.mark.thorough
def test_a_killed_hybrid_run_ends_as_the_uninterrupted_one(trained: Callable[[str], RunFolder]) -> None:
    assert losses_of(trained("killed")) == losses_of(trained("hybrid"))


def large(*overrides: str) -> RunConfig:
    return compose_app_config(
        ["model=15b", "precision=bfloat16", "global_batch_tokens=2097152", "algorithm=ddp_muon", *overrides]
    ).run


def test_copies_across_nodes_are_chosen_where_a_node_holds_the_rows() -> None:
    run, execution = large(), ExecutionConfig()
    placement = choose_placement(run, execution, 64, "cuda", H100, 8)
    assert (placement.sharded, placement.copies) == (True, 8)
    on_eight = choose_placement(run, execution, 8, "cuda", H100, 8)
    assert (on_eight.sharded, on_eight.copies) == (True, 1)
    assert choose_placement(run, execution, 64, "cuda", H100).copies == 1, "nodes that are not known"
    # On smaller GPUs the rows need more than one node's.
    small = choose_placement(run, execution, 64, "cuda", H100 // 3, 8)
    assert (small.sharded, small.copies) == (True, 1)
    full = choose_placement(run, ExecutionConfig(sharding="full"), 64, "cuda", H100, 8)
    assert estimate_memory(run, full).parameters * 8 == pytest.approx(
        estimate_memory(run, placement).parameters, rel=0.01
    )
    # Workers of one node each, or less, have one copy.
    assert (
        choose_placement(large("algorithm=muloco", "method.num_workers=8"), execution, 64, "cuda", H100, 8).copies == 1
    )


def test_what_does_not_fill_nodes_is_refused() -> None:
    hybrid = ExecutionConfig(sharding="hybrid")
    for ranks, per_node in ((8, None), (8, 1), (8, 6)):
        with pytest.raises(ConfigError, match="sharding=hybrid: the 8 ranks of a worker must fill"):
            choose_placement(large(), hybrid, ranks, "cuda", H100, per_node)
    assert choose_placement(large(), hybrid, 16, "cuda", H100, 4).copies == 4
    assert choose_placement(large(), hybrid, 4, "cuda", H100, 8).copies == 1


@pytest.mark.parametrize(
    ("given", "found"),
    [
        ({"SLURM_STEP_TASKS_PER_NODE": "8(x4)"}, 8),
        ({"SLURM_STEP_TASKS_PER_NODE": "4"}, 4),
        ({"SLURM_STEP_TASKS_PER_NODE": "8(x2),4"}, None),
        ({"SLURM_STEP_TASKS_PER_NODE": "2(x2)", "SLURM_DISTRIBUTION": "cyclic"}, None),
        ({}, None),
        ({"RANK": "1", "WORLD_SIZE": "4", "MASTER_ADDR": "here", "LOCAL_WORLD_SIZE": "2"}, 2),
        ({"MULOCO_RDZV_ID": "x", "RANK": "1", "WORLD_SIZE": "4", "LOCAL_RANK": "1"}, 4),
    ],
)
def test_ranks_know_how_many_a_node_has(given: dict[str, str], found: int | None) -> None:
    srun = {"SLURM_PROCID": "1", "SLURM_LOCALID": "1", "SLURM_STEP_NUM_TASKS": "4", "SLURM_JOB_ID": "3"}
    assert process_rank({**srun, **given}).ranks_per_node == found
