"""Folders of work with classes for `_target_`, and runs of them."""

import json
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from muloco_runner.config import ExecutionConfig, RunConfig
from muloco_runner.job import run_job
from muloco_runner.paths import ConfigPath, use_config_path
from muloco_runner.record import ExitCode, RunFolder
from muloco_runner.targets import record_code


@contextmanager
def lab_in(folder: Path, module: str, files: dict[str, str]) -> Iterator[Path]:
    """A module or package beside conf/, whose choices are found meanwhile."""
    for name, text in files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(text)
    use_config_path(ConfigPath((folder / "conf",)))
    yield folder
    use_config_path(ConfigPath())
    sys.path[:] = [place for place in sys.path if place != str(folder)]
    sys.modules.pop(module, None)


def trained_in_parts(run: RunConfig, root: Path, stops: int) -> tuple[RunFolder, Path]:
    """Train it with `stops` interruptions, one after each of its first steps: its folder and its last checkpoint."""
    folder = RunFolder.of(root, run.run_id)
    folder.write_config(run.to_dict())
    record_code([run], root, snapshot=True)
    for attempt in range(1, stops + 1):
        assert run_job(folder, ExecutionConfig(device="cpu", wall_minutes=1e-9), attempt) is ExitCode.WANTS_MORE_TIME
    assert run_job(folder, ExecutionConfig(device="cpu"), stops + 1) is ExitCode.FINISHED
    return folder, max(folder.checkpoint_dir.iterdir())


def resumed_to_the_bit(run: RunConfig, root: Path) -> tuple[RunFolder, Path]:
    """Train it whole and, stopped after its first step, in parts: the folder of the parts, and its last checkpoint.

    Fails where the two end otherwise."""
    digests = []
    for name, stops in (("whole", 0), ("parts", 1)):
        folder, newest = trained_in_parts(run, root / name, stops)
        files = json.loads((newest / "manifest.json").read_text())["sha256"]
        digests.append({file: digest for file, digest in files.items() if file != "shared.pt"})
    assert digests[0]
    assert digests[0] == digests[1]
    return folder, newest
