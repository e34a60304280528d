"""How workers share what they learn: `DataParallel`, and `DiLoCo` with its outer step.

The training loop names no algorithm: it averages gradients over a worker's replicas, steps its inner optimizer, and
lets `DistributedMethod.after_inner_step` do the rest. A method holds the synchronised model, the one that is evaluated.
DiLoCo is made of fragments; compressors and outer optimizers are composed into them.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from muloco_runner.config import (
    DiLoCoConfig,
    LossyCompressionConfig,
    OuterMuonConfig,
    OuterOptimizerConfig,
    QuantisationConfig,
    RunConfig,
)
from muloco_runner.diloco.compression import Compressor, choose_codecs, writes_rows_apart
from muloco_runner.diloco.exchange import Exchange
from muloco_runner.diloco.flat import copy_into, flatten
from muloco_runner.diloco.outer_optimizer import OuterMuon, OuterOptimizer, OuterSgd
from muloco_runner.diloco.streaming import Arrival, Fragment, FragmentSchedule, split_by_layers
from muloco_runner.diloco.worker import Worker
from muloco_runner.distributed.row_shards import WholeTensors
from muloco_runner.distributed.topology import Communicator
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
    """By formula: bytes that one worker has handed to the others, or one replica to the average, wherever its copies
    are; replicas that hold rows write headers of their own. What a rank really sends is counted by `Traffic`."""

    has_local_models: bool
    """Whether workers' own parameters differ from the synchronised model between outer steps."""

    def after_inner_step(self, step: int) -> OuterStep | None:
        """Called when `step` inner steps (from 1) are complete; the last word of a run is a synchronised model."""

    def synchronised_parameters(self) -> list[Tensor]:
        """The model as all workers last agreed on it: tensors like `Worker.tensors`, which may be those themselves."""

    def state_dict(self) -> dict[str, list[Tensor]]:
        """What all workers share: lists of tensors like `Worker.tensors`."""

    def load_state_dict(self, state: dict[str, list[Tensor]], step: int) -> None:
        """Continues after `step` inner steps."""

    def worker_state(self, row: int) -> dict[str, list[Tensor]]:
        """What belongs to one of the workers held here, in their order: lists of tensors like `Worker.tensors`."""

    def load_worker_state(self, row: int, state: dict[str, list[Tensor]]) -> None: ...


class DataParallel:
    """Every replica holds the same parameters after every step, so there is nothing left to do."""

    has_local_models = False

    def __init__(self, worker: Worker) -> None:
        self.worker = worker
        self.bytes_sent = 0
        self._gradient_bytes = sum(p.numel() * p.element_size() for p in worker.model.parameters())

    def after_inner_step(self, step: int) -> OuterStep | None:
        self.bytes_sent += self._gradient_bytes
        return None

    def synchronised_parameters(self) -> list[Tensor]:
        return [parameter.detach() for parameter in self.worker.tensors]

    def state_dict(self) -> dict[str, list[Tensor]]:
        return {}

    def load_state_dict(self, state: dict[str, list[Tensor]], step: int) -> None:
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
        self._pending: dict[int, Future[Arrival]] = {}
        """Exchanges that have begun, by the fragment's number."""
        self._background = ThreadPoolExecutor(1, "exchange") if fragments[0].schedule.delay_steps else None

    def after_inner_step(self, step: int) -> OuterStep | None:
        last = step == self.num_steps
        arrivals = []
        for number, fragment in enumerate(self.fragments):
            # A budget that H does not divide ends with an exchange too: what was learnt last belongs to the result.
            arriving = number in self._pending and (last or fragment.schedule.arrives(step))
            if not arriving and (last or fragment.schedule.leaves(step)):
                self._pending[number] = self._begin(fragment)
                self.bytes_sent += self._payload_bytes[number]
                arriving = last or fragment.schedule.arrives(step)
            if arriving:
                arrivals.append(self._complete(number))
        return self._summary(arrivals) if arrivals else None

    def _begin(self, fragment: Fragment) -> Future[Arrival]:
        """Pseudogradients as of now on their way to their mean."""
        deltas = fragment.pseudogradients()
        if self._background is not None:
            return self._background.submit(fragment.average_beside_training, deltas)
        done: Future[Arrival] = Future()
        done.set_result(fragment.average(deltas))
        return done

    def _complete(self, number: int) -> Arrival:
        """Waits for a fragment's mean and takes the outer step."""
        began, future = time.perf_counter(), self._pending.pop(number)
        arrival = future.result()
        if self._background is not None:
            self.communicator.traffic.wait(time.perf_counter() - began)
        self.fragments[number].take(arrival.mean, self.mixing)
        return arrival

    def _of_all_shards(self, number: int) -> int:
        return int(self.communicator.sum_over_shards(torch.tensor(number)))

    def _summary(self, arrivals: Sequence[Arrival]) -> OuterStep:
        squares = sum((arrival.mean.square().sum() for arrival in arrivals), torch.zeros(()))
        norm = float(self.communicator.sum_over_shards(squares).sqrt())
        products = [arrival.products_KK for arrival in arrivals if arrival.products_KK is not None]
        if not products or len(products[0]) < 2:
            return OuterStep(norm, None)
        return OuterStep(norm, _mean_cosine(self.communicator.sum_over_shards(torch.stack(products).sum(dim=0))))

    def synchronised_parameters(self) -> list[Tensor]:
        return self._by_parameter([fragment.anchor for fragment in self.fragments])

    def state_dict(self) -> dict[str, list[Tensor]]:
        """Waits for what is on its way; the mean of such a fragment is kept as `arriving`."""
        state = {
            "anchor": self.synchronised_parameters(),
            "velocity": self._by_parameter([fragment.optimizer.velocity for fragment in self.fragments]),
        }
        if self._pending:
            means = {number: future.result().mean for number, future in self._pending.items()}
            zeros = [torch.zeros_like(fragment.anchor) for fragment in self.fragments]
            state["arriving"] = self._by_parameter([means.get(number, zero) for number, zero in enumerate(zeros)])
        return state

    def load_state_dict(self, state: dict[str, list[Tensor]], step: int) -> None:
        for number, fragment in enumerate(self.fragments):
            copy_into(fragment.views(fragment.anchor), flatten(self._of_fragment(state["anchor"], fragment)))
            velocity = fragment.views(fragment.optimizer.velocity)
            copy_into(velocity, flatten(self._of_fragment(state["velocity"], fragment)))
            if fragment.schedule.on_its_way(step):
                self._pending[number] = Future()
                mean = flatten(self._of_fragment(state["arriving"], fragment)).to(fragment.anchor)
                self._pending[number].set_result(Arrival(mean, None))

    def worker_state(self, row: int) -> dict[str, list[Tensor]]:
        """The error memory, where there is one, after what is on its way."""
        for future in self._pending.values():
            future.result()
        errors = [fragment.compressors[row].error for fragment in self.fragments]
        kept = [error for error in errors if error is not None]
        return {"error": self._by_parameter(kept)} if kept else {}

    def load_worker_state(self, row: int, state: dict[str, list[Tensor]]) -> None:
        for fragment in self.fragments:
            error = fragment.compressors[row].error
            if error is not None:
                copy_into(fragment.views(error), flatten(self._of_fragment(state["error"], fragment)))

    def _by_parameter(self, flats: Sequence[Tensor]) -> list[Tensor]:
        """Views of one flat tensor a fragment, in the order of `Worker.tensors`."""
        placed: dict[int, Tensor] = {}
        for fragment, flat in zip(self.fragments, flats, strict=True):
            placed.update(zip(fragment.places, fragment.views(flat), strict=True))
        return [placed[place] for place in range(len(placed))]

    def _of_fragment(self, tensors: Sequence[Tensor], fragment: Fragment) -> list[Tensor]:
        return [tensors[place] for place in fragment.places]


