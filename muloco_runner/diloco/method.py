"""How workers share what they learn: `DataParallel`, and `DiLoCo` with its outer step.

The training loop names no algorithm: it averages gradients over a worker's replicas, steps its inner optimizer, and
lets `DistributedMethod.after_inner_step` do the rest. A method holds the synchronised model, the one that is evaluated.
DiLoCo is made of fragments; compressors and outer optimizers are composed into them. A third method is in
`primal_averaging`.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor

from muloco_runner.config import DiLoCoConfig, RunConfig
from muloco_runner.config.variants import load
from muloco_runner.diloco.compression.row_ranges import writes_rows_apart
from muloco_runner.diloco.error_feedback import choose_codecs
from muloco_runner.diloco.exchange import Exchange
from muloco_runner.diloco.flat import copy_into, flatten
from muloco_runner.diloco.outer_optimizer import SharedTensors, build_outer_optimizer
from muloco_runner.diloco.streaming import CompletedExchange, Fragment, FragmentSchedule, split_by_layers
from muloco_runner.diloco.worker import Worker
from muloco_runner.distributed.communicator import Communicator
from muloco_runner.distributed.row_shards import FullTensors
from muloco_runner.optimizers.parameter_groups import parameter_groups


@dataclass
class OuterStep:
    """What an outer step leaves for the record."""

    pseudogradient_norm: float
    pseudogradient_cosine: float | None
    """Mean pairwise cosine between the workers' pseudogradients; None for one worker."""


class DistributedMethod(Protocol):
    """What the training loop asks of a method."""

    bytes_sent: int
    """Bytes, by formula, that one worker has handed to the others, or one replica to the average, wherever its copies
    are; replicas that hold rows write headers of their own. What a rank really sends is counted by `Traffic`."""

    has_local_models: bool
    """Whether workers' own parameters differ from the synchronised model between outer steps."""

    outer_steps: list[int]
    """Outer steps taken, by fragment; empty for a method without them. Checkpoints hold it beside `state_dict`."""

    @property
    def outer_numbers(self) -> list[list[dict[str, Any]]]:
        """What outer optimizers keep beside tensors, by fragment and tensor; checkpoints hold it too."""

    def updating(self, worker: Worker) -> AbstractContextManager[None]:
        """In which one of the local workers, whose gradient is there, takes the update of its inner optimizer."""

    def updated_tensors(self, worker: Worker) -> Sequence[Tensor]:
        """What the inner optimizer's update moves, like `Worker.tensors`, which they are unless a method averages."""

    def after_inner_step(self, step: int) -> OuterStep | None:
        """Called when `step` inner steps (from 1) are complete; a run ends with a synchronised model."""

    def synchronised_parameters(self) -> list[Tensor]:
        """The model as all workers last agreed on it: tensors like `Worker.tensors`, which may be those themselves."""

    def state_dict(self) -> dict[str, list[Tensor]]:
        """What all workers share: lists of tensors like `Worker.tensors`."""

    def load_state_dict(
        self, state: dict[str, list[Tensor]], step: int, outer_numbers: list[list[dict[str, Any]]]
    ) -> None:
        """Continues after `step` inner steps. `outer_numbers` may be empty."""

    def worker_state(self, row: int) -> dict[str, list[Tensor]]:
        """What belongs to one of the local workers, in their order: lists of tensors like `Worker.tensors`."""

    def load_worker_state(self, row: int, state: dict[str, list[Tensor]]) -> None: ...


class DataParallel:
    """Every replica holds the same parameters after every step, so there is nothing left to do."""

    has_local_models = False

    def __init__(self, worker: Worker) -> None:
        self.worker = worker
        self.bytes_sent = 0
        self.outer_steps: list[int] = []
        self.outer_numbers: list[list[dict[str, Any]]] = []
        self._gradient_bytes = sum(p.numel() * p.element_size() for p in worker.model.parameters())

    def updating(self, worker: Worker) -> AbstractContextManager[None]:
        return nullcontext()

    def updated_tensors(self, worker: Worker) -> Sequence[Tensor]:
        return worker.tensors

    def after_inner_step(self, step: int) -> OuterStep | None:
        self.bytes_sent += self._gradient_bytes
        return None

    def synchronised_parameters(self) -> list[Tensor]:
        return [parameter.detach() for parameter in self.worker.tensors]

    def state_dict(self) -> dict[str, list[Tensor]]:
        return {}

    def load_state_dict(
        self, state: dict[str, list[Tensor]], step: int, outer_numbers: list[list[dict[str, Any]]]
    ) -> None:
        assert not state

    def worker_state(self, row: int) -> dict[str, list[Tensor]]:
        return {}

    def load_worker_state(self, row: int, state: dict[str, list[Tensor]]) -> None:
        assert not state


