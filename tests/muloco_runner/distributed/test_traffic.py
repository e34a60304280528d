"""What a rank is said to have sent is what torch was asked to send, however replicas hold a model."""

from __future__ import annotations

import dataclasses
import json
import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from forked import ForkedProcess

from muloco_runner.config import ExecutionConfig, QuantisationConfig, RunConfig, StreamingConfig, TopKConfig
from muloco_runner.record import RunFolder, StepRecord

pytestmark = pytest.mark.thorough
SCRIPT = Path(__file__).parent / "traffic_script.py"
STEPS = 5
HOLDINGS: dict[str, dict[str, Any]] = {
    "ordered": {"reduction": "ordered"},
    "overlapped": {"reduction": "overlapped", "micro_batch_sequences": 2},
    "shards": {"sharding": "full", "micro_batch_sequences": 2},
}
FLAGS = 16 * STEPS
"""Bytes in which a rank tells the other, at each step, whether to stop or to checkpoint."""


@dataclass
class Outcome:
    run: RunConfig
    last: StepRecord
    watched: list[dict[str, Any]]
    """Of each rank."""

    @property
    def sent(self) -> list[int]:
        assert self.last.rank_bytes_sent is not None
        return self.last.rank_bytes_sent


def cases(tiny_run: Callable[..., RunConfig]) -> dict[str, tuple[RunConfig, dict[str, Any]]]:
    """Name to run and settings of its execution: two replicas of one worker, then two workers."""
    found = {}
    common = {"num_steps": STEPS, "sync_interval": 2}
    for optimizer in ("adamw", "muon"):
        for method in ("data_parallel", "diloco"):
            run = tiny_run(method, optimizer, **common)
            for holding, execution in HOLDINGS.items():
                found[f"{run.algorithm} {holding}"] = run, execution
        found[f"{optimizer} two workers"] = tiny_run("diloco", optimizer, num_workers=2, **common), {}
    composed = {
        "averaged in shares": {
            "compression": QuantisationConfig("linear", bits=4, granularity="row", exchange="reduce_scatter")
        },
        "beside training": {"compression": TopKConfig(fraction=0.1), "streaming": StreamingConfig(2, 1, 0.0)},
    }
    for name, changes in composed.items():
        found[name] = tiny_run("diloco", "muon", num_workers=2, **common, **changes), {}
    run = tiny_run("diloco", "muon", **common, **composed["beside training"])
    found["shards beside training"] = run, HOLDINGS["shards"]
    return found


@pytest.fixture(scope="module")
def outcomes(tiny_run: Callable[..., RunConfig], tmp_path_factory: pytest.TempPathFactory) -> dict[str, Outcome]:
    root = tmp_path_factory.mktemp("traffic")
    # A link so fast that nothing is held back: it is told of everything all the same.
    common = {"device": "cpu", "log_interval_steps": STEPS, "link_megabits_per_second": 1e9}
    jobs, folders = [], {}
    for name, (run, execution) in cases(tiny_run).items():
        folder = RunFolder.of(root / name.replace(" ", "-"), run.run_id)
        folder.write_config(run.to_dict())
        folders[name] = run, folder
        values = dataclasses.asdict(ExecutionConfig(**{**common, **execution}))
        jobs.append({"folder": str(folder.path), "execution": values})
    (root / "jobs.json").write_text(json.dumps(jobs))
    processes = []
    for rank in range(2):
        place = {"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": "2", "MULOCO_RDZV_ID": "traffic"}
        processes.append(ForkedProcess(SCRIPT, [str(rank), str(root / "jobs.json")], {**os.environ, **place}))
    codes = [process.wait() for process in processes]
    assert codes == [0, 0], "\n".join(process.errors() for process in processes)
    return {
        name: Outcome(
            run,
            folder.read_steps()[-1],
            [json.loads((folder.path / f"watched-{rank}.json").read_text()) for rank in range(2)],
        )
        for name, (run, folder) in folders.items()
    }


def test_what_is_counted_is_what_torch_was_asked_to_send(outcomes: dict[str, Outcome]) -> None:
    for name, outcome in outcomes.items():
        assert outcome.sent == [watched["sent"] for watched in outcome.watched], name
        assert outcome.last.rank_bytes_received == [watched["received"] for watched in outcome.watched], name
        assert min(outcome.sent) > FLAGS, name


def test_only_ddps_order_of_buckets_goes_uncounted_and_once(outcomes: dict[str, Outcome]) -> None:
    for name, outcome in outcomes.items():
        for watched in outcome.watched:
            # Two integers a parameter, and how many buckets there are. Where matrices have owners DDP is not at work.
            by_ddp = name in ("DDP-AdamW overlapped", "DiLoCo overlapped")
            assert (0 < watched["bucket_order"] < 1000) if by_ddp else watched["bucket_order"] == 0, name


def test_an_emulated_link_is_given_all_of_it(outcomes: dict[str, Outcome]) -> None:
    for name, outcome in outcomes.items():
        for watched in outcome.watched:
            assert watched["on_link"] == watched["larger"], name
        assert all(seconds > 0 for seconds in outcome.last.rank_wait_seconds or [0.0]), name


def test_every_kind_of_collective_took_part(outcomes: dict[str, Outcome]) -> None:
    kinds = {kind for outcome in outcomes.values() for kind in outcome.watched[0]["kinds"]}
    assert kinds == {"allreduce_", "_allgather_base_", "_reduce_scatter_base_", "alltoall_base_"}


def test_replicas_send_a_gradient_or_a_matrix_to_its_owner(outcomes: dict[str, Outcome]) -> None:
    for holding in ("ordered", "overlapped"):
        adamw, muon = outcomes[f"DDP-AdamW {holding}"], outcomes[f"DDP-Muon {holding}"]
        # Of two ranks each sends as much as it has: half before and half after the sum. One value more is the loss.
        gradient = 4 * (adamw.run.num_params + 1)
        padding = 4 * (holding == "ordered") * ((adamw.run.num_params + 1) % 2)
        assert adamw.sent == [STEPS * (gradient + padding) + FLAGS] * 2
        # Two layers: every shape of matrix is there an even number of times, and each rank owns half of them. Its half
        # of the gradients goes to the other, its results as well, both in float32 at this size. Then a norm of each
        # parameter.
        model = muon.run.model
        hidden = model.num_params - model.width * (2 * model.vocab_size + 1) - 2 * 2 * (2 * model.width + 8)
        rest = model.num_params - hidden + 1
        norms = 2 * 13 + 3
        expected = 4 * (rest + (holding == "ordered") * (rest % 2) + hidden // 2 + hidden // 2 + norms)
        assert muon.sent == [STEPS * expected + FLAGS] * 2


def test_the_ways_to_hold_a_model_lead_to_one_loss(outcomes: dict[str, Outcome]) -> None:
    for algorithm in ("DDP-AdamW", "DDP-Muon", "DiLoCo", "MuLoCo"):
        losses = [outcomes[f"{algorithm} {holding}"].last.validation_loss for holding in HOLDINGS]
        assert losses == pytest.approx([losses[0]] * 3, rel=2e-4)
