"""How a run is spread over ranks and computed there."""

from __future__ import annotations

from dataclasses import dataclass

from muloco_runner.config import RunConfig


@dataclass(frozen=True)
class Placement:
    """How a run is spread and computed; none of it changes its result."""

    num_ranks: int = 1
    sharded: bool = False
    copies: int = 1
    """Groups of a worker's ranks that each hold all rows, where it is sharded (hybrid sharding)."""
    recompute: bool = False
    micro_batch_sequences: int = 1
    device: str = "cuda"
    """cpu or cuda."""
    ordered: bool = False
    """Whether micro-batches are summed in one order (`ExecutionConfig.reduction`)."""
    most_chunk: int = 0
    """Tokens whose logits may exist at once, where that is more than `chunk_tokens`."""

    def replicas(self, run: RunConfig) -> int:
        """Ranks that share one worker."""
        return max(1, self.num_ranks // run.num_workers)

    def workers(self, run: RunConfig) -> int:
        """How many of the K one rank holds."""
        return max(1, run.num_workers // self.num_ranks)

    def describe(self, run: RunConfig) -> str:
        """How a rank holds the model."""
        rows = "rows" if self.copies == 1 else f"rows, {self.copies} copies"
        held = rows if self.sharded else "copy" if self.replicas(run) > 1 else "full"
        return held + (", recomputing" if self.recompute else "")
