"""The memory estimate against what torch's allocator hands out, and the placements it leads to."""

import dataclasses
import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from forked import ForkedProcess

from benchmarks.train_parts.peak_memory import peak_bytes
from muloco_runner.compose import compose_app_config
from muloco_runner.config import (
    ExecutionConfig,
    ModelConfig,
    OuterMuonConfig,
    QuantisationConfig,
    RunConfig,
    StreamingConfig,
    TopKConfig,
)
from muloco_runner.data.corpus import load_corpus
from muloco_runner.distributed.communicator import Communicator
from muloco_runner.distributed.topology import Topology
from muloco_runner.memory import Placement, estimate_memory
from muloco_runner.memory.choose import choose_placement
from muloco_runner.memory.command import show_estimate
from muloco_runner.record import RunFolder
from muloco_runner.training.inner_step import InnerStep
from muloco_runner.training.loop import Trainer
from muloco_runner.training.session import Session

MakeRun = Callable[..., RunConfig]
MakeFolder = Callable[..., RunFolder]
CPU = torch.device("cpu")
GIB = 1 << 30
H100 = 80 * 10**9
DEEP = ModelConfig(width=128, num_layers=4, head_width=32, vocab_size=256, sequence_length=128)
MANY_WORDS = ModelConfig(width=64, num_layers=2, head_width=32, vocab_size=20_000, sequence_length=128)
MANY_WEIGHTS = ModelConfig(width=256, num_layers=6, head_width=32, vocab_size=256, sequence_length=64)


def thorough(*values: Any) -> Any:
    """Parameters of one case that `make test` leaves to `make test-thorough`."""
    return pytest.param(*values, marks=pytest.mark.thorough)


@pytest.mark.parametrize(
    ("model", "method", "optimizer", "num_workers", "batch", "micro_batch", "precision", "recompute"),
    [
        (DEEP, "data_parallel", "adamw", 1, 8, 2, "float32", True),  # gradients of several micro-batches
        (DEEP, "diloco", "muon", 2, 8, 8, "bfloat16", False),  # two workers in one process
        thorough(DEEP, "data_parallel", "adamw", 1, 8, 8, "float32", False),
        thorough(DEEP, "data_parallel", "muon", 1, 8, 8, "bfloat16", True),
        thorough(MANY_WORDS, "data_parallel", "adamw", 1, 8, 8, "float32", False),  # logits at once
        thorough(MANY_WORDS, "data_parallel", "muon", 1, 16, 16, "bfloat16", False),  # and in chunks
        thorough(MANY_WEIGHTS, "data_parallel", "muon", 1, 2, 2, "float32", False),
        thorough(MANY_WEIGHTS, "gpa", "adamw", 1, 2, 2, "float32", False),  # a copy while it is updated
        thorough(MANY_WEIGHTS, "gpa", "muon", 2, 2, 2, "float32", False),
    ],
)
def test_the_estimate_is_within_a_tenth_of_the_peak(
    model: ModelConfig,
    method: str,
    optimizer: str,
    num_workers: int,
    batch: int,
    micro_batch: int,
    precision: str,
    recompute: bool,
    tiny_run: MakeRun,
    new_folder: MakeFolder,
) -> None:
    run = tiny_run(
        method,
        optimizer,
        num_workers=num_workers,
        model=model,
        global_batch_tokens=batch * num_workers * model.sequence_length,
        precision=precision,
    )
    execution = ExecutionConfig(device="cpu", micro_batch_sequences=micro_batch, activation_checkpointing=recompute)
    folder, corpus = new_folder(run), load_corpus(run.data)

    def two_steps() -> None:
        trainer = Trainer(run, corpus, Session(folder, execution, Communicator(Topology(num_workers)), CPU))
        for _ in range(2):
            trainer.step_workers()

    placement = choose_placement(run, execution, 1, "cpu", None)
    assert (placement.micro_batch_sequences, placement.recompute) == (micro_batch, recompute)
    estimate = estimate_memory(run, placement)
    assert estimate.total == pytest.approx(peak_bytes(two_steps, CPU), rel=0.1), estimate


