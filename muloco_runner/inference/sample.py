"""Samples of a model: a batch of prompts at once, with a cache of keys and values.

Prompts of several lengths end at one column: shorter ones begin later, with nothing before them. Every row has random
numbers of its own, so that what is drawn does not depend on the rows beside it.

Axes: B batch, T time, Q new columns, V vocabulary.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from muloco_runner.config import ConfigError
from muloco_runner.config.checks import require, require_positive
from muloco_runner.model.key_value_cache import KeyValueCache
from muloco_runner.model.transformer import Block, Transformer, rotary_angles

_COLUMNS = 16
"""New tokens between two questions whether rows are over."""


@dataclass(frozen=True)
class SamplingOptions:
    """How the next token is drawn."""

    temperature: float = 1.0
    """Logits are divided by it; 0 takes the likeliest token."""
    top_k: int | None = None
    """Draw among the k likeliest tokens; None among all."""
    top_p: float | None = None
    """Draw among the likeliest tokens that together have this probability (nucleus sampling, arXiv 1904.09751)."""
    seed: int = 0

    def __post_init__(self) -> None:
        require(0 <= self.seed < 2**43, f"seed={self.seed}: must be zero or positive, and below 2^43")
        require(0 <= self.temperature < 1e6, f"temperature={self.temperature}: must be zero or positive")
        require_positive("", **({} if self.top_k is None else {"top_k": self.top_k}))
        require(self.top_p is None or 0 < self.top_p <= 1, f"top_p={self.top_p}: must be above 0 and at most 1")


class CachedModel:
    """A model that has seen the tokens of a batch so far."""

    def __init__(self, model: Transformer, pads_B: Tensor, length: int, dtype: torch.dtype) -> None:
        """`pads_B`: columns before each row's first token; `length`: columns at most; `dtype`: of activations."""
        config = model.config
        self.model, self.pads_B, self._dtype, self._filled = model, pads_B, dtype, 0
        like = torch.empty(0, dtype=dtype, device=pads_B.device)
        self._caches = [
            KeyValueCache(len(pads_B), config.num_heads, length, config.head_width, like)
            for _ in range(config.num_layers)
        ]
        cos_TK, sin_TK = rotary_angles(length, config.head_width, config.rope_theta)
        self._cos_TK, self._sin_TK = (angles.to(device=pads_B.device, dtype=dtype) for angles in (cos_TK, sin_TK))

    @torch.no_grad()
    def logits(self, tokens_BQ: Tensor) -> Tensor:
        """Takes in the next columns; the logits after the last of them, shape (B, V), float32."""
        start, end = self._filled, self._filled + tokens_BQ.shape[1]
        columns_Q = torch.arange(start, end, device=tokens_BQ.device)
        positions_BQ = (columns_Q - self.pads_B[:, None]).clamp_min(0)
        cos_B1QK, sin_B1QK = (angles[positions_BQ][:, None] for angles in (self._cos_TK, self._sin_TK))
        mask_B1QT = self._mask(columns_Q, end)
        with torch.autocast(tokens_BQ.device.type, self._dtype, enabled=self._dtype != torch.float32):
            x_BQD = self.model.embedding(tokens_BQ).to(self._dtype)
            for block, cache in zip(self.model.blocks, self._caches, strict=True):
                assert isinstance(block, Block)
                cache.mask_B1QT = mask_B1QT
                x_BQD = block.add_branches(x_BQD, cos_B1QK, sin_B1QK, cache)
            logits_BV: Tensor = self.model.head(self.model.norm(x_BQD[:, -1:]))[:, 0]
        self._filled = end
        return logits_BV.float()

    def _mask(self, columns_Q: Tensor, end: int) -> Tensor:
        """Not ahead, and not before the row's first token; a column before that sees itself, which no one else does."""
        columns_T = torch.arange(end, device=columns_Q.device)
        begun_B1T = columns_T >= self.pads_B[:, None, None]
        ahead_QT = columns_T > columns_Q[:, None]
        itself_QT = columns_T == columns_Q[:, None]
        return ((begun_B1T & ~ahead_QT) | itself_QT)[:, None]


