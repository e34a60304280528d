"""How and where a run is carried out."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import Any, Literal, get_args

from muloco_runner.config.checks import require, require_choice, require_positive
from muloco_runner.config.keep import Keep, read_keep

MuonBackend = Literal["auto", "reference", "cpu", "triton", "triton_bfloat16"]
AttentionKernel = Literal["auto", "sdpa", "flex"]
Sharding = Literal["auto", "none", "hybrid", "full"]
WandbMode = Literal["auto", "online", "offline"]
Reduction = Literal["auto", "ordered", "overlapped"]


@dataclass
class ExecutionConfig:
    """How and where a run is carried out. None of it may change the result, so none of it is in `run_id`."""

    device: str = "auto"
    """auto (a GPU where there is one), cpu or cuda."""
    micro_batch_sequences: int | None = None
    """Sequences in one forward pass; None chooses the largest that fits."""
    memory_halvings: int = 0
    """How often the chosen micro-batch is halved: set by a sweep after an attempt ran out of memory."""
    muon_backend: str = "auto"
    """Which code orthogonalises: auto (the fastest for the device and shape), reference, cpu, triton (Hopper GPUs, in
    float16) or triton_bfloat16. They differ by less than two seeds do."""
    attention: str = "auto"
    """sdpa; flex, which skips what the document mask leaves empty; auto: flex on a GPU."""
    compile: bool | None = None
    """Whether transformer blocks are compiled; null: on a GPU."""
    activation_checkpointing: bool | None = None
    """Whether a block's activations are computed again in the backward pass; null: where they would not fit."""
    sharding: str = "auto"
    """none: each replica of a worker holds the full model; full: each holds rows of every parameter (FSDP), gathered
    block by block; hybrid: rows within a node, copies across the nodes of a worker, so that blocks are not gathered
    over the slower network; auto: the first of none, hybrid and full that fits."""
    reduction: str = "auto"
    """ordered: a worker's gradient is a pairwise sum of its micro-batches' in one fixed order, the same on any number
    of replicas; overlapped: they accumulate as they come and replicas average while still computing (DDP, or to the
    owners of Muon's matrices); auto: ordered on a CPU."""
    wandb_project: str | None = None
    """Weights & Biases project that receives the records too, under the run_id."""
    wandb_mode: str = "auto"
    """offline: kept in the run's folder, and sent by the sweep's controller once an attempt has ended (nodes without
    internet); online; auto: online where there is a key, else kept in the folder."""
    wandb_group: str | None = None
    """Group of the run there; null: the sweep's name, or its algorithm where it is trained by itself."""
    tensorboard: bool = False
    """Whether TensorBoard's files of the records are written too, to `tensorboard` in the run's folder."""
    profile: list[int] | None = None
    """First and last step of a trace by torch's profiler, such as [20,25]; each rank's goes to its attempt's folder, as
    `trace-RANK.json`. Null for none."""
    log_interval_steps: int = 10
    evaluate_interval_steps: int | None = None
    """Steps between evaluations on the held-out set; None evaluates at the end only."""
    checkpoint_interval_seconds: float = 300.0
    keep: Any = None
    """Checkpoints that stay once the run has ended. none; final: its last state; best: the one of the lowest validation
    loss, of those at `evaluate_interval_steps`; last_N: the newest N; a list of steps, such as [1000,2000], after which
    one is written; best_of_sweep: final, and when its sweep is over only the best run's of each series and size. null:
    final for a run trained by itself, none in a sweep, where hundreds of large models would fill a disk."""
    branch_steps: list[int] | None = None
    """Steps whose checkpoints stay besides: set by a sweep, whose branches go on from them."""
    final_checkpoint: bool | None = None
    """The earlier name of two values of `keep`: true is final, false none."""
    wall_minutes: float | None = None
    """Minutes from its start after which an attempt checkpoints and asks for more time; None for no deadline."""
    link_megabits_per_second: float | None = None
    """Emulated link of each rank: what it sends or receives takes at least as long as on a link of this bandwidth, each
    way. None for the network as it is. Between CPUs alone."""
    link_latency_milliseconds: float = 0.0
    """Emulated time of a bit from rank to rank, added once to each message: twice to an all-reduce."""

    def __post_init__(self) -> None:
        self._check_keep()
        require(
            self.profile is None or (len(self.profile) == 2 and 1 <= self.profile[0] <= self.profile[1]),
            f"execution.profile={self.profile}: must be the first and the last step of a trace, such as [20,25]",
        )
        require_choice("execution.device", self.device, ("auto", "cpu", "cuda"))
        require_choice("execution.muon_backend", self.muon_backend, get_args(MuonBackend))
        require_choice("execution.attention", self.attention, get_args(AttentionKernel))
        require_choice("execution.sharding", self.sharding, get_args(Sharding))
        require_choice("execution.wandb_mode", self.wandb_mode, get_args(WandbMode))
        require(
            self.wandb_project is not None or (self.wandb_mode == "auto" and self.wandb_group is None),
            "execution.wandb_mode and wandb_group have no effect without execution.wandb_project: name a project",
        )
        require_choice("execution.reduction", self.reduction, get_args(Reduction))
        require_positive(
            "execution",
            log_interval_steps=self.log_interval_steps,
            checkpoint_interval_seconds=self.checkpoint_interval_seconds,
        )
        require(
            math.isfinite(self.link_latency_milliseconds) and self.link_latency_milliseconds >= 0,
            f"execution.link_latency_milliseconds={self.link_latency_milliseconds}: must be zero or positive",
        )
        require(
            self.memory_halvings >= 0,
            f"execution.memory_halvings={self.memory_halvings}: must be zero or positive",
        )
        optional = ("micro_batch_sequences", "evaluate_interval_steps", "wall_minutes", "link_megabits_per_second")
        for name in optional:
            value = getattr(self, name)
            require(value is None or value > 0, f"execution.{name}={value}: must be a positive number or null")

    @property
    def keeps(self) -> Keep:
        """What `keep`, `final_checkpoint` and `branch_steps` ask for."""
        if self.keep is None:
            keep = Keep("none" if self.final_checkpoint is False else "final")
        else:
            keep = read_keep(self.keep)
        return replace(keep, steps=tuple(sorted({*keep.steps, *(self.branch_steps or ())})))

    def check(self, num_steps: int) -> None:
        """Steps of `keep` and `profile` that a run of so many does not reach raise `ConfigError`."""
        self.keeps.check(num_steps)
        require(
            self.profile is None or self.profile[0] <= num_steps,
            f"execution.profile={self.profile}: begins beyond the end of a run of {num_steps} steps: give earlier ones",
        )

    def _check_keep(self) -> None:
        require(
            self.keep is None or self.final_checkpoint is None,
            f"execution.keep={self.keep} and execution.final_checkpoint={self.final_checkpoint}: leave the second out, "
            "it is the earlier name of the first",
        )
        require(
            self.keeps.kind != "best" or self.evaluate_interval_steps is not None,
            "execution.keep=best chooses among evaluations, and there is one at the end alone: set "
            "execution.evaluate_interval_steps, or say final",
        )

    def sums_in_order(self, device_type: str) -> bool:
        """Whether gradients are summed in one fixed order there."""
        return device_type == "cpu" if self.reduction == "auto" else self.reduction == "ordered"
