"""The weights that finished runs of a sweep keep: what space they take, which are the best, and their removal.

A run that is not finished is never touched: its checkpoints are where it goes on.
"""

from __future__ import annotations

import contextlib
import json
import os
import shutil
from collections.abc import Collection, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from muloco_runner.config import ConfigError, ExecutionConfig, RunConfig
from muloco_runner.inference.continuation import has_begun
from muloco_runner.record import RecordError, RunFolder
from sweeps.engine.work import Work
from sweeps.store.folder import SweepFolder
from sweeps.training.adapter import TRAINING
from sweeps.training.budget_branches import trunks_needed

BEST_OF_SWEEP = "best_of_sweep"
_VARIES = ("lr", "weight_decay", "seed", "global_batch_tokens")
"""Settings in which the runs of one series differ: the best of them is looked for over these."""


@dataclass(frozen=True)
class KeptWeights:
    """The checkpoints of one finished run."""

    run: str
    folder: RunFolder
    steps: tuple[int, ...]
    num_bytes: int


def kept_weights(works: Iterable[Work]) -> list[KeptWeights]:
    """Return what the finished training runs among `works` keep; runs without weights are left out."""
    found = []
    for work in works:
        folder = RunFolder(work.folder)
        if work.adapter.reports != TRAINING.reports or not folder.result_file.exists():
            continue
        steps = folder.checkpoint_steps()
        if steps:
            found.append(KeptWeights(work.name, folder, tuple(steps), _bytes_of(folder, steps)))
    return found


def best_among(kept: Iterable[KeptWeights]) -> set[str]:
    """Return the runs of the lowest validation loss of each series and size, of those that keep weights."""
    best: dict[str, tuple[float, str]] = {}
    for one in kept:
        try:
            result, series = one.folder.read_result(), series_of(RunConfig.from_dict(one.folder.read_config()))
        except (RecordError, ConfigError):
            continue
        if result is not None and result.validation_loss is not None:
            best[series] = min(best.get(series, (result.validation_loss, one.run)), (result.validation_loss, one.run))
    return {run for _, run in best.values()}


def series_of(run: RunConfig) -> str:
    """Return what the runs of one series and size have in common: all but what is tuned, as text."""
    return json.dumps(_without_tuned(run.to_dict()), sort_keys=True)


def _without_tuned(values: Any) -> Any:
    if not isinstance(values, dict):
        return values
    return {key: _without_tuned(value) for key, value in values.items() if key not in _VARIES}


def remove(kept: Iterable[KeptWeights]) -> int:
    """Remove these weights; return the bytes that this frees."""
    freed = 0
    for one in kept:
        for step in one.steps:
            whole = one.folder.checkpoint_at(step)
            # Under this name it is no checkpoint any more, wherever the removal is interrupted.
            half = whole.with_name(f".{whole.name}")
            with contextlib.suppress(FileNotFoundError):
                whole.rename(half)
                shutil.rmtree(half)
        freed += one.num_bytes
    return freed


def end_of_sweep(folder: SweepFolder, works: Sequence[Work]) -> str:
    """Remove the checkpoints that trunks have kept for branches alone. Where `execution.keep=best_of_sweep`, leave
    weights to the best run of each series and size alone; return a line that says so, or nothing. Runs of other sweeps
    under this root as well are left as they are, and those from whose weights others there have yet to start.
    """
    asked = [work for work in works if work.arguments.get("execution", {}).get("keep") == BEST_OF_SWEEP]
    trunks = [work for work in works if work.arguments.get("execution", {}).get("branch_steps")]
    if not asked and not trunks:
        return ""
    shared = _runs_of_others(folder) | trunks_needed(folder.root) | starts_needed(folder.root)
    remove(_kept_for_branches([work for work in trunks if work.name not in shared]))
    if not asked:
        return ""
    kept = kept_weights(asked)
    best = best_among(kept)
    others = [one for one in kept if one.run not in best and one.run not in shared]
    freed = remove(others)
    return f"weights: kept of {len(kept) - len(others)} runs, removed of {len(others)} ({freed / 1e6:,.1f} MB)"


def _kept_for_branches(trunks: Iterable[Work]) -> Iterator[KeptWeights]:
    """Of finished trunks the checkpoints that their own `execution.keep` would not have left."""
    by_run = {work.name: ExecutionConfig(**{**work.arguments["execution"], "branch_steps": None}) for work in trunks}
    for one in kept_weights(trunks):
        keep = by_run[one.run].keeps
        if keep.kind == "best":
            # Which step that was is in the checkpoints alone: `muloco-sweep clean` removes the others.
            continue
        steps = tuple(sorted(set(one.steps) - keep.after_end(one.steps, None)))
        yield replace(one, steps=steps, num_bytes=_bytes_of(one.folder, steps))


def starts_needed(root: Path) -> set[str]:
    """The runs from whose weights others under a root have yet to start (`init_from`), as far as paths tell."""
    found: set[str] = set()
    for folder in RunFolder.all_under(root):
        with contextlib.suppress(RecordError, OSError):
            # Thousands of configs without it are not parsed.
            if b'"init_from"' not in folder.config_file.read_bytes() or has_begun(folder):
                continue
            path = Path(folder.read_config().get("init_from") or "")
            found |= {part.name for way in (path.absolute(), path.resolve()) for part in (way, *way.parents)}
    return found


def _runs_of_others(folder: SweepFolder) -> set[str]:
    """Names of the runs that other sweeps under the root hold too, those that they have added included."""
    others = [other for other in SweepFolder.all_under(folder.root) if other.name != folder.name]
    return {name for other in others for name in other.read_state(other.read_definition()).state.runs}


def without_weights(works: Sequence[Work]) -> list[RunFolder]:
    """Return the finished runs that keep no weights though their sweep asks for them now."""
    asks = [work for work in works if work.arguments.get("execution", {}).get("keep", "none") != "none"]
    folders = [RunFolder(work.folder) for work in asks]
    return [folder for folder in folders if folder.result_file.exists() and not folder.checkpoint_steps()]


def cost_of_weights(folders: Collection[RunFolder]) -> str:
    """Return a line on finished runs whose weights are asked for now and were not kept; nothing without any."""
    hours, missing = 0.0, 0
    for folder in folders:
        try:
            result = folder.read_result()
        except RecordError:
            continue
        if result is not None and not result.diverged:
            missing += 1
            hours += result.train_seconds * result.num_ranks / 3600
    if not missing:
        return ""
    return (
        f"{missing} finished run(s) kept no weights, and execution.keep does not bring them back: training them again "
        f"takes {hours:,.2f} hours of a GPU or core; for that, give another root="
    )


def _bytes_of(folder: RunFolder, steps: Iterable[int]) -> int:
    return sum(_bytes_below(folder.checkpoint_at(step)) for step in steps)


def _bytes_below(folder: Path) -> int:
    try:
        with os.scandir(folder) as entries:
            return sum(entry.stat().st_size for entry in entries)
    except OSError:
        return 0