SCRIPT = Path(__file__).parent / "peaks_script.py"
FEWER = dataclasses.replace(MANY_WEIGHTS, num_layers=4)
WORDY = dataclasses.replace(FEWER, vocab_size=1000, sequence_length=32)
WIDE = ModelConfig(width=512, num_layers=3, head_width=32, vocab_size=256, sequence_length=16)
BFLOAT16 = {"precision": "bfloat16"}
SHARDS, OVERLAPPED = {"sharding": "full"}, {"reduction": "overlapped"}
FOUR_BITS = QuantisationConfig(bits=4)
ROWS = QuantisationConfig("linear", bits=4, granularity="row", exchange="reduce_scatter")
Case = tuple[str, str, str, ModelConfig, int, dict[str, Any], dict[str, Any]]
ON_TWO_RANKS: list[Case] = [
    # Worst moment, method, inner optimizer, model, batch of each worker, settings, and further fields of the run.
    ("sum over replicas", "data_parallel", "adamw", FEWER, 4, {}, {}),
    ("sum over replicas", "data_parallel", "muon", FEWER, 4, {}, {}),
    ("sum over replicas", "diloco", "muon", FEWER, 2, OVERLAPPED, {}),
    ("last block", "data_parallel", "muon", FEWER, 8, {**OVERLAPPED, "micro_batch_sequences": 1}, {}),
    ("sum over replicas", "data_parallel", "muon", WIDE, 2, OVERLAPPED, {}),  # in several messages
    ("sum of a block", "diloco", "muon", FEWER, 4, SHARDS, {}),
    ("sum of a block", "data_parallel", "adamw", DEEP, 8, {**SHARDS, "activation_checkpointing": True}, BFLOAT16),
    ("head", "data_parallel", "muon", MANY_WORDS, 4, {**SHARDS, "micro_batch_sequences": 1}, {}),
    ("outer step", "diloco", "adamw", WORDY, 2, {}, {"num_workers": 2}),
    ("outer step", "diloco", "adamw", WORDY, 2, {}, {"num_workers": 2, "compression": ROWS}),
    ("outer step", "diloco", "adamw", WORDY, 2, {}, {"num_workers": 4, "compression": FOUR_BITS}),
    ("outer step", "diloco", "muon", WORDY, 2, SHARDS, {"compression": TopKConfig(fraction=0.05)}),
    ("outer step", "diloco", "muon", WORDY, 2, SHARDS, {"outer_optimizer": OuterMuonConfig()}),
    ("outer step", "diloco", "adamw", WORDY, 2, {}, {"num_workers": 2, "streaming": StreamingConfig(2)}),
]
# The exchange, slow enough to last for an inner step, goes on beside it: how much they overlap is chance.
BESIDE_TRAINING: list[Case] = [
    (
        "first block",
        "diloco",
        "adamw",
        WORDY,
        2,
        {"link_megabits_per_second": 600},
        {"num_workers": 2, "streaming": StreamingConfig(2, 1), "num_steps": 3},
    )
]


@pytest.mark.thorough
def test_the_estimate_is_near_the_peak_on_each_of_two_ranks(
    tiny_run: MakeRun, new_folder: MakeFolder, tmp_path: Path
) -> None:
    cases, jobs = ON_TWO_RANKS + BESIDE_TRAINING, []
    for number, (_, method, optimizer, model, batch, execution, changes) in enumerate(cases):
        fields = {"num_steps": 2, "sync_interval": 2, **changes}
        tokens = batch * fields.get("num_workers", 1) * model.sequence_length
        run = tiny_run(method, optimizer, model=model, global_batch_tokens=tokens, **fields)
        jobs += [str(new_folder(run, str(number)).path), json.dumps({"device": "cpu", **execution})]
    found = [tmp_path / f"{rank}.json" for rank in range(2)]
    environment = {**os.environ, "SLURM_STEP_NUM_TASKS": "2", "SLURM_JOB_ID": "13"}
    ranks = [
        ForkedProcess(
            SCRIPT, [str(file), *jobs], {**environment, "SLURM_PROCID": str(rank), "SLURM_LOCALID": str(rank)}
        )
        for rank, file in enumerate(found)
    ]
    codes = [rank.wait() for rank in ranks]
    assert codes == [0, 0], "\n".join(rank.errors() for rank in ranks)
    for results in (json.loads(file.read_text()) for file in found):
        for number, (case, (estimate, peak, moment)) in enumerate(zip(cases, results, strict=True)):
            assert moment == case[0], (number, case)
            most = 1.3 if case in BESIDE_TRAINING else 1.1
            assert 0.9 <= estimate / peak <= most, (number, case, estimate, peak)


def ladder(size: str, *overrides: str) -> RunConfig:
    return compose_app_config([f"model={size}", "precision=bfloat16", "global_batch_tokens=1048576", *overrides]).run


def test_small_models_are_copied_and_the_largest_is_sharded() -> None:
    for size, ranks, sharded in (("150m", 1, False), ("416m", 8, False), ("15b", 64, True)):
        run = ladder(size, "algorithm=ddp_muon")
        placement = choose_placement(run, ExecutionConfig(), ranks, "cuda", H100)
        assert placement.sharded == sharded
        assert estimate_memory(run, placement).total < H100
    # 15b in float32: weights, gradient and moments of whole copies are beyond any GPU.
    assert estimate_memory(run, dataclasses.replace(placement, sharded=False)).total > 2 * H100


