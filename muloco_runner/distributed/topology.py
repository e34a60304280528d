"""Which ranks train which workers: K workers, each a data-parallel group of replicas, on the ranks there are.

Fewer ranks than workers: each rank holds several (virtual) workers and trains them in turn. More ranks than workers:
each worker is a group of replicas that share its batch.
"""

from __future__ import annotations

from dataclasses import dataclass

from muloco_runner.config import ConfigError, RunConfig


@dataclass(frozen=True)
class Topology:
    """This rank's number and part among `num_ranks` ranks that train `num_workers` workers (K).

    Ranks are numbered node by node; `ranks_per_node` is None where nodes have different numbers of them.
    """

    num_workers: int
    rank: int = 0
    num_ranks: int = 1
    ranks_per_node: int | None = None

    def __post_init__(self) -> None:
        if self.num_workers % self.num_ranks and self.num_ranks % self.num_workers:
            raise ConfigError(
                f"{self.num_ranks} ranks cannot share {self.num_workers} workers evenly: "
                f"use a divisor or a multiple of {self.num_workers} ranks"
            )

    @property
    def replicas(self) -> int:
        """The number of ranks that train one worker."""
        return max(1, self.num_ranks // self.num_workers)

    @property
    def replica(self) -> int:
        """This rank's number among the replicas of its worker."""
        return self.rank % self.replicas

    @property
    def local_workers(self) -> range:
        """The workers this rank trains."""
        if self.num_ranks >= self.num_workers:
            worker = self.rank // self.replicas
            return range(worker, worker + 1)
        count = self.num_workers // self.num_ranks
        return range(self.rank * count, (self.rank + 1) * count)

    @property
    def is_main(self) -> bool:
        """Whether this is the one rank that writes the run's records."""
        return self.rank == 0

    def check(self, run: RunConfig) -> None:
        """Raise `ConfigError` where a worker's batch does not split over its replicas."""
        if run.worker_batch_sequences % self.replicas:
            raise ConfigError(
                f"a worker batch of {run.worker_batch_sequences} sequences does not split over {self.replicas} ranks: "
                "use fewer ranks or a larger global_batch_tokens"
            )
