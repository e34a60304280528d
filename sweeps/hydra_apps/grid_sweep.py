"""Expands a sweep file and a command line to the overrides of each job, for any Hydra application.

A job's folder is named by its overrides, so that it keeps its name when the sweep grows or is narrowed.
"""

from __future__ import annotations

import hashlib
import importlib
import json
import logging
import re
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Override, Quote, QuotedString
from hydra.core.utils import JobReturn
from hydra.errors import CompactHydraException
from omegaconf import OmegaConf

from muloco_runner.config import ConfigError
from sweeps.grid import Grid, check_not_empty, check_size, read_grids
from sweeps.hydra_apps.launch import hydra_errors
from sweeps.hydra_apps.state_folder import SWEEP, is_by_position

if TYPE_CHECKING:
    from hydra_plugins.sweeps.grid_sweeper import GridSweeper

log = logging.getLogger(__name__)
_PLAIN = re.compile(r"[A-Za-z_][\w./-]*")
_NOT_TEXT = re.compile(r"true|false|null|inf|nan", re.IGNORECASE)
_MANY = 100
"""Composing more configs than this takes seconds, which is announced."""


def sweep(sweeper: GridSweeper, arguments: Sequence[str]) -> list[Sequence[JobReturn]] | None:
    """Launch all jobs; raise what the first failed one raised. Return None for one in the background."""
    config, context, launcher = sweeper.config, sweeper.hydra_context, sweeper.launcher
    assert config is not None
    assert context is not None
    assert launcher is not None
    detach = getattr(launcher, "detach", None)
    if sweeper.detach and detach is None:
        raise CompactHydraException(
            "hydra.sweeper.detach needs a launcher that can run in the background: hydra/launcher=quota"
        )
    parser = OverridesParser.create(config_loader=context.config_loader)
    with hydra_errors():
        swept = _mapping(sweeper.sweep_config or config.get(SWEEP))
        jobs = job_overrides(swept, parser, arguments, sweeper.allow_large)
    if is_by_position(config):
        jobs = [[*overrides, f"hydra.sweep.subdir={content_name(overrides)}"] for overrides in jobs]
    if len(jobs) > _MANY:
        log.info(f"Composing {len(jobs)} configs, to find mistakes before anything starts")
    sweeper.validate_batch_is_legal(jobs)
    folder = Path(config.hydra.sweep.dir)
    folder.mkdir(parents=True, exist_ok=True)
    OmegaConf.save(config, folder / "multirun.yaml")
    if sweeper.detach:
        assert detach is not None
        detach(jobs)
        return None
    returns = launcher.launch(jobs, initial_job_idx=0)
    for one in returns:
        _ = one.return_value
    return [returns]


def hand_over(entry: str, arguments: Sequence[str], detach: bool, allow_large: bool) -> None:
    """Hand the sweep to an application that launches its sweeps itself. A code other than 0 ends this process."""
    module, _, function = entry.partition(":")
    code = getattr(importlib.import_module(module), function)(arguments, detach, allow_large)
    if code:
        sys.exit(code)


def job_overrides(
    sweep: Mapping[str, Any] | None, parser: OverridesParser, arguments: Sequence[str], allow_large: bool
) -> list[list[str]]:
    """Return the overrides of each job once, in the order of the file. Mistakes raise `ConfigError`."""
    sweep = {"grids": [{}]} if sweep is None else sweep
    spelling = {key.lstrip("+"): key for grid in read_grids(sweep, {}) for key in _keys(grid)}
    narrowing: dict[str, list[Any]] = {}
    texts: dict[tuple[str, str], str] = {}
    for_all: list[str] = []
    for override in parser.parse_overrides(list(arguments)):
        if override.key_or_group == SWEEP:
            continue
        if override.is_delete():
            for_all.append(override.input_line or "")
            continue
        key = spelling.get(_key(override).lstrip("+"), _key(override))
        narrowing[key] = []
        for text in _elements(override):
            (parsed,) = parser.parse_overrides([f"key={text}"])
            value = parsed.value()
            narrowing[key].append(value)
            texts[key, repr(value)] = text
    grids = read_grids(sweep, narrowing)
    _check_size(grids, allow_large)
    found: dict[tuple[str, ...], None] = {}
    for grid in grids:
        for point in grid.points():
            overrides = [f"{key}={texts.get((key, repr(value))) or as_text(value)}" for key, value in point.items()]
            found.setdefault((*for_all, *overrides))
    check_not_empty(list(found))
    return [list(overrides) for overrides in found]


def as_text(value: Any) -> str:
    """Return a value of a file as text for the command line: parsed again, it is the same."""
    if value is None or isinstance(value, bool):
        return "null" if value is None else str(value).lower()
    if isinstance(value, str):
        if _PLAIN.fullmatch(value) and not _NOT_TEXT.fullmatch(value):
            return value
        return QuotedString(value, Quote.single).with_quotes()
    if isinstance(value, Mapping):
        return "{" + ",".join(f"{as_text(key)}:{as_text(item)}" for key, item in value.items()) + "}"
    if isinstance(value, Sequence):
        return "[" + ",".join(map(as_text, value)) + "]"
    return repr(value)


def content_name(overrides: Sequence[str]) -> str:
    """Return 12 hex digits, the same for any order of the overrides."""
    return hashlib.sha256(json.dumps(sorted(overrides)).encode()).hexdigest()[:12]


def _elements(override: Override) -> list[str]:
    """Return the override's values, each as it was typed."""
    if not override.is_sweep_override():
        return [override.get_value_element_as_str()]
    if not override.is_discrete_sweep():
        raise ConfigError(f"{override.input_line}: a grid takes lists and ranges, no interval: give its values")
    return [str(text) for text in override.sweep_string_iterator()]


def _key(override: Override) -> str:
    key: str = override.get_key_element()
    return key


def _keys(grid: Grid) -> list[str]:
    return [*grid.fixed, *grid.zip, *grid.product]


def _check_size(grids: Sequence[Grid], allow_large: bool) -> None:
    """Refuse a sweep that is too large; on a terminal the user may confirm it."""
    try:
        check_size(grids, allow_large, "give hydra.sweeper.allow_large=true")
    except ConfigError as error:
        if not sys.stdin.isatty() or input(f"{error}\nContinue anyway? [y/N] ").strip().lower() not in ("y", "yes"):
            raise


def _mapping(node: Any) -> Mapping[str, Any] | None:
    if node is None:
        return None
    values = OmegaConf.to_container(node, resolve=True) if OmegaConf.is_config(node) else node
    if not isinstance(values, dict):
        raise ConfigError(
            f"hydra.sweeper.sweep={values!r}: give the keys of a sweep, or +sweep=NAME for a file of them"
        )
    return {str(key): value for key, value in values.items()}