def check_memory(model: Transformer, rows: int, length: int, dtype: torch.dtype) -> None:
    """Raise `ConfigError` where the keys and values of `rows` texts of `length` tokens are more than the device's whole
    memory."""
    config, device = model.config, model.embedding.weight.device
    cached = 2 * config.num_layers * rows * length * config.width * dtype.itemsize
    rotations = 2 * length * config.head_width * 4
    if device.type == "cuda":
        memory = torch.cuda.get_device_properties(device).total_memory
    else:
        memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    if cached + rotations > memory:
        raise ConfigError(
            f"{rows:,} text(s) of {length:,} tokens, prompts included: keys and values take "
            f"{(cached + rotations) / 1e9:,.1f} GB, {device} has {memory / 1e9:,.1f} GB: give fewer tokens or samples"
        )


def sample(
    model: Transformer,
    prompts: Sequence[Sequence[int]],
    num_tokens: int,
    options: SamplingOptions,
    *,
    end: int | None = None,
    dtype: torch.dtype = torch.float32,
    numbers: Sequence[int] | None = None,
    is_over: Callable[[list[int]], bool] = lambda row: False,
) -> list[list[int]]:
    """Continue each of the prompts, token numbers, by `num_tokens` tokens, or up to the token `end`.

    numbers: of the rows, which draw by them, whatever batch they are in; None for 0, 1, ... of this one. is_over: asked
    now and then of a row's new tokens; one for which it is true gets no more.
    Returns the new tokens alone, `end` left out. A row's do not depend on the other rows, but for rounding. An empty
    prompt raises `ConfigError`.
    """
    if not prompts or not all(prompts):
        raise ConfigError("an empty prompt: a model continues what it is given, so give at least one token")
    device = model.embedding.weight.device
    longest = max(len(prompt) for prompt in prompts)
    pads_B = torch.tensor([longest - len(prompt) for prompt in prompts], device=device)
    padded = [[0] * (longest - len(prompt)) + list(prompt) for prompt in prompts]
    tokens_BQ = torch.tensor(padded, device=device)
    cached = CachedModel(model, pads_B, longest + num_tokens, dtype)
    generators = [torch.Generator().manual_seed((options.seed << 20) + row) for row in numbers or range(len(prompts))]
    has_ended = torch.zeros(len(prompts), dtype=torch.bool)
    rows: list[list[int]] = [[] for _ in prompts]
    for column in range(num_tokens):
        chosen_B = _draw(cached.logits(tokens_BQ), options, generators)
        has_ended |= chosen_B == (-1 if end is None else end)
        for row, over, token in zip(rows, has_ended.tolist(), chosen_B.tolist(), strict=True):
            if not over:
                row.append(token)
        if column % _COLUMNS == _COLUMNS - 1:
            has_ended |= torch.tensor([over or is_over(row) for row, over in zip(rows, has_ended, strict=True)])
        if has_ended.all():
            break
        tokens_BQ = chosen_B[:, None].to(device)
    return rows


def _draw(logits_BV: Tensor, options: SamplingOptions, generators: Sequence[torch.Generator]) -> Tensor:
    """The next token of each row, shape (B,), on the CPU."""
    logits_BV = logits_BV.cpu()
    if options.temperature == 0:
        return logits_BV.argmax(dim=1)
    probabilities_BV = (logits_BV / options.temperature).softmax(dim=1)
    if options.top_k is not None and options.top_k < probabilities_BV.shape[1]:
        least_B1 = probabilities_BV.topk(options.top_k, dim=1).values[:, -1:]
        probabilities_BV = probabilities_BV.where(probabilities_BV >= least_B1, 0.0)
    if options.top_p is not None:
        ordered_BV, order_BV = probabilities_BV.sort(dim=1, descending=True)
        before_BV = ordered_BV.cumsum(dim=1) - ordered_BV
        ordered_BV = ordered_BV.where(before_BV < options.top_p * ordered_BV.sum(dim=1, keepdim=True), 0.0)
        probabilities_BV = torch.zeros_like(probabilities_BV).scatter(1, order_BV, ordered_BV)
    # One of exponentials at these rates comes first with these probabilities: one draw a row, by its own generator.
    waits_BV = torch.stack(
        [torch.empty(probabilities_BV.shape[1]).exponential_(generator=generator) for generator in generators]
    )
    return (probabilities_BV / waits_BV).argmax(dim=1)
