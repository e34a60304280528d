"""A run as its folder holds it: config, result, weights, and the tokenizer of its data."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import torch

from muloco_runner.config import ConfigError, RunConfig
from muloco_runner.data.mixture import content_hash, read_parts
from muloco_runner.data.prepared.tokenizer import Bytes, Tokenizer, tokenizer_in
from muloco_runner.model.language_model import LanguageModel
from muloco_runner.model.transformer import Transformer
from muloco_runner.record import RecordError, RunFolder, RunResult, why_without_weights
from muloco_runner.training.checkpoints.run_weights import fill, model_of_run, read_weights_of_run


@dataclass(frozen=True)
class LoadedRun:
    """A run and the weights of one of its checkpoints."""

    folder: RunFolder
    config: RunConfig
    model: LanguageModel
    """In float32 and in evaluation mode."""
    step: int
    """Inner steps after which the model had these weights."""
    worker: int | None
    """Whose weights they are; None for the synchronised model, whose loss a result states."""
    result: RunResult | None
    """None for a run that has not trained to its end."""

    @property
    def transformer(self) -> Transformer:
        """The model where it is the built-in one; one from outside raises `ConfigError`."""
        if not isinstance(self.model, Transformer):
            raise ConfigError(
                f"{self.folder.path} holds a model from outside ({self.config.model.label}), and this is for the built-"
                "in one alone: muloco_runner.inference.load.load_run gives you the model itself"
            )
        return self.model

    @property
    def device(self) -> torch.device:
        """Where the model is."""
        return next(self.model.parameters()).device

    @cached_property
    def tokenizer(self) -> Tokenizer:
        """The tokenizer of the run's data. Data that is not where it was, or another by now, raises `ConfigError`."""
        data = self.config.data
        if data.source != "prepared":
            return Bytes()
        parts = read_parts(data)
        found = content_hash(parts)
        if data.content_hash not in (None, found):
            raise ConfigError(
                f"{self.folder.path} was trained on data {data.content_hash}, {', '.join(data.folders)} holds {found} "
                "now: put the first data back"
            )
        return tokenizer_in(parts[0].folder, parts[0].manifest.tokenizer)

    @property
    def end(self) -> int | None:
        """The token that ends a document; None without one."""
        return self.tokenizer.describe().end_of_document_id

    def encode(self, text: str) -> list[int]:
        """The tokens of the beginning of a document."""
        tokens: list[int] = self.tokenizer.encode([text.encode()])[0].tolist()
        return tokens if self.end is None else tokens[:-1]

    def decode(self, tokens: Sequence[int]) -> str:
        return self.tokenizer.decode(np.array(tokens, dtype=np.int64))


def load_run(
    folder: str | os.PathLike[str],
    *,
    step: int | None = None,
    worker: int | None = None,
    device: str | torch.device = "cpu",
) -> LoadedRun:
    """Load a run's config, result and weights.

    folder: ROOT/runs/RUN_ID. step: of which checkpoint; None for the newest. worker: whose own weights, from 0; None
    for the synchronised model (of DiLoCo and MuLoCo the anchor, of GPA the mean of the workers' x). device: where the
    model is put, as torch names it.

    Works while the run still trains as well. A folder that is no run's, weights that were not kept, and a damaged
    checkpoint raise `ConfigError`, which says what there is instead.
    """
    run_folder = RunFolder(folder)
    try:
        config, result = RunConfig.from_dict(run_folder.read_config()), run_folder.read_result()
    except RecordError as error:
        raise ConfigError(str(error)) from None
    if worker is not None and not 0 <= worker < config.num_workers:
        raise ConfigError(
            f"worker={worker}: the run has {config.num_workers} worker(s), numbered from 0: "
            "leave it out for the synchronised model"
        )
    step = _chosen_step(run_folder, result, step)
    model = model_of_run(run_folder, config, usable_device(device))
    fill(model, read_weights_of_run(run_folder, config, step, worker))
    return LoadedRun(run_folder, config, model.eval(), step, worker, result)


def usable_device(name: str | torch.device) -> torch.device:
    """The device of that name; one that torch cannot compute on here raises `ConfigError`."""
    try:
        device = torch.device(name)
        torch.zeros(1, device=device).item()  # "meta" has no values
    except Exception as error:  # each of torch's kinds of device raises others where it is not there
        why = (str(error).splitlines() or [type(error).__name__])[0]
        raise ConfigError(
            f"device {name}: torch cannot compute there: {why}: give cpu, or a GPU that is here"
        ) from None
    return device


def _chosen_step(folder: RunFolder, result: RunResult | None, step: int | None) -> int:
    """The step of the checkpoint that is meant; one that is not there raises `ConfigError`."""
    steps = folder.checkpoint_steps()
    if not steps:
        raise ConfigError(f"{folder.path} {why_without_weights(result)}")
    if step is None:
        return steps[-1]
    if step not in steps:
        raise ConfigError(f"step={step}: {folder.path} holds checkpoints of step {', '.join(map(str, steps))}")
    return step
