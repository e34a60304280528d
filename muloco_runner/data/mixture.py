"""Prepared folders and their shares: one for `data.path`, several for `data.mixture`. Standard library only.

Neither the order in which folders are named, nor where they lie, makes another mixture: parts stand in the order of
their content.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from muloco_runner.config import ConfigError, DataConfig
from muloco_runner.data.prepared.manifest import Manifest, read_manifest

PERIOD = 10_000
"""Sequences after which the order of the parts repeats; a smaller share than one of them cannot be kept."""
_SHARE_DIGITS = 12
"""Decimals of a share, in a mixture's name and in its order alike: weights written in another order or at another
scale differ after these, which may not decide which part comes next."""


@dataclass(frozen=True)
class Part:
    """A prepared folder and its share of the sequences, which equal mixtures have to the last bit."""

    folder: Path
    share: float
    manifest: Manifest


def read_parts(data: DataConfig) -> list[Part]:
    """The prepared folders of `data`; ones that do not go together raise `ConfigError`."""
    if data.mixture is None:
        folder = Path(str(data.path))
        return [Part(folder, 1.0, read_manifest(folder))]
    total = math.fsum(data.mixture.values())
    parts = [
        Part(Path(f), round(weight / total, _SHARE_DIGITS), read_manifest(Path(f)))
        for f, weight in data.mixture.items()
    ]
    first = parts[0]
    for part in parts:
        if part.manifest.tokenizer != first.manifest.tokenizer or part.manifest.dtype != first.manifest.dtype:
            raise ConfigError(
                f"data.mixture: {part.folder} was prepared with another tokenizer than {first.folder}: "
                "prepare both with the same one"
            )
        if part.share * PERIOD < 1:
            raise ConfigError(
                f"data.mixture: the share of {part.folder} is {part.share:.2g}, less than {1 / PERIOD:g}: "
                "raise its weight, or leave it out"
            )
    return sorted(parts, key=lambda part: (part.manifest.content_hash, part.share, str(part.folder)))


def content_hash(parts: Sequence[Part]) -> str:
    """The content of a mixture, 16 hex digits: that of its only part, or of all and their shares."""
    if len(parts) == 1:
        return parts[0].manifest.content_hash
    listed = json.dumps([[part.manifest.content_hash, part.share] for part in parts])
    return hashlib.sha256(listed.encode()).hexdigest()[:16]


def tokens_before_repeating(parts: Sequence[Part]) -> int:
    """Training tokens of all parts together until the first of them has been seen whole."""
    return int(min(part.manifest.train.num_tokens / part.share for part in parts))
