"""The weights that a run starts from (`init_from`): which they are, and their content, which names the run.

Standard library only, for login nodes; `muloco_runner.training.checkpoints.initial_weights` reads them.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
from collections.abc import Iterable
from functools import cache
from pathlib import Path

from muloco_runner.config import ConfigError, RunConfig
from muloco_runner.record import RecordError, RunFolder, checkpoint_step, why_without_weights


@dataclasses.dataclass(frozen=True)
class WeightsOfRun:
    """A checkpoint of a run."""

    folder: RunFolder
    step: int

    def content_hash(self) -> str:
        path = self.folder.checkpoint_at(self.step)
        try:
            digests = json.loads((path / "manifest.json").read_text())["sha256"]
            content = [digests["shared.pt"], digests["worker-0.pt"]]
        except (OSError, ValueError, KeyError, TypeError):
            raise ConfigError(f"init_from: {path}: the checkpoint is damaged: choose another one") from None
        return hashlib.sha256(json.dumps(content).encode()).hexdigest()[:16]


@dataclasses.dataclass(frozen=True)
class WeightsInFolder:
    """A Hugging Face folder."""

    path: Path

    def content_hash(self) -> str:
        files = sorted(file for file in self.path.rglob("*.safetensors") if file.is_file())
        if not files:
            raise ConfigError(f"init_from={self.path}: the folder holds no .safetensors file")
        stamp = tuple((str(f), f.stat().st_size, f.stat().st_mtime_ns) for f in [self.path / "config.json", *files])
        return _hash_of_files(stamp)


@cache
def _hash_of_files(stamp: tuple[tuple[str, int, int], ...]) -> str:
    total = hashlib.sha256()
    for name, _, _ in stamp:
        with open(name, "rb") as file:
            total.update(hashlib.file_digest(file, "sha256").digest())
    return total.hexdigest()[:16]


def find_weights(init_from: str) -> WeightsOfRun | WeightsInFolder:
    """The newest checkpoint of a run's folder, a checkpoint's own folder, or a Hugging Face folder. Anything else
    raises `ConfigError`."""
    path = Path(init_from)
    step = checkpoint_step(path)
    if step is not None:
        run = RunFolder(path.absolute().parent.parent)
        if step in run.checkpoint_steps():
            return WeightsOfRun(run, step)
    run = RunFolder(path)
    if run.config_file.is_file():
        steps = run.checkpoint_steps()
        if not steps:
            try:
                result = run.read_result()
            except RecordError as error:
                raise ConfigError(f"init_from: {error}") from None
            raise ConfigError(f"init_from={init_from} {why_without_weights(result)}")
        return WeightsOfRun(run, steps[-1])
    if (path / "config.json").is_file():
        return WeightsInFolder(path)
    raise ConfigError(
        f"init_from={init_from}: neither a run's folder nor a Hugging Face folder: give ROOT/runs/RUN_ID, one of its "
        "checkpoints, or what `muloco-model export` wrote"
    )


def named_by_weights(runs: Iterable[RunConfig]) -> list[RunConfig]:
    """The runs with `init_hash` filled in where they start from weights; absent weights raise `ConfigError`."""
    return [
        run
        if run.init_from is None or run.init_hash is not None
        else dataclasses.replace(run, init_hash=find_weights(run.init_from).content_hash())
        for run in runs
    ]