class DiLoCo:
    """Workers train apart for H steps; then the mean of their pseudogradients moves the anchor they start from again.

    Inner optimizer state stays with its worker: never averaged, never reset. K = 1 runs the same code.
    """

    has_local_models = True

    def __init__(
        self,
        workers: list[Worker],
        fragments: list[Fragment],
        num_steps: int,
        communicator: Communicator,
        mixing: float = 0.0,
    ) -> None:
        self.workers, self.fragments, self.num_steps, self.mixing = workers, fragments, num_steps, mixing
        self.communicator = communicator
        self.bytes_sent = 0
        self._payload_bytes = [self._of_all_shards(fragment.exchange.payload_bytes) for fragment in fragments]
        self._pending: dict[int, Future[CompletedExchange]] = {}
        """Exchanges that have started, by the fragment's number."""
        self._background = ThreadPoolExecutor(1, "exchange") if fragments[0].schedule.delay_steps else None

    def updating(self, worker: Worker) -> AbstractContextManager[None]:
        return nullcontext()

    def updated_tensors(self, worker: Worker) -> Sequence[Tensor]:
        return worker.tensors

    def exchanges_after(self, step: int) -> bool:
        """Whether workers exchange something when `step` inner steps are complete."""
        return step == self.num_steps or any(fragment.schedule.starts(step) for fragment in self.fragments)

    def after_inner_step(self, step: int) -> OuterStep | None:
        last = step == self.num_steps
        completed = []
        for number, fragment in enumerate(self.fragments):
            # A budget that H does not divide ends with an exchange too: what was learnt last belongs to the result.
            completes = number in self._pending and (last or fragment.schedule.completes(step))
            if not completes and (last or fragment.schedule.starts(step)):
                self._pending[number] = self._start(fragment)
                self.bytes_sent += self._payload_bytes[number]
                completes = last or fragment.schedule.completes(step)
            if completes:
                completed.append(self._complete(number))
        return self._summary(completed) if completed else None

    def _start(self, fragment: Fragment) -> Future[CompletedExchange]:
        """Starts the exchange of the pseudogradients as of now."""
        deltas = fragment.pseudogradients()
        if self._background is not None:
            return self._background.submit(fragment.average_beside_training, deltas, fragment.record_ready())
        done: Future[CompletedExchange] = Future()
        done.set_result(fragment.average(deltas))
        return done

    def _complete(self, number: int) -> CompletedExchange:
        """Waits for a fragment's mean and takes the outer step."""
        started, future = time.perf_counter(), self._pending.pop(number)
        exchange = future.result()
        if self._background is not None:
            self.communicator.traffic.wait(time.perf_counter() - started)
        self.fragments[number].step(exchange.mean, self.mixing)
        return exchange

    def _of_all_shards(self, number: int) -> int:
        return int(self.communicator.sum_over_shards(torch.tensor(number)))

    def _summary(self, completed: Sequence[CompletedExchange]) -> OuterStep:
        squares = sum((exchange.mean.square().sum() for exchange in completed), torch.zeros(()))
        norm = float(self.communicator.sum_over_shards(squares).sqrt())
        products = [exchange.products_KK for exchange in completed if exchange.products_KK is not None]
        if not products or len(products[0]) < 2:
            return OuterStep(norm, None)
        return OuterStep(norm, _mean_cosine(self.communicator.sum_over_shards(torch.stack(products).sum(dim=0))))

    def synchronised_parameters(self) -> list[Tensor]:
        return self._by_parameter([fragment.anchor for fragment in self.fragments])

    @property
    def outer_steps(self) -> list[int]:
        return [fragment.outer_steps for fragment in self.fragments]

    @outer_steps.setter
    def outer_steps(self, numbers: list[int]) -> None:
        for fragment, number in zip(self.fragments, numbers, strict=True):
            fragment.outer_steps = number

    @property
    def outer_numbers(self) -> list[list[dict[str, Any]]]:
        return [fragment.optimizer.numbers for fragment in self.fragments]

    def state_dict(self) -> dict[str, list[Tensor]]:
        """Anchor and outer optimizer's state. Waits for pending exchanges; their means are kept as `arriving`."""
        state = {"anchor": self.synchronised_parameters()}
        kept = [fragment.optimizer.state for fragment in self.fragments]
        for name in {name: None for own in kept for name in own}:
            assert name not in _OF_THE_METHOD, name
            # One from outside keeps nothing before its first step.
            flats = [
                own[name] if name in own else torch.zeros_like(fragment.anchor)
                for fragment, own in zip(self.fragments, kept, strict=True)
            ]
            state[name] = self._by_parameter(flats)
        if self._pending:
            means = {number: future.result().mean for number, future in self._pending.items()}
            zeros = [torch.zeros_like(fragment.anchor) for fragment in self.fragments]
            state["arriving"] = self._by_parameter([means.get(number, zero) for number, zero in enumerate(zeros)])
        return state

    def load_state_dict(
        self, state: dict[str, list[Tensor]], step: int, outer_numbers: list[list[dict[str, Any]]]
    ) -> None:
        for number, fragment in enumerate(self.fragments):
            copy_into(fragment.views(fragment.anchor), flatten(self._of_fragment(state["anchor"], fragment)))
            kept = {n: flatten(self._of_fragment(t, fragment)) for n, t in state.items() if n not in _OF_THE_METHOD}
            fragment.optimizer.load(kept, outer_numbers[number] if outer_numbers else [])
            # The last step has completed all of them, whatever their delay.
            if step < self.num_steps and fragment.schedule.is_pending(step):
                self._pending[number] = Future()
                mean = flatten(self._of_fragment(state["arriving"], fragment)).to(fragment.anchor)
                self._pending[number].set_result(CompletedExchange(mean, None))

    def worker_state(self, row: int) -> dict[str, list[Tensor]]:
        """The error memory, where there is one, after pending exchanges."""
        for future in self._pending.values():
            future.result()
        errors = [fragment.errors[row] for fragment in self.fragments if fragment.errors]
        return {"error": self._by_parameter(errors)} if errors else {}

    def load_worker_state(self, row: int, state: dict[str, list[Tensor]]) -> None:
        for fragment in self.fragments:
            if fragment.errors:
                error = fragment.views(fragment.errors[row])
                copy_into(error, flatten(self._of_fragment(state["error"], fragment)))

    def _by_parameter(self, flats: Sequence[Tensor]) -> list[Tensor]:
        """Views of one flat tensor a fragment, in the order of `Worker.tensors`."""
        found: dict[int, Tensor] = {}
        for fragment, flat in zip(self.fragments, flats, strict=True):
            found.update(zip(fragment.indices, fragment.views(flat), strict=True))
        return [found[index] for index in range(len(found))]

    def _of_fragment(self, tensors: Sequence[Tensor], fragment: Fragment) -> list[Tensor]:
        return [tensors[index] for index in fragment.indices]


