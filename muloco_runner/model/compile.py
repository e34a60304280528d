"""Compilation of the model's parts: one graph for each shape, and no silent return to uncompiled code."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

_SHAPES = 64
"""Graphs of one function: shapes of training, remainders and evaluation, times workers' modes of autograd."""


def compile_each_shape(function: Callable[..., Any]) -> Callable[..., Any]:
    """Return `function`, compiled for each shape anew: there are few, and code for any shape would replace training's.

    More than 64 shapes raise torch's `FailOnRecompileLimitHit`. By default torch runs what is past its limit of 8
    uncompiled, where attention takes memory quadratic in the sequence's length.
    """
    config = torch._dynamo.config
    # Blocks are small enough for DDP's overlap: splitting them further at its buckets would only undo fusions.
    config.optimize_ddp = False
    config.recompile_limit = max(config.recompile_limit, _SHAPES)
    config.fail_on_recompile_limit_hit = True
    return torch.compile(function, dynamic=False)
