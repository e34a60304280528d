"""Tries data from outside the package: its documents are made twice, and counted."""

from __future__ import annotations

import random
from typing import Any

import numpy as np
import torch

from muloco_runner.config import TargetDataConfig
from muloco_runner.config.checks import require
from muloco_runner.data.corpus import Corpus, read_own_corpus


def try_data(config: TargetDataConfig) -> dict[str, Any]:
    """What is wrong with it, if anything; what it holds, by which runs are named."""
    first, second = _read(config, seed=0), _read(config, seed=1)
    require(
        first.content_hash == second.content_hash,
        "yields other documents the second time: every rank and every attempt makes them anew; draw them with a "
        "generator of its own, seeded by an argument",
    )
    return {
        "facts": {
            "content_hash": first.content_hash,
            "train_tokens": first.train.num_tokens,
            "validation_tokens": first.validation.num_tokens,
        }
    }


def _read(config: TargetDataConfig, seed: int) -> Corpus:
    random.seed(seed)
    np.random.seed(seed)  # what a user's function may draw from
    torch.manual_seed(seed)
    return read_own_corpus(config)
