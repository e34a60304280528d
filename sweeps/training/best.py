"""The best finished run of each algorithm and size, for the last lines of a launch. How sure that is, reports say."""

from __future__ import annotations

import contextlib
from collections.abc import Iterable, Sequence
from pathlib import Path

from muloco_runner.config import ConfigError, RunConfig
from muloco_runner.record import RecordError, RunFolder, RunResult
from sweeps.engine.work import Work
from sweeps.training.adapter import TRAINING
from sweeps.training.derive import run_of
from sweeps.training.model_names import model_name

_MOST_LINES = 12


def training_runs_of(works: Iterable[Work]) -> list[RunConfig]:
    """The training runs among `works` whose config can be read."""
    found = []
    for work in works:
        if work.adapter.reports == TRAINING.reports:
            with contextlib.suppress(ConfigError, RecordError):
                found.append(run_of(work))
    return found


def best_results(runs: Sequence[RunConfig], root: Path) -> list[str]:
    """Return a line for each algorithm and size, by size, then loss; none where nothing is finished."""
    best: dict[tuple[int, str], tuple[float, RunConfig, RunResult]] = {}
    for run in runs:
        result = _result(RunFolder.of(root, run.run_id))
        key = (run.num_params, run.algorithm)
        loss = None if result is None or result.diverged else result.validation_loss
        if result is not None and loss is not None and (key not in best or loss < best[key][0]):
            best[key] = (loss, run, result)
    order = sorted(best.items(), key=lambda item: (item[0][0], item[1][0]))
    lines = [
        f"best {algorithm} at {model_name(params)}: validation loss {loss:.4f}{_more(result)}, "
        f"B={run.global_batch_tokens:,}, lr={run.inner_optimizer.lr:.3g}, run {run.run_id}"
        for (params, algorithm), (loss, run, result) in order
    ]
    more = [f"and {len(lines) - _MOST_LINES} more: see the report"] if len(lines) > _MOST_LINES else []
    return [*lines[:_MOST_LINES], *more]


def _more(result: RunResult) -> str:
    """The loss in bits per byte, and those on named validation sets in nats; nothing of an older result."""
    per_byte = "" if result.bits_per_byte is None else f" ({result.bits_per_byte:.4f} bits per byte)"
    losses = {name: found["validation_loss"] for name, found in (result.named_validation or {}).items()}
    named = [f", {name} not finite" if loss is None else f", {name} {loss:.4f}" for name, loss in losses.items()]
    return per_byte + "".join(named)


def _result(folder: RunFolder) -> RunResult | None:
    try:
        return folder.read_result()
    except RecordError:
        return None
