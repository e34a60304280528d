"""Several tensors in one flat one, so that an outer step is a few operations and not a few for each parameter."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor


def flatten(tensors: Sequence[Tensor]) -> Tensor:
    """A copy of the tensors' values, one after the other."""
    return torch.cat([tensor.detach().flatten() for tensor in tensors])


def views(flat: Tensor, like: Sequence[Tensor]) -> list[Tensor]:
    """Parts of `flat` in the shapes of `like`."""
    parts = flat.split([tensor.numel() for tensor in like])
    return [part.view(tensor.shape) for part, tensor in zip(parts, like, strict=True)]


@torch.no_grad()
def copy_into(tensors: Sequence[Tensor], flat: Tensor) -> None:
    """Gives the tensors the values of `flat`."""
    torch._foreach_copy_(list(tensors), views(flat, tensors))
