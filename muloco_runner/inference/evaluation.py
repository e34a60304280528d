"""Losses and task scores of a run's weights, kept in its folder so that none is computed twice.

RUN/evaluations/step-00000184/validation.json
RUN/evaluations/step-00000184/TASK.json          of --limit N: TASK-limit-N.json; of --worker K: below worker-K
"""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from muloco_runner.config import ConfigError
from muloco_runner.data.batches import validation_batch
from muloco_runner.data.corpus import load_corpus
from muloco_runner.distributed.communicator import Communicator
from muloco_runner.distributed.topology import Topology
from muloco_runner.inference.load import LoadedRun
from muloco_runner.record import checkpoint_name, write_atomically
from muloco_runner.training.evaluate import evaluate
from muloco_runner.training.precision import DTYPES

FORMAT_VERSION = 1


def validation(loaded: LoadedRun) -> dict[str, Any]:
    """Loss on the run's held-out set, nats per token and bits per byte; other data by now raises `ConfigError`."""
    known = _read(file := _folder(loaded) / "validation.json")
    if known is not None:
        return known
    run = loaded.config
    corpus = load_corpus(run.data, by_path=True)
    header = loaded.folder.read_header()
    for expected in (run.data.content_hash, header and header.corpus_hash):
        if expected not in (None, corpus.content_hash):
            raise ConfigError(
                f"{loaded.folder.path} was trained on data {expected}, the data there is now is {corpus.content_hash}: "
                "put the first data back"
            )
    device = loaded.device
    batch = validation_batch(corpus, run, device)
    loss = evaluate(loaded.model, batch, DTYPES[run.precision], Communicator(Topology(1)))
    loaded.model.eval()
    found = {
        "validation_loss": loss,
        "bits_per_byte": loss / math.log(2) / corpus.bytes_per_token,
        "validation_tokens": batch.tokens_BT.numel(),
    }
    return _write(file, loaded, found)


def tasks(
    loaded: LoadedRun, names: Sequence[str], include: Path | None, limit: int | None, batch: int
) -> dict[str, Any]:
    """Scores of tasks of lm-evaluation-harness by name; `include` is a folder of tasks' own YAML files.

    Scores that the run's folder holds are taken from there. Without the package, and for a name that is no task,
    `ConfigError`.
    """
    files = {
        name: _folder(loaded) / (f"{name}.json" if limit is None else f"{name}-limit-{limit}.json") for name in names
    }
    found = {name: known for name, file in files.items() if (known := _read(file)) is not None}
    missing = [name for name in names if name not in found]
    if missing:
        from muloco_runner.inference.lm_eval_model import scores_of

        versions, scores = scores_of(loaded, missing, include, limit, batch)
        for name in missing:
            found[name] = _write(files[name], loaded, {"limit": limit, "versions": versions, **scores[name]})
    return {name: found[name] for name in names}


def _folder(loaded: LoadedRun) -> Path:
    folder = loaded.folder.path / "evaluations" / checkpoint_name(loaded.step)
    return folder if loaded.worker is None else folder / f"worker-{loaded.worker}"


def _read(file: Path) -> dict[str, Any] | None:
    try:
        values: dict[str, Any] = json.loads(file.read_text())
    except (FileNotFoundError, ValueError):
        return None
    return values if values.get("format_version") == FORMAT_VERSION else None


def _write(file: Path, loaded: LoadedRun, values: dict[str, Any]) -> dict[str, Any]:
    run = {
        "run_id": loaded.config.run_id,
        "step": loaded.step,
        "tokens": loaded.step * loaded.config.global_batch_tokens,
    }
    values = {"format_version": FORMAT_VERSION, **run, "torch": torch.__version__, **values}
    write_atomically(file, json.dumps(values, indent=1) + "\n")
    return values
