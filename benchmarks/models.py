"""Models by their names under conf/model, read without Hydra, which a GPU's machine may lack."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import yaml

from muloco_runner.config import ConfigError, ModelConfig

FOLDER = Path(__file__).parents[1] / "conf" / "model"


def model_named(name: str) -> ModelConfig:
    """As Hydra composes it: the values of conf/model/NAME.yaml over those of the file that it names as its default."""
    path = FOLDER / f"{name}.yaml"
    if not path.is_file():
        names = sorted(file.stem for file in FOLDER.glob("*.yaml"))
        raise ConfigError(f"model {name!r}: must be one of {', '.join(names)}")
    values = yaml.safe_load(path.read_text())
    (base,) = values.pop("defaults")
    inherited = {} if base == "base_model" else dataclasses.asdict(model_named(base))
    return ModelConfig(**{**inherited, **values})
