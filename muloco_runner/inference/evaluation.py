"""Losses and task scores of a run's weights, kept in its folder so that none is computed twice.

RUN/evaluations/step-00000184/validation.json
RUN/evaluations/step-00000184/validation-NAME-HASH.json   of a named set, by the first digits of its content's hash
RUN/evaluations/step-00000184/TASK.json          of --limit N: TASK-limit-N.json; of --worker K: below worker-K
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from muloco_runner.config import ConfigError, RunConfig
from muloco_runner.data.batches import Batch, evaluation_batch, validation_batch
from muloco_runner.data.corpus import load_corpus
from muloco_runner.data.validation_sets import ValidationSet, check_validation_sets
from muloco_runner.inference.load import LoadedRun
from muloco_runner.inference.shared_work import Ranks
from muloco_runner.record import write_atomically
from muloco_runner.targets import make_importable
from muloco_runner.training.evaluate import bits_per_byte, evaluate, of_set
from muloco_runner.training.precision import DTYPES

FORMAT_VERSION = 1
_OWN_KEYS = ("validation_loss", "bits_per_byte", "validation_tokens", "content_hash")


def validation(loaded: LoadedRun, sets: Mapping[str, str] | None = None, ranks: Ranks | None = None) -> dict[str, Any]:
    """Loss on the run's held-out set, nats per token and bits per byte, and under `named` on each named set.

    sets: further ones, paths by names, besides those of `data.validation`, which may be said to lie elsewhere now.
    ranks: processes that share the work; all call this. Other data by now, and what cannot be read, raise
    `ConfigError`.
    """
    ranks = ranks or Ranks()
    named = {name: _of_set(loaded, name, one, ranks) for name, one in _named_sets(loaded.config, sets or {}).items()}
    found = _kept(_folder(loaded) / "validation.json", loaded, ranks, lambda: _main_loss(loaded, ranks))
    return {**found, "named": named} if named else found


def tasks(
    loaded: LoadedRun,
    names: Sequence[str],
    include: Path | None,
    limit: int | None,
    batch: int,
    ranks: Ranks | None = None,
) -> dict[str, Any]:
    """Scores of tasks of lm-evaluation-harness by name; `include` is a folder of tasks' own YAML files.

    Scores that the run's folder holds are taken from there, unless files of `include` have changed. ranks: processes
    that share the requests; all call this. Without the package, and for a name that is no task, `ConfigError`.
    """
    ranks = ranks or Ranks()
    digest = None if include is None else _digest_of_tasks(include)
    files = {
        name: _folder(loaded) / (f"{name}.json" if limit is None else f"{name}-limit-{limit}.json") for name in names
    }
    there = ranks.agreed(lambda: {name: _read(file) for name, file in files.items()})
    found = {name: known for name, known in there.items() if known is not None and known.get("include") == digest}
    missing = [name for name in names if name not in found]
    if missing:
        from muloco_runner.inference.lm_eval_model import scores_of

        versions, scores = scores_of(loaded, missing, include, limit, batch, ranks)
        for name in missing:
            values = {"limit": limit, "include": digest, "versions": versions, **scores[name]}
            found[name] = _write(files[name], loaded, ranks, values)
    return {name: found[name] for name in names}


def _named_sets(run: RunConfig, given: Mapping[str, str]) -> dict[str, ValidationSet]:
    """The run's own sets, wherever they are said to lie, which must be what they were, and the given ones."""
    own = run.data.validation or {}
    found: dict[str, ValidationSet] = {}
    for part, content in (
        ({name: given.get(name, path) for name, path in own.items()}, run.data.validation_hash),
        ({name: path for name, path in given.items() if name not in own}, None),
    ):
        if part:
            data = dataclasses.replace(run.data, validation=part, validation_hash=content)
            found |= check_validation_sets(dataclasses.replace(run, data=data))
    return found


def _of_set(loaded: LoadedRun, name: str, one: ValidationSet, ranks: Ranks) -> dict[str, Any]:
    def compute() -> dict[str, Any]:
        batch = evaluation_batch(one.split, loaded.config, loaded.device)
        return {"set": name, **of_set(_loss(loaded, batch, ranks), batch, one)}

    file = _folder(loaded) / f"validation-{name}-{one.content_hash[:8]}.json"
    found = _kept(file, loaded, ranks, compute)
    return {key: found[key] for key in _OWN_KEYS}


def _main_loss(loaded: LoadedRun, ranks: Ranks) -> dict[str, Any]:
    run = loaded.config
    make_importable(run, loaded.folder)
    corpus = load_corpus(run.data, by_path=True)
    header = loaded.folder.read_header()
    for expected in (run.data.content_hash, header and header.corpus_hash):
        if expected not in (None, corpus.content_hash):
            raise ConfigError(
                f"{loaded.folder.path} was trained on data {expected}, the data there is now is {corpus.content_hash}: "
                "put the first data back"
            )
    batch = validation_batch(corpus, run, loaded.device)
    loss = _loss(loaded, batch, ranks)
    return {
        "validation_loss": loss,
        "bits_per_byte": bits_per_byte(loss, corpus.bytes_per_token),
        "validation_tokens": batch.tokens_BT.numel(),
    }


def _loss(loaded: LoadedRun, batch: Batch, ranks: Ranks) -> float:
    loss = evaluate(loaded.model, batch, DTYPES[loaded.config.precision], ranks.communicator)
    loaded.model.eval()
    return loss


def _digest_of_tasks(folder: Path) -> str:
    """Content of the files that define tasks, 16 hex digits; no such folder, or none of them, raises `ConfigError`."""
    files = sorted(file for file in folder.rglob("*") if file.suffix in (".yaml", ".yml", ".py"))
    if not files:
        raise ConfigError(f"--include {folder}: no folder with tasks' YAML files: correct it, or leave it out")
    content = hashlib.sha256()
    for file in files:
        content.update(f"{file.relative_to(folder)}\0".encode() + hashlib.sha256(file.read_bytes()).digest())
    return content.hexdigest()[:16]


def _folder(loaded: LoadedRun) -> Path:
    folder = loaded.folder.evaluations_at(loaded.step)
    return folder if loaded.worker is None else folder / f"worker-{loaded.worker}"


def _kept(file: Path, loaded: LoadedRun, ranks: Ranks, compute: Callable[[], dict[str, Any]]) -> dict[str, Any]:
    """What the file holds, or what is computed, by all ranks, and held there from now on."""
    known = ranks.agreed(lambda: _read(file))
    return known if known is not None else _write(file, loaded, ranks, compute())


def _read(file: Path) -> dict[str, Any] | None:
    try:
        values: dict[str, Any] = json.loads(file.read_text())
    except (FileNotFoundError, ValueError):
        return None
    return values if values.get("format_version") == FORMAT_VERSION else None


def _write(file: Path, loaded: LoadedRun, ranks: Ranks, values: dict[str, Any]) -> dict[str, Any]:
    run = {
        "run_id": loaded.config.run_id,
        "step": loaded.step,
        "tokens": loaded.step * loaded.config.global_batch_tokens,
    }
    values = {"format_version": FORMAT_VERSION, **run, "torch": torch.__version__, **values}
    if ranks.rank == 0:
        write_atomically(file, json.dumps(values, indent=1) + "\n")
    return values
