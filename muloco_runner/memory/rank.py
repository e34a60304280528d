"""What one rank holds of a run, in numbers that several phases share."""

from __future__ import annotations

from muloco_runner.config import ModelConfig, RunConfig
from muloco_runner.memory.placement import Placement


class Rank:
    """Numbers of one rank that several phases share."""

    def __init__(self, run: RunConfig, placement: Placement) -> None:
        self.run, self.placement, self.model = run, placement, run.model
        self.workers, self.replicas = placement.workers(run), placement.replicas(run)
        self.sharded = placement.sharded and self.replicas > 1
        self.on_cpu = placement.device == "cpu"
        parts = self.replicas if self.sharded else 1
        self.held = sum(-(-rows // parts) * columns for rows, columns in shapes(run.model))
        """Values of one worker's model that the rank holds."""
        self.matrices = run.model.num_layers * sum(-(-r // parts) * c for r, c in block_matrices(run.model))
        self.block = sum(rows * columns for rows, columns in block_matrices(run.model))
        """Values of all matrices of a block."""
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


def block_matrices(model: ModelConfig) -> list[tuple[int, int]]:
    width, ffn = model.width, model.ffn_width
    return [(width, width)] * 4 + [(ffn, width)] * 2 + [(width, ffn)]


def shapes(model: ModelConfig) -> list[tuple[int, int]]:
    """Rows and columns of every parameter."""
    gains = [(model.width, 1)] * 4 + [(model.head_width, 1)] * 2
    block = block_matrices(model) + gains
    return [(model.vocab_size, model.width)] * 2 + block * model.num_layers + [(model.width, 1)]
