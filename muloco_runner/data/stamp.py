"""What tells whether the files of a text have changed, without reading them. Standard library only."""

from __future__ import annotations

import functools
import os
from collections.abc import Iterable
from pathlib import Path

from muloco_runner.config import DataConfig
from muloco_runner.data.prepared.input_hashes import stamp_of
from muloco_runner.data.prepared.manifest import FILE_NAME
from muloco_runner.data.python_packages import source_files
from muloco_runner.data.python_source import library_files

Stamp = tuple[tuple[str | int, ...], ...]


def stamp_of_data(data: DataConfig) -> Stamp:
    """Names, sizes, times and inodes of the files that are read; empty where there are none."""
    match data.source:
        case "python_source":
            return _stamp_of_python_source()
        case "python_packages":
            return _stamp_of_files(source_files())
        case "text" if os.path.exists(str(data.path)):
            from muloco_runner.data.prepared.inputs import named_files

            return _stamp_of_files(named_files([Path(str(data.path))]))
        case _:
            return _stamp_of_files((folder, Path(folder) / FILE_NAME) for folder in data.folders)


@functools.cache
def _stamp_of_python_source() -> Stamp:
    """Looked at once in a process: the interpreter that runs has its library in use."""
    return _stamp_of_files(library_files())


def _stamp_of_files(files: Iterable[tuple[str, str | Path]]) -> Stamp:
    return tuple(sorted((name, *stamp_of(str(file))) for name, file in files if os.path.exists(file)))
