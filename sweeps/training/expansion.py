"""A sweep of training runs: the points of its grids to the list of runs they mean.

Runs that come out the same (by `run_id`) are one run.
"""

from __future__ import annotations

import contextlib
import copy
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from muloco_runner.compose import compose_tree, one_line
from muloco_runner.config import ConfigError, RunConfig
from muloco_runner.config.keys import no_such_setting
from muloco_runner.config.names import key_now, names_now, warn_renamed
from muloco_runner.paths import config_groups
from sweeps.grid import Point, check_not_empty, check_size, read_grids


def expand(
    sweep: Mapping[str, Any],
    overrides: Mapping[str, list[Any]],
    base: Sequence[str] = (),
    allow_large: bool = False,
) -> list[RunConfig]:
    """The runs of a sweep, each once, in the order of the file. `base` are overrides of every run.

    Names of files (model=150m) are composed once for each combination that occurs; values are set on a copy of that.
    """
    grids = read_grids(sweep, overrides)
    check_size(grids, allow_large, "give --allow-large (hydra.sweeper.allow_large=true)")
    composer = _Composer(set(config_groups()), base)
    points = [(point, composer.values_of(point)) for grid in grids for point in grid.points()]
    _count_parameters([values["model"] for _, values in points])
    runs: dict[str, RunConfig] = {}
    for point, values in points:
        with _at(point):
            run = RunConfig.from_dict(values)
        runs.setdefault(run.run_id, run)
    check_not_empty(list(runs))
    return list(runs.values())


def _count_parameters(models: list[dict[str, Any]]) -> None:
    """Gives models from outside, and only those, what is found by building them, all of them at once."""
    of_targets = [model for model in models if "_target_" in model]
    if of_targets:
        from muloco_runner.targets import facts_of

        for model, facts in zip(of_targets, facts_of(of_targets), strict=True):
            model["facts"] = facts


@contextlib.contextmanager
def _at(point: Point) -> Iterator[None]:
    """Mistakes within say at which point of the sweep they are."""
    try:
        yield
    except ConfigError as error:
        described = ", ".join(f"{key}={value}" for key, value in point.items())
        raise ConfigError(f"sweep: at {described}: {error}") from error


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