def _mean_cosine(products_KK: Tensor) -> float:
    """Over all pairs of workers, from the dot products between what they sent."""
    count = len(products_KK)
    norms = products_KK.diag().sqrt().clamp_min(1e-30)
    cosines = products_KK / norms / norms[:, None]
    return (float(cosines.sum()) - float(cosines.trace())) / (count * (count - 1))


def build_method(
    run: RunConfig, workers: list[Worker], communicator: Communicator, muon_backend: str = "auto"
) -> DistributedMethod:
    """The method that `run.method` names, over the workers of this rank."""
    if isinstance(run.method, DiLoCoConfig):
        return _build_diloco(run, run.method, workers, communicator, muon_backend)
    (worker,) = workers
    return DataParallel(worker)


def _build_diloco(
    run: RunConfig, config: DiLoCoConfig, workers: list[Worker], communicator: Communicator, muon_backend: str
) -> DiLoCo:
    streaming, compression = config.streaming, config.compression
    names = [name for name, _ in workers[0].model.named_parameters()]
    codecs = choose_codecs(compression, workers[0].model)
    error_feedback = compression.error_feedback if isinstance(compression, LossyCompressionConfig) else None
    # Where nothing is lost, the way of fewer bytes has the same result.
    reduce_scatter = compression.name == "none" or (
        isinstance(compression, QuantisationConfig) and compression.exchange == "reduce_scatter"
    )
    exchanging = communicator.in_background() if streaming.delay_steps else communicator
    fragments = []
    for number, places in enumerate(split_by_layers(names, run.model.num_layers, streaming.num_fragments)):
        tensors, own_codecs = [workers[0].tensors[place] for place in places], [codecs[place] for place in places]
        exchanged, wholes = tensors, None
        if communicator.sharded and not all(writes_rows_apart(codec) for codec in own_codecs):
            wholes = WholeTensors(tensors, exchanging)
            exchanged, own_codecs = wholes.empty(), [own_codecs[place] for place in wholes.owned]
        flat = flatten(tensors)
        fragments.append(
            Fragment(
                places,
                workers,
                FragmentSchedule(number, streaming.num_fragments, config.sync_interval, streaming.delay_steps),
                _outer_optimizer(config.outer_optimizer, workers[0], places, communicator, muon_backend),
                [Compressor(own_codecs, error_feedback, flat) for _ in workers],
                Exchange(exchanged, own_codecs, reduce_scatter, exchanging, flat.device),
                wholes,
            )
        )
    return DiLoCo(workers, fragments, run.num_steps, communicator, streaming.mixing)


def _outer_optimizer(
    config: OuterOptimizerConfig, worker: Worker, places: Sequence[int], communicator: Communicator, backend: str
) -> OuterOptimizer:
    tensors = [worker.tensors[place] for place in places]
    if not isinstance(config, OuterMuonConfig):
        return OuterSgd(config, flatten(tensors))
    parameters = list(worker.model.parameters())
    hidden = {
        id(p) for group in parameter_groups(worker.model) if group["algorithm"] == "muon" for p in group["params"]
    }
    matrices = [number for number, place in enumerate(places) if id(parameters[place]) in hidden]
    wholes = WholeTensors([tensors[number] for number in matrices], communicator) if communicator.sharded else None
    return OuterMuon(config, flatten(tensors), tensors, matrices, backend, wholes)
