"""What a login node can check of a data path without reading the corpus. Standard library only."""

from __future__ import annotations

from pathlib import Path

from muloco_runner.config import ConfigError, DataConfig
from muloco_runner.shards.manifest import read_manifest


def check_data_path(data: DataConfig) -> None:
    """A path that is not there, or holds no prepared data where it should, raises `ConfigError`."""
    if data.path is not None and not Path(data.path).exists():
        raise ConfigError(f"data.path={data.path!r}: no such file or folder here: correct data.path")
    if data.source == "shards":
        read_manifest(Path(str(data.path)))
