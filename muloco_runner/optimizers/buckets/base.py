"""What every bucket does, and the bucket of matrices of one shape that this rank updates alone.

The momentum of a `MatrixBucket` is one tensor, allocated once; each matrix's is a view of it. `fused` does the same in
Triton kernels; `replicated` and `sharded` share the work over ranks.

Axes: B matrices of the bucket, R rows (fan-out), C columns (fan-in). Where parameters are fused matrices or batches,
B counts parameters, and R C stands for their shape.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Protocol, runtime_checkable

import torch
from torch import Tensor

from muloco_runner.distributed.dtensor import local, state_dtype
from muloco_runner.distributed.pending import PendingTransfers
from muloco_runner.muon_rule.conventions import shape_scale
from muloco_runner.muon_rule.matrix_view import MatrixView
from muloco_runner.muon_rule.polynomial import polynomial_of
from muloco_runner.optimizers.arena import Arena
from muloco_runner.optimizers.orthogonalize import (
    TRITON_DTYPES,
    choose_backend,
    matrices_at_once,
    orthogonalize,
    works_matrix_by_matrix,
)
from muloco_runner.optimizers.threads import share_over_threads
from muloco_runner.optimizers.update_rule import accumulate_momentum_, decay_, look_ahead

Gradients = Mapping[Tensor, Tensor | None]
"""Of one step, by parameter. None stands for that of a matrix whose owner, another rank, alone has it; a parameter that
is missing has a gradient on no rank, and stays as it is."""


def gradients_in_grad(parameters: Iterable[Tensor]) -> dict[Tensor, Tensor]:
    """Return the gradients that are in `grad`. A sparse one is a `ValueError`."""
    gradients = {parameter: parameter.grad for parameter in parameters if parameter.grad is not None}
    for gradient in gradients.values():
        if gradient.layout != torch.strided:
            raise ValueError(f"a gradient of {gradient.layout}: must be dense, as of nn.Embedding(sparse=False)")
    return gradients


class Bucket(Protocol):
    """Parameters of one group that are updated together."""

    parameters: list[Tensor]

    @property
    def scales_in_kernels(self) -> bool:
        """Whether the factor on all gradients costs no pass over them."""
        ...

    def state(self, index: int) -> dict[str, Tensor]:
        """Return the state that this rank keeps for parameter `index`, by name."""
        ...

    def prepare(self, group: dict[str, Any], gradients: Gradients, clip: Tensor | None) -> None:
        """Store the parameters' gradients of the next step, and a factor on all of them (0-D), if any."""
        ...

    def step(self, group: dict[str, Any], pending: PendingTransfers) -> None:
        """Update the parameters with the settings of `group`. Transfers that have not ended are left in `pending`."""
        ...

    def drop_gradients(self) -> None:
        """Give the gradients up once the step is done: their memory is the next backward pass's."""
        ...


@runtime_checkable
class GraphCapturable(Bucket, Protocol):
    """A bucket whose step a CUDA graph may replay: all that changes between steps is refreshed in `prepare`."""

    def static_arguments(self, group: dict[str, Any]) -> tuple[Any, ...]:
        """Return what a captured step holds fixed: the graph must be captured anew when it differs."""
        ...


