"""How many GPUs a training run gets, and how it lies in their memory, by the trainer's own estimate.

Left to choose, it is the number that the published study would take, or the smallest one above it that the run fits.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from muloco_runner.config import ConfigError, ExecutionConfig, RunConfig
from muloco_runner.memory import MemoryEstimate, Placement, estimate_memory, usable_bytes
from muloco_runner.memory.choose import choose_placement, copies_across_nodes
from sweeps.engine.cluster_config import AllocationConfig, ClusterConfig
from sweeps.formatting import plural

_MOST = 512


@dataclass(frozen=True)
class Fit:
    """One run on some GPUs."""

    placement: Placement
    estimate: MemoryEstimate
    gpu_bytes: int
    """Memory of one GPU."""
    description: str
    """How a GPU holds the model."""

    @property
    def fits(self) -> bool:
        return self.estimate.total <= usable_bytes(self.gpu_bytes)


class Gpus:
    """Chooses GPUs for the runs of one sweep on one cluster; runs of the same sizes are computed once."""

    def __init__(self, cluster: ClusterConfig, execution: ExecutionConfig) -> None:
        self.cluster, self.execution = cluster, execution
        with_gpus = [allocation for allocation in cluster.allocations if allocation.gpus_per_node]
        self.allocation: AllocationConfig | None = max(with_gpus, key=lambda a: a.gpus_per_node, default=None)
        """The one with most GPUs a node; None where runs have CPUs alone."""
        # A run may go wherever nodes have enough GPUs.
        self._bytes = round(1e9 * min((a.gpu_gigabytes for a in with_gpus), default=0))
        self._numbers: dict[Any, int] = {}
        self._fits: dict[Any, Fit] = {}
        if self.allocation is None and cluster.gpus_per_run != "auto":
            raise ConfigError(
                f"cluster.gpus_per_run={cluster.gpus_per_run}: the nodes of cluster {cluster.name} have no GPUs: "
                "use auto, or set gpus_per_node"
            )

    def number_of(self, run: RunConfig) -> int:
        """GPUs for the run. One that cannot fit raises `ConfigError`."""
        key = sizes_of(run)
        if key not in self._numbers:
            self._numbers[key] = self._choose(run)
        return self._numbers[key]

    def fit(self, run: RunConfig, number: int) -> Fit:
        """How the run lies on that many GPUs, whether it fits or not."""
        key = (number, sizes_of(run))
        if key not in self._fits:
            per_node = min(number, self._per_node) if self.allocation else number
            placement = choose_placement(run, self.execution, number, "cuda", self._bytes, per_node)
            estimate = estimate_memory(run, placement)
            self._fits[key] = Fit(placement, estimate, self._bytes, placement.describe(run))
        return self._fits[key]

    def _choose(self, run: RunConfig) -> int:
        possible = [number for number in range(1, _MOST + 1) if self._splits(run, number)]
        given = self.cluster.gpus_per_run
        if given == "auto":
            published = self._published_number(run)
            enough = max((number for number in possible if number <= published), default=published)
            found = next((n for n in possible if n >= enough and self.fit(run, n).fits), None)
            if found is None:
                raise self._too_large(run, possible[-1], None)
            return found
        number = int(given)
        if number not in possible:
            some = ", ".join(str(n) for n in possible[:8])
            raise ConfigError(
                f"cluster.gpus_per_run={number}: {_named(run)} does not split over so many: "
                f"{plural(run.num_workers, 'worker')} of {plural(run.worker_batch_sequences, 'sequence')} each, "
                f"nodes of {self._per_node}: use {some} or auto"
            )
        if not self.fit(run, number).fits:
            raise self._too_large(run, number, next((n for n in possible if self.fit(run, n).fits), None))
        return number

    def _too_large(self, run: RunConfig, number: int, smallest: int | None) -> ConfigError:
        has, usable = self._bytes / 1e9, usable_bytes(self._bytes) / 1e9
        what = (
            f"{_named(run)} does not fit {plural(number, 'GPU')} of {has:g} GB, {usable:.1f} of them for tensors: "
            f"it needs {self.fit(run, number).estimate.total / 1e9:.1f} GB on each"
        )
        if smallest is not None:
            return ConfigError(f"{what}; the smallest number that fits is cluster.gpus_per_run={smallest}")
        # The leanest placement was tried, as far as the settings leave the choice.
        return ConfigError(
            f"{what}, and no number up to {_MOST} fits: use a larger global_batch_tokens, which splits "
            "further, leave execution.sharding, activation_checkpointing and micro_batch_sequences to be chosen, or "
            "correct gpu_gigabytes in the cluster's file"
        )

    @property
    def _per_node(self) -> int:
        assert self.allocation is not None
        return self.allocation.gpus_per_node

    def _published_number(self, run: RunConfig) -> int:
        """The published study's: small models on one GPU, from 1b on whole nodes."""
        size = run.num_params
        wanted = 1 if size < 3e8 else 4 if size < 7e8 else self._per_node if size < 8e9 else 64
        return min(wanted, 8 * self._per_node)

    def _splits(self, run: RunConfig, number: int) -> bool:
        """Whether K workers share so many GPUs evenly, their batch splits over them, and they fill nodes."""
        workers, per_node = run.num_workers, self._per_node
        if number % workers and workers % number:
            return False
        replicas = max(1, number // workers)
        is_hybrid = self.execution.sharding == "hybrid" and replicas > 1
        if is_hybrid and copies_across_nodes(replicas, min(number, per_node)) is None:
            return False
        return run.worker_batch_sequences % replicas == 0 and (number <= per_node or number % per_node == 0)


def _named(run: RunConfig) -> str:
    return f"run {run.run_id} ({run.algorithm}, {run.num_params:,} parameters)"


def sizes_of(run: RunConfig) -> tuple[Any, ...]:
    """All of a run that its memory depends on, and more: learning rates of the outer step, say."""
    inner = run.inner_optimizer
    state = inner.name, inner.matrix_state_bytes, inner.other_state_bytes
    return repr(run.model), repr(run.method), state, run.worker_batch_sequences, run.precision
