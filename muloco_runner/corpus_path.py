"""What a login node can check of a data path without reading the corpus. Standard library only."""

from __future__ import annotations

from pathlib import Path

from muloco_runner.config import ConfigError, DataConfig


def check_data_path(data: DataConfig) -> None:
    """A path that is not there raises `ConfigError`."""
    if data.path is not None and not Path(data.path).exists():
        raise ConfigError(f"data.path={data.path!r}: no such file or folder here: correct data.path")
