"""The names of models under conf/model, by their number of parameters: what people type, and want to read again."""

from __future__ import annotations

import contextlib
import dataclasses
from functools import cache
from pathlib import Path
from typing import Any

from omegaconf import OmegaConf

from muloco_runner.config import ConfigError, ModelConfig
from muloco_runner.paths import config_dir
from sweeps.formatting import size


def model_name(num_params: int) -> str:
    """Return the name of the model of that size, or the size where none has it (with another vocabulary)."""
    return _names().get(num_params) or size(num_params)


@cache
def _names() -> dict[int, str]:
    folder = config_dir() / "model"
    names: dict[int, str] = {}
    for path in sorted(folder.glob("*.yaml")):
        # A file that is no model by itself is the base of others.
        with contextlib.suppress(ConfigError, TypeError):
            names.setdefault(ModelConfig(**_values(folder, path.stem)).num_params, path.stem)
    return names


def _values(folder: Path, name: str) -> dict[str, Any]:
    own = OmegaConf.to_container(OmegaConf.load(folder / f"{name}.yaml"))
    assert isinstance(own, dict)
    values: dict[str, Any] = {}
    for base in own.pop("defaults", []):
        # Others are the dataclass's own defaults, or the file itself.
        if (folder / f"{base}.yaml").exists():
            values |= _values(folder, base)
    known = {field.name for field in dataclasses.fields(ModelConfig)}
    return {**values, **{str(key): value for key, value in own.items() if key in known}}