_OF_THE_METHOD = ("anchor", "arriving")
"""Names in a method's state that are no outer optimizer's."""


def _mean_cosine(products_KK: Tensor) -> float:
    """Over all pairs of workers, from the dot products between what they sent."""
    count = len(products_KK)
    norms = products_KK.diag().sqrt().clamp_min(1e-30)
    cosines = products_KK / norms / norms[:, None]
    return (float(cosines.sum()) - float(cosines.trace())) / (count * (count - 1))


def build_method(
    run: RunConfig, workers: list[Worker], communicator: Communicator, muon_backend: str = "auto"
) -> DistributedMethod:
    """The method that `run.method` describes, over the local workers."""
    method: DistributedMethod = load(run.method)(run, workers, communicator, muon_backend)
    return method


def build_data_parallel(
    run: RunConfig, workers: list[Worker], communicator: Communicator, muon_backend: str
) -> DataParallel:
    (worker,) = workers
    return DataParallel(worker)


def build_diloco(run: RunConfig, workers: list[Worker], communicator: Communicator, muon_backend: str) -> DiLoCo:
    config = run.method
    assert isinstance(config, DiLoCoConfig)
    streaming, first = config.streaming, workers[0]
    names = [name for name, _ in first.model.named_parameters()]
    codecs = choose_codecs(config.compression, first.model)
    exchanging = communicator.in_background() if streaming.delay_steps else communicator
    fragments = []
    for number, indices in enumerate(
        split_by_layers(names, run.model.num_layers, streaming.num_fragments, run.model.blocks)
    ):
        tensors, own_codecs = [first.tensors[index] for index in indices], [codecs[index] for index in indices]
        exchanged, full = tensors, None
        if communicator.sharded and not all(writes_rows_apart(codec) for codec in own_codecs):
            full = FullTensors.of(tensors, exchanging.among_shards)
            exchanged, own_codecs = full.empty(), [own_codecs[index] for index in full.owned]
        device = tensors[0].device
        shared = SharedTensors(tensors, _hidden_matrices(first, indices), communicator, muon_backend)
        fragments.append(
            Fragment(
                indices,
                workers,
                FragmentSchedule(number, streaming.num_fragments, config.sync_interval, streaming.delay_steps),
                build_outer_optimizer(config.outer_optimizer, shared),
                Exchange(exchanged, own_codecs, config.compression.reduces_and_scatters, exchanging, device),
                config.compression.error_feedback,
                full,
            )
        )
    return DiLoCo(workers, fragments, run.num_steps, communicator, streaming.mixing)


def _hidden_matrices(worker: Worker, indices: Sequence[int]) -> list[int]:
    """Which of the parameters of these indices Muon would update, by their order among them."""
    parameters = list(worker.model.parameters())
    hidden = {
        id(p) for group in parameter_groups(worker.model) if group["algorithm"] == "muon" for p in group["params"]
    }
    return [number for number, index in enumerate(indices) if id(parameters[index]) in hidden]