def test_what_takes_more_is_estimated_higher() -> None:
    run = ladder("914m", "algorithm=muloco")
    base = Placement(num_ranks=8, micro_batch_sequences=4)

    def total(**changes: Any) -> int:
        return estimate_memory(run, dataclasses.replace(base, **changes)).total

    assert total(sharded=True) < total()
    assert total(recompute=True) < total()
    assert total(micro_batch_sequences=8) > total()
    assert total(num_ranks=1) > total()


@pytest.mark.parametrize(("ffn_ratio", "largest"), [(0.5, (64, 64, 8)), (2.75, (176, 64, 4))])
def test_the_largest_matrices_may_be_attentions(ffn_ratio: float, largest: tuple[int, int, int]) -> None:
    model = ModelConfig(width=64, num_layers=2, head_width=32, ffn_ratio=ffn_ratio)
    assert model.largest_matrices[:3] == largest


def test_the_micro_batch_is_the_largest_that_fits() -> None:
    run = ladder("416m")
    sizes = [
        choose_placement(run, ExecutionConfig(memory_halvings=halvings), 1, "cuda", H100).micro_batch_sequences
        for halvings in (0, 1, 2)
    ]
    assert sizes[0] > 4
    assert sizes == [sizes[0], sizes[0] // 2, sizes[0] // 4]
    placement = choose_placement(run, ExecutionConfig(), 1, "cuda", H100)
    larger = dataclasses.replace(placement, micro_batch_sequences=2 * sizes[0])
    assert estimate_memory(run, placement).total <= 0.92 * H100 < estimate_memory(run, larger).total


def test_chunks_of_logits_take_what_memory_is_left() -> None:
    run = ladder("416m")
    chunks = []
    for gigabytes in (40, 80, 141):
        placement = choose_placement(run, ExecutionConfig(), 1, "cuda", gigabytes * 10**9)
        assert estimate_memory(run, placement).total <= 0.92e9 * gigabytes
        chunks.append(placement.most_chunk)
    assert chunks == sorted(chunks)
    assert chunks[0] < chunks[-1] == 16_384
    # A run that ran out of memory has shown the estimate to be wrong.
    assert choose_placement(run, ExecutionConfig(memory_halvings=1), 1, "cuda", 141 * 10**9).most_chunk == 0


def test_a_micro_batch_out_of_memory_is_halved_before_training(
    tiny_run: MakeRun, new_folder: MakeFolder, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = tiny_run("data_parallel", "muon")
    session = Session(new_folder(run), ExecutionConfig(device="cpu"), Communicator(Topology(1)), CPU)
    trainer = Trainer(run, load_corpus(run.data), session)
    loss_of, tried = InnerStep._loss, []

    def hungry(self: InnerStep, model: Any, batch: Any) -> torch.Tensor:
        tried.append(len(batch))
        if len(batch) > limit:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return loss_of(self, model, batch)

    monkeypatch.setattr(InnerStep, "_loss", hungry)
    limit = 2
    trainer.inner_step.shrink_to_memory(trainer.state.workers[0])
    assert (tried, trainer.inner_step.micro_batch_sequences) == ([8, 4, 2], 2)
    assert all(tensor.grad is None for tensor in trainer.state.workers[0].tensors)
    limit = 0
    with pytest.raises(torch.OutOfMemoryError, match="one sequence"):
        trainer.inner_step.shrink_to_memory(trainer.state.workers[0])


def test_the_estimate_is_a_table_of_gpus(capsys: pytest.CaptureFixture[str]) -> None:
    show_estimate(ladder("15b", "algorithm=muloco", "method.num_workers=2"), ExecutionConfig())
    rows = [
        [cell.strip() for cell in line.split("│")[1:-1]] for line in capsys.readouterr().out.splitlines() if "│" in line
    ]
    assert [row[0] for row in rows[:4]] == ["1", "2", "4", "8"]
    assert rows[0][-1] == "no"
    held = {row[0]: (row[1], row[-1]) for row in rows}
    assert held["16"][0] == "rows"
    assert held["32"] == ("rows, 2 copies", "yes")


def test_the_estimate_says_when_a_batch_has_no_share_for_more(capsys: pytest.CaptureFixture[str]) -> None:
    show_estimate(ladder("15b", "global_batch_tokens=8192"), ExecutionConfig())
    table, _, last = capsys.readouterr().out.strip().rpartition("\n")
    assert "│    4 │" in table
    assert "│    8 │" not in table
    assert last.startswith("GPUs at most: 4")
