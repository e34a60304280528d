"""How one attempt has spent its time so far, as its heartbeat says: what a later reader itemises its hours by."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class AttemptTimes:
    """Times of an attempt's main rank, by its host's clock; seconds are of this attempt alone."""

    as_of: float
    """Unix seconds: when the other values were right."""
    first_step_at: float | None = None
    """Unix seconds: when its first step began; None where it has taken none."""
    compile_seconds: float = 0.0
    """Seconds that `torch.compile` has taken."""
    early_compile_seconds: float = 0.0
    """Of these, before the first step: a micro-batch is tried first where nobody has set its size."""
    evaluation_seconds: float = 0.0
    saving_seconds: float = 0.0
    """Seconds that training stood still for checkpoints."""
    loading_seconds: float = 0.0
    """Seconds before the first step in which a checkpoint was sought, checked and read."""
    unsaved_seconds: float = 0.0
    """Seconds of training that no complete checkpoint holds."""
    ended: bool = False
    """Whether this is its last word, said in order: with its result, or having stopped as asked."""

    def to_dict(self) -> dict[str, Any]:
        return dataclasses.asdict(self)

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> AttemptTimes:
        """Keys of a newer writer are dropped; values that are none of ours raise `TypeError`."""
        known = {field.name for field in dataclasses.fields(cls)}
        return cls(**{key: value for key, value in values.items() if key in known})
