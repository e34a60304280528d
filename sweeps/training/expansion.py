"""A sweep of training runs: the points of its grids to the list of runs they mean.

Runs that come out the same (by `run_id`) are one run. A point with the key `like`, a run's id, is that run, as its
folder below the root has it, with the point's other values.
"""

from __future__ import annotations

import contextlib
import copy
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from muloco_runner.compose import compose_tree, one_line
from muloco_runner.config import ConfigError, RunConfig, TargetModelConfig
from muloco_runner.config.keys import no_such_setting
from muloco_runner.config.names import key_now, names_now, warn_renamed
from muloco_runner.paths import config_groups
from muloco_runner.record import RecordError, RunFolder
from sweeps.grid import Point, check_not_empty, check_size, read_grids

LIKE = "like"
"""Key of a point: the id of the run that it differs from in the point's other keys."""


def expand(
    sweep: Mapping[str, Any],
    overrides: Mapping[str, list[Any]],
    base: Sequence[str] = (),
    allow_large: bool = False,
    root: Path = Path("results"),
) -> list[RunConfig]:
    """The runs of a sweep, each once, in the order of the file. `base` are overrides of every run.

    Names of files (model=150m) are composed once for each combination that occurs; values are set on a copy of that.
    `root`: where runs that points name by `like` lie.
    """
    grids = read_grids(sweep, overrides)
    check_size(grids, allow_large, "give --allow-large (hydra.sweeper.allow_large=true)")
    groups = set(config_groups())
    composer, known = _Composer(groups, base), _Known(groups, root)
    points = [
        (point, None if LIKE in point else composer.values_of(point)) for grid in grids for point in grid.points()
    ]
    for part in ("model", "data"):
        _add_facts(part, [values[part] for _, values in points if values is not None])
    runs: dict[str, RunConfig] = {}
    for point, values in points:
        with _at(point):
            run = RunConfig.from_dict(values) if values is not None else known.run_of(point)
        runs.setdefault(run.run_id, run)
    check_not_empty(list(runs))
    return list(runs.values())


def _add_facts(part: str, configs: list[dict[str, Any]]) -> None:
    """Gives models or data from outside, and only those, what is found by trying them, all of them at once."""
    of_targets = [config for config in configs if "_target_" in config]
    if of_targets:
        from muloco_runner.targets import facts_of

        for config, facts in zip(of_targets, facts_of(part, of_targets), strict=True):
            config["facts"] = facts


@contextlib.contextmanager
def _at(point: Point) -> Iterator[None]:
    """Mistakes within say at which point of the sweep they are."""
    try:
        yield
    except ConfigError as error:
        described = ", ".join(f"{key}={value}" for key, value in point.items())
        raise ConfigError(f"sweep: at {described}: {error}") from error


class _Known:
    """Runs that differ from ones below the root in a few values."""

    def __init__(self, groups: set[str], root: Path) -> None:
        self.groups, self.root = groups, root
        self.read: dict[str, RunConfig] = {}

    def run_of(self, point: Point) -> RunConfig:
        values = {key_now(key, warn_renamed): value for key, value in point.items() if key != LIKE}
        like = self._like(point[LIKE])
        for key in values:
            if key in self.groups:
                raise ConfigError(
                    f"{key} names a file of choices, and {LIKE} is a run that has made its own: give single values, "
                    f"such as {key}.KEY, or drop {LIKE}"
                )
            if key.startswith("model.") and isinstance(like.model, TargetModelConfig):
                raise ConfigError(f"{key}: {LIKE} is a run of a model of your own, whose size is found by building it")
        return like.with_values(values)

    def _like(self, name: Any) -> RunConfig:
        if not isinstance(name, str):
            raise ConfigError(f"{LIKE}={name}: write a run's id in quotes: some look like numbers")
        if name not in self.read:
            folder = RunFolder.of(self.root, name)
            if not folder.path.is_dir():
                raise ConfigError(f"{LIKE}={name}: there is no such run under {self.root / 'runs'}: say root=FOLDER")
            try:
                self.read[name] = RunConfig.from_dict(folder.read_config())
            except (RecordError, OSError) as error:
                raise ConfigError(f"{LIKE}={name}: its config is not readable: {error}") from None
        return self.read[name]


class _Composer:
    """Points to runs. Composing is slow (tens of milliseconds), so each combination of file names is composed once,
    and each value is parsed once for each of those.
    """

    def __init__(self, groups: set[str], base: Sequence[str]) -> None:
        self.groups, self.base = groups, base
        self.trees: dict[tuple[tuple[str, Any], ...], tuple[DictConfig, dict[str, Any]]] = {}
        self.parsed: dict[tuple[Any, ...], Any] = {}

    def values_of(self, point: Point) -> dict[str, Any]:
        """A run's values, not yet checked."""
        names = tuple((key, value) for key, value in point.items() if key in self.groups)
        values = {key: value for key, value in point.items() if key not in self.groups}
        with _at(point):
            if names not in self.trees:
                tree = compose_tree([*self.base, *(f"{key}={value}" for key, value in names)])
                self.trees[names] = (tree, _plain_run(tree))
            tree, plain = self.trees[names]
            plain = copy.deepcopy(plain)
            for key, value in values.items():
                path = key_now(key, warn_renamed)
                _refuse_unknown(plain, path)
                _set(plain, path, self._parse(names, tree, path, value))
            return names_now(plain, warn_renamed)

    def _parse(self, names: tuple[tuple[str, Any], ...], tree: DictConfig, key: str, value: Any) -> Any:
        """`value` as the schema's type."""
        key_and_value = (names, key, type(value), str(value))
        if key_and_value not in self.parsed:
            # What else the tree holds makes no difference, unless the value refers to it.
            changed = copy.deepcopy(tree) if "${" in str(value) else tree
            try:
                OmegaConf.update(changed, key, value)
            except OmegaConfBaseException as error:
                raise ConfigError(one_line(error)) from error
            self.parsed[key_and_value] = OmegaConf.select(changed, key)
        return self.parsed[key_and_value]


def _plain_run(tree: DictConfig) -> dict[str, Any]:
    """The run's part of a composed tree, not yet checked: the values of a point may set right what is wrong."""
    values = OmegaConf.to_container(tree, resolve=True)
    assert isinstance(values, dict)
    known = set(RunConfig.__dataclass_fields__)
    return {str(key): value for key, value in values.items() if key in known}


def _refuse_unknown(values: dict[str, Any], key: str) -> None:
    there: Any = values
    for name in key.split("."):
        if not isinstance(there, dict) or name not in there:
            raise ConfigError(no_such_setting(key, RunConfig))
        there = there[name]


def _set(values: dict[str, Any], key: str, value: Any) -> None:
    *path, last = key.split(".")
    for name in path:
        values = values[name]
    values[last] = value
