"""The names of models under conf/model, by their number of parameters: what people type, and want to read again."""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Callable, Mapping
from functools import cache
from pathlib import Path
from typing import Any

from omegaconf import OmegaConf

from muloco_runner.config import ConfigError, ModelConfig
from muloco_runner.paths import files_in_folders, files_of
from sweeps.formatting import size


def model_name(num_params: int) -> str:
    """Return the name of the model of that size, or the size where none has it (with another vocabulary)."""
    # What other packages offer, and models of classes from outside, take longer to look through.
    return _plain_names().get(num_params) or _names().get(num_params) or size(num_params)


@cache
def _plain_names() -> dict[int, str]:
    """Those of the folders' files that name no class."""
    return _by_size(files_in_folders("model"), lambda name: None)


@cache
def _names() -> dict[int, str]:
    return _by_size(files_of("model"), _params_of_own)


def _by_size(files: Mapping[str, Path], params_of_own: Callable[[str], int | None]) -> dict[int, str]:
    names: dict[int, str] = {}
    for name in sorted(files):
        # A file that is no model by itself is the base of others.
        with contextlib.suppress(ConfigError, TypeError):
            values = _values(files, name)
            count = params_of_own(name) if "_target_" in values else ModelConfig(**values).num_params
            if count is not None:
                names.setdefault(count, name)
    return names


def _params_of_own(name: str) -> int | None:
    """Parameters of a model from outside; None where nothing has built it yet."""
    from muloco_runner.compose import compose_tree
    from muloco_runner.targets import known_facts

    values = OmegaConf.to_container(compose_tree([f"model={name}"]).model, resolve=True)
    facts = known_facts("model", values)  # type: ignore[arg-type]
    return int(facts["num_params"]) if facts else None


def _values(files: Mapping[str, Path], name: str) -> dict[str, Any]:
    own = _read(files[name])
    values: dict[str, Any] = {}
    for base in own.get("defaults", []):
        # Others are the dataclass's own defaults, or the file itself.
        if base in files:
            values |= _values(files, base)
    known = {field.name for field in dataclasses.fields(ModelConfig)} | {"_target_"}
    return {**values, **{str(key): value for key, value in own.items() if key in known}}


@cache
def _read(file: Path) -> Mapping[Any, Any]:
    """Of many models the base is one."""
    values = OmegaConf.to_container(OmegaConf.load(file))
    assert isinstance(values, dict)
    return values
