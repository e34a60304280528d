"""What a launch prints while it waits, and when a person stops it."""

from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

from sweeps.progress_lines import after_interrupt
from sweeps.store.folder import SweepFolder


def test_ctrl_c_says_what_goes_on_and_how_to_end_it(tmp_path: Path) -> None:
    state = cast(Any, SimpleNamespace(jobs={"a": None, "b": None}))
    folder = SweepFolder(tmp_path / "my results", "demo")
    said = after_interrupt(state, True, folder)
    assert "2 jobs of the scheduler's go on" in said
    assert f"muloco-sweep cancel '{tmp_path}/my results' --sweep demo --all" in said
    assert after_interrupt(state, False, folder) == "stopped; the same command continues"
