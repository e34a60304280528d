"""Checks of a run's data that a login node can make without reading the corpus. Standard library only."""

from __future__ import annotations

from pathlib import Path

from muloco_runner.config import ConfigError, DataConfig, RunConfig
from muloco_runner.data.mixture import read_parts
from muloco_runner.data.python_packages import source_files


def check_data(run: RunConfig) -> None:
    """Data that is not there, or whose vocabulary is not the model's, raises `ConfigError`."""
    check_data_path(run.data)
    if run.data.source == "prepared":
        check_vocabulary(run, max(part.manifest.vocab_size for part in read_parts(run.data)))


def check_vocabulary(run: RunConfig, vocab_size: int) -> None:
    """A corpus with more tokens than the model knows raises `ConfigError`."""
    if vocab_size > run.model.vocab_size:
        raise ConfigError(
            f"model.vocab_size={run.model.vocab_size} is smaller than the corpus's {vocab_size}: raise it"
        )


def check_data_path(data: DataConfig) -> None:
    """A path that is not there, or holds no prepared data where it should, raises `ConfigError`."""
    if data.path is not None and not Path(data.path).exists():
        raise ConfigError(f"data.path={data.path!r}: no such file or folder on this machine: correct data.path")
    for folder in data.folders:
        if not Path(folder).exists():
            raise ConfigError(f"data.mixture: {folder!r}: no such folder on this machine: correct it")
    if data.source == "prepared":
        read_parts(data)
    if data.source == "python_packages":
        source_files()
