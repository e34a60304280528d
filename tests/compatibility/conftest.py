from pathlib import Path

import pytest
from old_files import Old, lay_out


@pytest.fixture
def old(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Old:
    """The old files in the working directory: runs name their text by a relative path."""
    monkeypatch.chdir(tmp_path)
    return lay_out(tmp_path.resolve())
