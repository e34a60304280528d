"""What one rank holds of a run, in numbers that several phases share."""

from __future__ import annotations

from muloco_runner.config import RunConfig
from muloco_runner.memory.placement import Placement


class Rank:
    """Numbers of one rank that several phases share."""

    def __init__(self, run: RunConfig, placement: Placement) -> None:
        self.run, self.placement, self.model = run, placement, run.model
        self.workers, self.replicas = placement.workers(run), placement.replicas(run)
        self.sharded = placement.sharded and self.replicas > 1
        self.on_cpu = placement.device == "cpu"
        self.shards = self.replicas // placement.copies if self.sharded else 1
        """Ranks among which the rows of one copy are shared."""
        parts = self.shards
        values = [(-(-s.rows // parts) * s.columns * s.number, s.hidden) for s in run.model.shapes]
        self.held = sum(number for number, _ in values)
        """Values of one worker's model that the rank holds."""
        self.matrices = sum(number for number, hidden in values if hidden)
        self.block = run.model.num_hidden_params // run.model.num_layers
        """Values of all matrices of a layer."""
        self.staged = 1 if self.on_cpu else 0
        """Copies that gloo makes of what it gathers or sums; NCCL makes none."""
        copies = self.replicas > 1 and not self.sharded
        self.shares_matrices = copies and run.inner_optimizer.shares_matrices
        """Whether copies share the work on matrices: then a matrix's gradient is its owner's alone."""
        self.has_buckets = copies and not placement.ordered and not self.shares_matrices
        """torch's DDP keeps gradients where they are averaged, from the first step to the last."""
        own = -(-self.matrices // self.replicas) if self.shares_matrices else self.matrices
        self.summed = self.held - self.matrices + own
        """Values whose gradient the rank has once the replicas' have been summed."""
