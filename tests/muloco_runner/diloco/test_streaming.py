"""Fragments: each parameter is shared once in H steps; one fragment without delay is DiLoCo as its paper writes it."""

from collections.abc import Callable
from typing import Any

import pytest
import torch

from muloco_runner.config import (
    ExecutionConfig,
    OuterSgdConfig,
    QuantisationConfig,
    RunConfig,
    StreamingConfig,
)
from muloco_runner.data.corpus import load_corpus
from muloco_runner.diloco.flat import flatten
from muloco_runner.diloco.method import DiLoCo, build_method
from muloco_runner.diloco.streaming import FragmentSchedule, split_by_layers
from muloco_runner.diloco.worker import Worker
from muloco_runner.distributed.communicator import Communicator
from muloco_runner.distributed.topology import Topology
from muloco_runner.model.transformer import build_model
from muloco_runner.record import RunFolder
from muloco_runner.training.loop import Trainer
from muloco_runner.training.session import Session

CPU = torch.device("cpu")
MakeRun = Callable[..., RunConfig]
MakeFolder = Callable[..., RunFolder]


def streaming_run(tiny_run: MakeRun, num_steps: int = 60, **changes: Any) -> RunConfig:
    return tiny_run("diloco", "muon", num_steps=num_steps, **{"num_workers": 2, "sync_interval": 6, **changes})


def workers_of(run: RunConfig) -> list[Worker]:
    models = [build_model(run.model, run.seed, CPU) for _ in range(run.num_workers)]
    return [Worker(i, m, torch.optim.SGD(m.parameters()), list(m.parameters())) for i, m in enumerate(models)]


def walk(workers: list[Worker], step: int) -> None:
    """Something to share: each worker's parameters move by amounts of their own."""
    with torch.no_grad():
        for worker in workers:
            generator = torch.Generator().manual_seed(1000 * step + worker.index)
            for tensor in worker.tensors:
                tensor.add_(0.01 * torch.randn(tensor.shape, generator=generator))


def test_one_fragment_without_delay_is_diloco_to_the_bit(tiny_run: MakeRun) -> None:
    outer = OuterSgdConfig(lr=0.7, momentum=0.8)
    run = streaming_run(tiny_run, num_workers=3, outer_optimizer=outer, num_steps=20, global_batch_tokens=288)
    workers, plain = workers_of(run), workers_of(run)
    method = build_method(run, workers, Communicator(Topology(3)))
    # The algorithm as its paper has it, tensor by tensor.
    anchors = [tensor.detach().clone() for tensor in plain[0].tensors]
    velocities = [torch.zeros_like(anchor) for anchor in anchors]
    for step in range(1, 21):
        walk(workers, step)
        walk(plain, step)
        method.after_inner_step(step)
        if step % 6 == 0 or step == 20:
            for place, anchor in enumerate(anchors):
                deltas = [anchor - worker.tensors[place].detach() for worker in plain]
                delta = (deltas[0] + deltas[1] + deltas[2]) / 3
                velocities[place] = 0.8 * velocities[place] + 0.7 * delta
                anchors[place] = anchor - 0.8 * velocities[place] - 0.7 * delta
                for worker in plain:
                    worker.tensors[place].data.copy_(anchors[place])
        for worker, other in zip(workers, plain, strict=True):
            assert torch.equal(flatten(worker.tensors), flatten(other.tensors)), step
    assert torch.equal(flatten(method.synchronised_parameters()), flatten(anchors))


@pytest.mark.parametrize(("num_fragments", "sync_interval", "delay"), [(1, 6, 0), (2, 6, 0), (2, 7, 3), (2, 30, 29)])
def test_each_parameter_is_shared_exactly_once_in_h_steps(
    num_fragments: int, sync_interval: int, delay: int, tiny_run: MakeRun
) -> None:
    streaming = StreamingConfig(num_fragments, delay)
    run = streaming_run(tiny_run, num_steps=100, num_workers=1, sync_interval=sync_interval, streaming=streaming)
    workers = workers_of(run)
    method = build_method(run, workers, Communicator(Topology(1)))
    moved: list[list[int]] = [[] for _ in workers[0].tensors]
    for step in range(1, 100):
        walk(workers, step)
        before = [tensor.clone() for tensor in method.synchronised_parameters()]
        method.after_inner_step(step)
        for place, (old, new) in enumerate(zip(before, method.synchronised_parameters(), strict=True)):
            if not torch.equal(old, new):
                moved[place].append(step)
    for steps in moved:
        first = steps[0] - delay
        assert 1 <= first <= sync_interval
        assert steps == list(range(first + delay, 100, sync_interval))
    assert len({steps[0] for steps in moved}) == num_fragments
    # The last step of a budget brings everything together, wherever each fragment stands.
    walk(workers, 100)
    before = [tensor.clone() for tensor in method.synchronised_parameters()]
    method.after_inner_step(100)
    assert torch.equal(flatten(method.synchronised_parameters()), flatten(workers[0].tensors))
    assert not any(torch.equal(a, b) for a, b in zip(before, method.synchronised_parameters(), strict=True))


