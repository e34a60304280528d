"""What an attempt brings beside the run itself."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

import torch

from muloco_runner.config import ExecutionConfig
from muloco_runner.distributed.communicator import Communicator
from muloco_runner.record import RunFolder, StepRecord


@dataclass
class Session:
    """Where an attempt trains its run, and who is told of it."""

    folder: RunFolder
    execution: ExecutionConfig
    communicator: Communicator
    device: torch.device
    attempt: int = 1
    should_stop: Callable[[], bool] = lambda: False
    """Asked after every step: True ends the attempt with a checkpoint."""
    on_record: Callable[[StepRecord], None] = lambda record: None
    versions: dict[str, str] = field(default_factory=dict)
