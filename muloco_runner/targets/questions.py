"""What is to be tried of a run's targets, and a key for each question: the same for what cannot turn out otherwise."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from functools import cache
from importlib import metadata
from typing import Any, Literal, NamedTuple

from muloco_runner.config import (
    FromOutside,
    RunConfig,
    TargetCompressionConfig,
    TargetConfig,
    TargetDataConfig,
    TargetModelConfig,
    TargetOuterConfig,
    TargetScheduleConfig,
)
from muloco_runner.config.plain import from_plain, to_plain
from muloco_runner.targets.source_code import Source, package_of

_GENERATION = 4
"""Of what trials look for: answers of earlier ones do not count."""

Trial = Literal["rates", "size", "whole"]
"""Whether it can be built at the run's rates; for a model of the run's size; all that is looked for."""


class Question(NamedTuple):
    """What `muloco_runner.trials` is to try."""

    part: str
    """Of a run."""
    trial: Trial
    values: dict[str, Any]
    """The part's own, or those of the run."""


def questions_of(run: RunConfig, sources: Mapping[str, Source]) -> dict[str, Question]:
    """What is to be tried for a run, by key. A key is the same for what cannot turn out otherwise."""
    asked: dict[str, Question] = {}
    for part, config in run.from_outside.items():
        match config:
            case TargetModelConfig() | TargetDataConfig():
                values = to_plain(without_facts(part, to_plain(config)))
                asked[key_of_facts(config, sources)] = Question(part, "whole", values)
            case TargetConfig():
                whole = _optimizer_key(run, sources)
                rates = _key(whole, "rates", config.lr, run.weight_decay)
                size = _key(whole, "size", run.model.shapes, run.model.num_layers)
                values = run.to_dict()
                asked[rates] = Question(part, "rates", values)
                asked[size] = Question(part, "size", values)
                asked[whole] = Question(part, "whole", values)
            case TargetScheduleConfig():
                steps = run.num_steps, run.warmup_steps
                key = _key(part, config.targets, config.arguments, steps, _hashes(config, sources))
                asked[key] = Question(part, "whole", run.to_dict())
            case TargetOuterConfig() | TargetCompressionConfig():
                values = {name: value for name, value in to_plain(config).items() if name not in _NOT_TRIED}
                key = _key(part, values, _hashes(config, sources))
                if isinstance(config, TargetOuterConfig):
                    asked[_key(key, "rates", config.lr)] = Question(part, "rates", to_plain(config))
                asked[key] = Question(part, "whole", to_plain(config))
            case _:
                raise AssertionError(part)
    return asked


_NOT_TRIED = ("lr", "label", "version", "error_feedback", "exact_embeddings", "exchange")
"""Settings of parts that make no difference to a whole trial."""


def _hashes(config: FromOutside, sources: Mapping[str, Source]) -> dict[str, str]:
    return {package: sources[package].hash for package in map(package_of, config.targets)}


def without_facts(part: str, values: Mapping[str, Any]) -> TargetModelConfig | TargetDataConfig:
    cls = {"model": TargetModelConfig, "data": TargetDataConfig}[part]
    known = {key: value for key, value in values.items() if key not in ("facts", "content_hash")}
    config: TargetModelConfig | TargetDataConfig = from_plain(cls, known, {}, part)
    return config


def key_of_facts(config: TargetModelConfig | TargetDataConfig, sources: Mapping[str, Source]) -> str:
    part = "model" if isinstance(config, TargetModelConfig) else "data"
    values = {key: value for key, value in to_plain(config).items() if key not in _NOT_IN_FACTS[part]}
    return _key(part, values, _hashes(config, sources))


_NOT_IN_FACTS = {
    "model": ("label", "version", "flops_per_token", "facts"),
    "data": ("label", "validation_tokens", "content_hash", "facts"),
}
"""Settings that make no difference to what is found. The version of data does: a function may read files, which are in
no hash of its code."""


def _optimizer_key(run: RunConfig, sources: Mapping[str, Source]) -> str:
    """Rates are not in it."""
    inner = run.inner_optimizer
    assert isinstance(inner, TargetConfig)
    model = key_of_facts(run.model, sources) if isinstance(run.model, TargetModelConfig) else None
    own = _hashes(inner, sources)
    decays = run.weight_decay != 0
    # Patterns may name layers.
    layers = run.model.num_layers if isinstance(inner.applies_to, dict) and model is None else None
    return _key(
        inner.targets,
        inner.arguments,
        inner.rest,
        inner.applies_to,
        own,
        decays,
        run.method.name,
        model,
        layers,
        run.num_workers > 1,
    )


def _key(*values: Any) -> str:
    text = json.dumps([*values, *_versions(), _GENERATION], sort_keys=True, default=str)
    return hashlib.sha256(text.encode()).hexdigest()[:24]


@cache
def _versions() -> tuple[str, str]:
    return metadata.version("torch"), metadata.version("muloco-sweeps")
