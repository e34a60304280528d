"""Keys and values of the tokens that a layer has seen, so that a further token costs one token's work.

Axes: B batch, T time (columns of the cache), Q queries, H heads, K head width.
"""

from __future__ import annotations

import torch
from torch import Tensor


class KeyValueCache:
    """The cache of one layer, and the mask of the queries that come next."""

    def __init__(self, batch: int, num_heads: int, length: int, head_width: int, like: Tensor) -> None:
        """`length` columns at most; memory as `like`'s."""
        shape = (batch, num_heads, length, head_width)
        self._keys_BHTK = torch.zeros(shape, dtype=like.dtype, device=like.device)
        self._values_BHTK = torch.zeros_like(self._keys_BHTK)
        self._filled = 0
        self.mask_B1QT: Tensor | None = None
        """True where a query may attend; None where it may everywhere."""

    def extended_by(self, keys_BHTK: Tensor, values_BHTK: Tensor) -> tuple[Tensor, Tensor]:
        """Take in the next columns; return all that are filled."""
        end = self._filled + keys_BHTK.shape[2]
        self._keys_BHTK[:, :, self._filled : end] = keys_BHTK
        self._values_BHTK[:, :, self._filled : end] = values_BHTK
        self._filled = end
        return self._keys_BHTK[:, :, :end], self._values_BHTK[:, :, :end]
