"""Makes this folder's helpers importable from the folders below it, and leaves nothing running."""

from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest


@pytest.fixture
def root(tmp_path: Path) -> Iterator[Path]:
    """Whatever a test leaves running is ended with it."""
    yield tmp_path
    for process in psutil.process_iter(["cmdline"]):
        if any(str(tmp_path) in word for word in process.info["cmdline"] or ()):
            process.kill()