class MatrixBucket:
    """Parameters of one group, shape, dtype and device, and their Muon step."""

    scales_in_kernels = False

    def __init__(
        self,
        parameters: list[Tensor],
        view: MatrixView,
        backend: str,
        owned: Sequence[int] | None = None,
        arena: Arena | None = None,
    ) -> None:
        """`view` is each parameter as matrices; `owned` are the indices of the parameters whose momentum this rank
        keeps: all of them by default; `arena` is memory that some backends work in."""
        self.parameters = parameters
        self.shape = parameters[0].shape
        self.blocks, self.rows, self.columns = view.blocks, view.rows, view.columns
        self.device = parameters[0].device
        self.dtype = state_dtype(parameters[0])
        self.backend = choose_backend(backend, self.device)
        self.arena = arena or Arena()
        indices = range(len(parameters)) if owned is None else owned
        self.position = {index: position for position, index in enumerate(indices)}
        """Index of an owned matrix -> its index along B in the momentum."""
        shape = (len(self.position), *local(parameters[0]).shape)
        self.momentum_BRC = torch.zeros(shape, dtype=self.dtype, device=self.device)
        self.gradients: list[Tensor | None] = []
        self.clip: Tensor | None = None
        self._accumulated: dict[int, Tensor] = {}
        """Gradients of this step that are in the momentum already, in the state's dtype; Nesterov needs them again."""

    def momentum(self, index: int) -> Tensor:
        """Return the momentum of an owned parameter, a view in its shape."""
        return self.momentum_BRC[self.position[index]]

    def state(self, index: int) -> dict[str, Tensor]:
        return {"momentum": self.momentum(index)} if index in self.position else {}

    def prepare(self, group: dict[str, Any], gradients: Gradients, clip: Tensor | None) -> None:
        self.gradients, self.clip = [gradients.get(parameter) for parameter in self.parameters], clip

    def step(self, group: dict[str, Any], pending: PendingTransfers) -> None:
        chosen = [index for index in self.position if self.gradients[index] is not None and self.shape.numel()]
        at_once = self.parameters_at_once

        def update(indices: Sequence[int]) -> None:
            for start in range(0, len(indices), at_once):
                part = indices[start : start + at_once]
                self.apply_update(group, part, list(self.orthogonal_updates(group, part).unbind()))

        if works_matrix_by_matrix(self.backend, self.rows, self.columns, self.dtype):
            share_over_threads(update, chosen)
        else:
            update(chosen)

    def drop_gradients(self) -> None:
        self.gradients = []

    @property
    def parameters_at_once(self) -> int:
        """How many parameters are worked on together."""
        return max(1, matrices_at_once(self.backend, self.rows, self.columns) // self.blocks)

    def orthogonal_updates(
        self, group: dict[str, Any], indices: Sequence[int], dtype: torch.dtype | None = None
    ) -> Tensor:
        """Accumulate the gradients of these owned matrices and return their orthogonalised updates (B, R, C), in
        `dtype`, by default the state's."""
        self._accumulate(group, indices)
        orthogonal_BRC = self._orthogonalized(group, self._raw_updates(group, indices), dtype)
        for index in indices:
            self._accumulated.pop(index, None)
        return orthogonal_BRC

    def write_orthogonal_updates(self, group: dict[str, Any], indices: Sequence[int], out_BRC: Tensor) -> None:
        """As `orthogonal_updates`, into memory of another dtype; `indices` are some that `parameters_at_once` allows,
        counted from the first owned one."""
        # Kernels give any dtype; elsewhere the copy converts, and spares another one.
        dtype = out_BRC.dtype if self.backend in TRITON_DTYPES else None
        out_BRC.copy_(self.orthogonal_updates(group, indices, dtype))

    def _orthogonalized(self, group: dict[str, Any], full_BRC: Tensor, dtype: torch.dtype | None = None) -> Tensor:
        """Return the orthogonalised updates of full parameters, in their shape, in `dtype` or theirs."""
        matrices = full_BRC.reshape(-1, self.rows, self.columns)
        return orthogonalize(matrices, polynomial_of(group), self.backend, dtype, self.arena).reshape(full_BRC.shape)

    def _accumulate(self, group: dict[str, Any], indices: Iterable[int]) -> list[int]:
        """Add the gradients of these matrices to their momentum; return the indices of those that have one."""
        gradients = {
            index: local(gradient).to(self.dtype)
            for index in indices
            if (gradient := self.gradients[index]) is not None
        }
        if self.clip is not None:
            gradients = {index: gradient * self.clip for index, gradient in gradients.items()}
        self._accumulated.update(gradients)
        for index, gradient in gradients.items():
            accumulate_momentum_(self.momentum(index), gradient, group["momentum"], group["momentum_form"])
        return list(gradients)

    def _raw_updates(self, group: dict[str, Any], indices: Sequence[int]) -> Tensor:
        """Return what is to be orthogonalised (B, R, C): the momentum, or Nesterov's look-ahead."""
        positions = [self.position[index] for index in indices]
        if not group["nesterov"]:
            consecutive = positions == list(range(positions[0], positions[0] + len(positions)))
            return self.momentum_BRC[positions[0] : positions[-1] + 1] if consecutive else self.momentum_BRC[positions]
        ahead_BRC = self.momentum_BRC.new_empty(len(indices), *self.momentum_BRC.shape[1:])
        for ahead_RC, index in zip(ahead_BRC, indices, strict=True):
            gradient, momentum = self._accumulated.get(index), self.momentum(index)
            if gradient is None:
                ahead_RC.copy_(momentum)
            else:
                look_ahead(momentum, gradient, group["look_ahead"], group["momentum_form"], out=ahead_RC)
        return ahead_BRC

    def apply_update(self, group: dict[str, Any], indices: Sequence[int], orthogonal: list[Tensor]) -> None:
        """Decay these parameters W, then W <- W - lr shape_scale O; O in any floating-point dtype."""
        if not indices:
            return
        parameters = [local(self.parameters[index]) for index in indices]
        kept = 1 - group["lr"] * group["weight_decay"]
        scale = group["lr"] * shape_scale(group["lr_scale"], self.rows, self.columns)
        if self.backend in TRITON_DTYPES:
            # Needs the package triton, which other backends do without.
            from muloco_runner.optimizers.orthogonalize.triton import parameter_update

            if parameter_update.can_be_fused(parameters):
                cautious = group["weight_decay_form"] == "cautious"
                parameter_update.apply_update(parameters, orthogonal, kept, scale, cautious)
                return
        updates = [o.to(self.dtype) for o in orthogonal]
        if kept != 1:
            decay_(parameters, updates, kept, group["weight_decay_form"])
        torch._foreach_add_(parameters, updates, alpha=-scale)
