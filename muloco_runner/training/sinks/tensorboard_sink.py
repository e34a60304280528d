"""TensorBoard's files as another destination of a run's records: one folder a run, over all attempts."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from pathlib import Path

from muloco_runner.config import ConfigError
from muloco_runner.record import StepRecord
from muloco_runner.training.sinks.wandb_sink import values_of


@contextlib.contextmanager
def tensorboard_sink(folder: Path | None) -> Iterator[Callable[[StepRecord], None]]:
    """Yields what to call with each record; its quantities go to files below `folder`, to none where that is None.

    Without the package `ConfigError` says how to have it.
    """
    if folder is None:
        yield lambda record: None
        return
    try:
        from torch.utils.tensorboard import SummaryWriter
    except ImportError:
        raise ConfigError(
            "execution.tensorboard=true needs tensorboard: pip install 'muloco-sweeps[tensorboard]'"
        ) from None
    writer = SummaryWriter(str(folder))

    def write(record: StepRecord) -> None:
        for name, value in values_of(record).items():
            writer.add_scalar(name, value, record.step)
        writer.flush()

    try:
        yield write
    finally:
        writer.close()
