"""The precision of the forward and backward pass; parameters, gradients and their sums are float32."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from muloco_runner.data.batches import Batch

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}
"""Names of `RunConfig.precision` -> dtypes."""


def mean_loss(model: nn.Module, batch: Batch, dtype: torch.dtype) -> Tensor:
    """The loss of `model` on `batch` in nats per token (0-D, float32), with products computed in `dtype`."""
    with torch.autocast(batch.tokens_BT.device.type, dtype, enabled=dtype != torch.float32):
        loss: Tensor = model(batch.tokens_BT, batch.documents_BT, batch.targets_BT)
    return loss
