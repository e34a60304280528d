"""The surroundings of an attempt: all that it needs beside the run itself."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

import torch

from muloco_runner.config import ExecutionConfig
from muloco_runner.distributed.communicator import Communicator
from muloco_runner.record import RunFolder, StepRecord


@dataclass
class Session:
    """Folder, ranks and device of an attempt, and the functions that it calls."""

    folder: RunFolder
    execution: ExecutionConfig
    communicator: Communicator
    device: torch.device
    attempt: int = 1
    should_stop: Callable[[], bool] = lambda: False
    """Asked after every step: True ends the attempt with a checkpoint."""
    on_record: Callable[[StepRecord], None] = lambda record: None
    versions: dict[str, str] = field(default_factory=dict)
