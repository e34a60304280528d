"""The text that every Python has: the source of its standard library, without tests and what others have installed.

Standard library only.
"""

from __future__ import annotations

import functools
import os
import sysconfig
from pathlib import Path

# Test data is no prose, and vendored packages are no part of the language's own library.
_SKIPPED_FOLDERS = {"site-packages", "dist-packages", "test", "tests", "idle_test", "__pycache__"}


@functools.cache
def library_files() -> tuple[tuple[str, Path], ...]:
    """Name and path of each `.py` file of the interpreter's library, in no order; looked for once in a process."""
    root = sysconfig.get_path("stdlib")
    files = []
    for folder, inside, names in os.walk(root):
        # Not entered: installed packages alone are many times the library.
        inside[:] = [name for name in inside if name not in _SKIPPED_FOLDERS]
        files += [Path(folder, name) for name in names if name.endswith(".py")]
    return tuple((file.relative_to(root).as_posix(), file) for file in files)