def test_the_study_s_offsets_and_fragments_by_layers() -> None:
    schedules = [FragmentSchedule(number, 3, 30, 0) for number in range(3)]
    assert [[step for step in range(1, 91) if s.starts(step)] for s in schedules] == [
        [10, 40, 70],
        [20, 50, 80],
        [30, 60, 90],
    ]
    names = ["embedding.weight", *(f"blocks.{n}.wq" for n in range(6)), "norm.gain", "head.weight"]
    assert split_by_layers(names, 6, 3) == [[0, 1, 2], [3, 4], [5, 6, 7, 8]]
    names = [f"blocks.{n}.wq" for n in range(7)]
    assert [len(places) for places in split_by_layers(names, 7, 3)] == [3, 2, 2]


@pytest.mark.parametrize("delay", range(5))
@pytest.mark.parametrize("number", range(3))
def test_an_exchange_is_pending_from_its_start_to_its_completion(number: int, delay: int) -> None:
    schedule = FragmentSchedule(number, 3, 7, delay)
    pending = False
    for step in range(1, 40):
        if schedule.starts(step):
            pending = True
        if schedule.completes(step):
            assert pending
            pending = False
        assert schedule.is_pending(step) == pending


def test_a_delayed_fragment_is_what_was_sent_and_keeps_its_share(tiny_run: MakeRun) -> None:
    averaging = OuterSgdConfig(lr=1.0, momentum=0.0)
    run = streaming_run(
        tiny_run, sync_interval=6, outer_optimizer=averaging, streaming=StreamingConfig(1, 2, 0.25), num_steps=20
    )
    workers = workers_of(run)
    method = build_method(run, workers, Communicator(Topology(2)))
    for step in range(1, 9):
        walk(workers, step)
        if step == 6:
            sent = torch.stack([flatten(worker.tensors) for worker in workers]).mean(dim=0)
        own = [flatten(worker.tensors) for worker in workers]
        outer = method.after_inner_step(step)
        assert (outer is not None) == (step == 8)
    torch.testing.assert_close(flatten(method.synchronised_parameters()), sent, rtol=1e-5, atol=1e-6)
    for worker, before in zip(workers, own, strict=True):
        torch.testing.assert_close(flatten(worker.tensors), 0.75 * sent + 0.25 * before, rtol=1e-5, atol=1e-6)


def test_nothing_is_pending_after_a_runs_last_step(tiny_run: MakeRun) -> None:
    run = streaming_run(tiny_run, num_steps=7, streaming=StreamingConfig(1, 2))
    workers = workers_of(run)
    method = build_method(run, workers, Communicator(Topology(2)))
    for step in range(1, 8):  # the exchange of step 6 would end after step 8
        walk(workers, step)
        method.after_inner_step(step)
    resumed = build_method(run, workers_of(run), Communicator(Topology(2)))
    resumed.load_state_dict(method.state_dict(), 7, method.outer_numbers)
    assert torch.equal(flatten(resumed.synchronised_parameters()), flatten(method.synchronised_parameters()))


@pytest.mark.parametrize("stop_at", [7, 11, 12])  # an exchange pending; none; one that has just started
def test_a_resumed_run_with_everything_on_equals_the_other(
    stop_at: int, tiny_run: MakeRun, new_folder: MakeFolder
) -> None:
    run = streaming_run(
        tiny_run, num_steps=23, streaming=StreamingConfig(2, 2, 0.1), compression=QuantisationConfig(bits=2)
    )
    execution = ExecutionConfig(device="cpu", log_interval_steps=1)

    def trainer_of(folder: RunFolder, **session: Any) -> Trainer:
        communicator = Communicator(Topology(run.num_workers))
        return Trainer(run, load_corpus(run.data), Session(folder, execution, communicator, CPU, **session))

    whole, cut = new_folder(run, "whole"), new_folder(run, "cut")
    expected = trainer_of(whole).train()
    first = trainer_of(cut, should_stop=lambda: first.state.step >= stop_at)
    assert first.train() is None
    assert isinstance(first.method, DiLoCo)
    assert bool(first.method._pending) == (stop_at != 11)
    result = trainer_of(cut, attempt=2).train()
    assert expected is not None
    assert result is not None
    assert (result.validation_loss, result.train_loss) == (expected.validation_loss, expected.train_loss)
    assert result.bytes_sent == expected.bytes_sent
    assert [s.loss for s in cut.read_steps()] == [s.loss for s in whole.read_steps()]
