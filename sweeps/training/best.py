"""The best finished run of each algorithm and size, for the last lines of a launch. How sure that is, reports say."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from muloco_runner.config import RunConfig
from muloco_runner.record import RecordError, RunFolder
from sweeps.training.model_names import model_name

_MOST_LINES = 12


def best_results(runs: Sequence[RunConfig], root: Path) -> list[str]:
    """Return a line for each algorithm and size, by size, then loss; none where nothing is finished."""
    best: dict[tuple[int, str], tuple[float, RunConfig]] = {}
    for run in runs:
        loss = _loss(RunFolder.of(root, run.run_id))
        key = (run.num_params, run.algorithm)
        if loss is not None and (key not in best or loss < best[key][0]):
            best[key] = (loss, run)
    order = sorted(best.items(), key=lambda item: (item[0][0], item[1][0]))
    lines = [
        f"best {algorithm} at {model_name(params)}: validation loss {loss:.4f}, B={run.global_batch_tokens:,}, "
        f"lr={run.inner_optimizer.lr:.3g}, run {run.run_id}"
        for (params, algorithm), (loss, run) in order
    ]
    more = [f"and {len(lines) - _MOST_LINES} more: see the report"] if len(lines) > _MOST_LINES else []
    return [*lines[:_MOST_LINES], *more]


def _loss(folder: RunFolder) -> float | None:
    try:
        result = folder.read_result()
    except RecordError:
        return None
    return result.validation_loss if result is not None and not result.diverged else None
