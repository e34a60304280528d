"""Muon's and AdamW's steps as Triton kernels that read and write the tensors where they lie.

Muon: one pass over gradient and momentum, one that normalises, the products, and the last product's epilogue writes
the weights. AdamW: one pass. All that changes from step to step is refreshed in `prepare`; `step` only launches
kernels, so that a graph may replay it. Triton launches on the current device: here that is always the tensors' own.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from muloco_runner.distributed.pending import PendingTransfers
from muloco_runner.muon_rule.conventions import shape_scale
from muloco_runner.muon_rule.matrix_view import MatrixView
from muloco_runner.muon_rule.polynomial import polynomial_of
from muloco_runner.optimizers.arena import Arena
from muloco_runner.optimizers.buckets.adamw import AdamWBucket
from muloco_runner.optimizers.buckets.base import Gradients, MatrixBucket
from muloco_runner.optimizers.orthogonalize import TRITON_DTYPES, choose_backend, matrices_at_once
from muloco_runner.optimizers.orthogonalize.triton import elementwise
from muloco_runner.optimizers.orthogonalize.triton.device_tables import Addresses
from muloco_runner.optimizers.orthogonalize.triton.hyper import BETA1, BETA2, HyperParameters
from muloco_runner.optimizers.orthogonalize.triton.workspace import TRITON_TYPES, Source, Workspace, workspace_bytes

ADAMW_BLOCK = 2048


def needed_workspace(parameters: Sequence[Tensor], backend: str, count: int) -> int:
    """Return the bytes that a bucket that works on `count` of these parameters needs of its arena."""
    rows, columns = parameters[0].shape
    chosen = choose_backend(backend, parameters[0].device)
    at_once = min(count, matrices_at_once(chosen, rows, columns))
    return workspace_bytes(at_once, rows, columns, TRITON_DTYPES[chosen])


class FusedMatrixBucket(MatrixBucket):
    """Full matrices on one GPU, and their Muon step in Triton kernels; or of some of them, that this rank owns, the
    orthogonalised updates."""

    scales_in_kernels = True

    def __init__(
        self, parameters: list[Tensor], backend: str, arena: Arena, owned: Sequence[int] | None = None
    ) -> None:
        super().__init__(parameters, MatrixView(1, *parameters[0].shape), backend, owned, arena)
        self.owned = list(self.position)
        count = len(self.owned)
        assert count
        self.at_once = min(count, matrices_at_once(self.backend, self.rows, self.columns))
        half = TRITON_DTYPES[self.backend]
        self.workspace = Workspace(self.at_once, self.rows, self.columns, half, self.device, arena)
        self.hyper = HyperParameters(self.device)
        # One a launch; the addresses of a launch begin at the start of a table, as compiled kernels want them.
        self.parts = [range(start, min(start + self.at_once, count)) for start in range(0, count, self.at_once)]
        self.weights = [Addresses(len(part), self.device) for part in self.parts]
        self.sources = [
            Source(
                Addresses(len(part), self.device),
                parameters[0].dtype,
                self.momentum_BRC[part.start : part.stop],
                self.hyper,
            )
            for part in self.parts
        ]

    def prepare(self, group: dict[str, Any], gradients: Gradients, clip: Tensor | None) -> None:
        # Those of matrices that another rank owns are not needed.
        self.gradients = [None] * len(self.parameters)
        for index in self.owned:
            gradient = gradients.get(self.parameters[index])
            self.gradients[index] = None if gradient is None else gradient.contiguous()
        self.hyper.fill(group, clip)
        for part, weights, source in zip(self.parts, self.weights, self.sources, strict=True):
            weights.point_to([self.parameters[self.owned[position]] for position in part])
            source.gradients.point_to([self.gradients[self.owned[position]] for position in part])
            source.nesterov = group["nesterov"]

    def static_arguments(self, group: dict[str, Any]) -> tuple[Any, ...]:
        names = ("nesterov", "coefficients", "num_iterations", "lr_scale", "epsilon", "norm_floor", "weight_decay_form")
        tables = [*self.weights, *(source.gradients for source in self.sources)]
        return (*(group[name] for name in names), *(table.aligned for table in tables))

    def step(self, group: dict[str, Any], pending: PendingTransfers) -> None:
        polynomial = polynomial_of(group)
        scale = shape_scale(group["lr_scale"], self.rows, self.columns)
        cautious = group["weight_decay_form"] == "cautious"
        with torch.cuda.device_of(self.parameters[0]):
            for part, weights, source in zip(self.parts, self.weights, self.sources, strict=True):
                self.workspace.batch = len(part)
                self.workspace.normalise(source, polynomial)
                p = self.workspace.run(polynomial.steps)
                self.workspace.finish_into(weights, self.parameters[0].dtype, source, p, scale, cautious)

    def write_orthogonal_updates(self, group: dict[str, Any], indices: Sequence[int], out_BRC: Tensor) -> None:
        number = self.position[indices[0]] // self.at_once
        assert len(indices) == len(self.parts[number])
        polynomial = polynomial_of(group)
        with torch.cuda.device_of(out_BRC):
            self.workspace.batch = len(indices)
            self.workspace.normalise(self.sources[number], polynomial)
            self.workspace.finish_to(out_BRC, self.workspace.run(polynomial.steps))


class FusedAdamWBucket(AdamWBucket):
    """Tensors of one dtype on one GPU, and their AdamW step in one kernel."""

    scales_in_kernels = True

    def __init__(self, parameters: list[Tensor]) -> None:
        super().__init__(parameters)
        device, count = parameters[0].device, len(parameters)
        self.step_counts = torch.zeros(count, dtype=torch.float32, device=device)
        self.steps = list(self.step_counts.unbind())
        self.hyper = HyperParameters(device)
        self.tables = [Addresses(count, device) for _ in range(4)]
        """Addresses of parameters, gradients, first and second moments."""
        self.sizes = torch.tensor([p.numel() for p in parameters], device=device)
        self.divisible = all(p.numel() % 16 == 0 for p in parameters)
        blocks = [(index, block) for index, p in enumerate(parameters) for block in range(-(-p.numel() // ADAMW_BLOCK))]
        self.tensor_of_block, self.block_in_tensor = torch.tensor(
            blocks, dtype=torch.int32, device=device
        ).T.contiguous()

    def prepare(self, group: dict[str, Any], gradients: Gradients, clip: Tensor | None) -> None:
        given = [gradients.get(parameter) for parameter in self.parameters]
        self.gradients = [None if gradient is None else gradient.contiguous() for gradient in given]
        self.hyper.fill(group, clip)
        tensors: tuple[Sequence[Tensor | None], ...] = self.parameters, self.gradients, self.exp_avgs, self.exp_avg_sqs
        for table, those in zip(self.tables, tensors, strict=True):
            table.point_to(those)

    def static_arguments(self, group: dict[str, Any]) -> tuple[Any, ...]:
        return (self._aligned(), group["weight_decay_form"])

    def _aligned(self) -> bool:
        return all(table.aligned for table in self.tables)

    def step(self, group: dict[str, Any], pending: PendingTransfers) -> None:
        parameters, gradients, exp_avgs, exp_avg_sqs = (table.values for table in self.tables)
        self.step_counts += gradients != 0
        steps, hyper = self.step_counts.double(), self.hyper.values
        dtype = TRITON_TYPES[self.parameters[0].dtype]
        with torch.cuda.device_of(self.parameters[0]):
            elementwise.adamw[(len(self.tensor_of_block),)](
                parameters, gradients, exp_avgs, exp_avg_sqs,
                1 - hyper[BETA1.value] ** steps, 1 - hyper[BETA2.value] ** steps, self.sizes,
                self.tensor_of_block, self.block_in_tensor, hyper,
                PARAMETER=dtype, GRADIENT=dtype, ALIGNED=self._aligned(), DIVISIBLE=self.divisible,
                CAUTIOUS=group["weight_decay_form"] == "cautious", BLOCK=ADAMW_BLOCK,
            )  # fmt: skip
