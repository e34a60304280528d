"""The sweep language: a few lines of YAML to the list of runs they mean.

    fixed: {tokens_per_parameter: 20}            # holds in every grid of the file
    grids:                                       # a union: one grid after the other
      - product:                                 # every combination
          algorithm: [ddp_muon, muloco]
          global_batch_tokens: pow2(15..18)      # 2^15, 2^16, 2^17, 2^18
          inner_optimizer.lr: sqrt2(-12..-9)     # 2^-6, 2^-5.5, 2^-5, 2^-4.5
        zip:                                     # side by side, as one more factor of the product
          model: [150m, 416m]
          schedule.warmup_steps: [500, 1000]
        fixed: {seed: 0}
        exclude:                                 # a run that matches all of a line's values is left out
          - {algorithm: muloco, model: 416m}

Keys and values are what the command line takes. Values on the command line that the file has narrow it to them; other
values take the place of the file's; a key that a grid does not have is one more factor of it. Runs that come out the
same (by `run_id`) are one run.
"""

from __future__ import annotations

import copy
import itertools
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from muloco_runner.compose import compose_tree, one_line
from muloco_runner.config import ConfigError, RunConfig
from muloco_runner.paths import config_dir

Point = dict[str, Any]
"""Override key to value, in the order in which they apply."""

LARGEST_SWEEP = 100_000
_NOTATION = re.compile(r"(pow2|sqrt2)\(\s*(-?\d+)\s*\.\.\s*(-?\d+)\s*(?:by\s+(\d+)\s*)?\)")
_GRID_KEYS = ("product", "zip", "fixed", "exclude")


@dataclass(frozen=True)
class Grid:
    """One grid, its notation expanded."""

    product: Mapping[str, list[Any]] = field(default_factory=dict)
    zip: Mapping[str, list[Any]] = field(default_factory=dict)
    fixed: Mapping[str, Any] = field(default_factory=dict)
    exclude: Sequence[Mapping[str, list[Any]]] = ()

    @property
    def num_points(self) -> int:
        """Before exclusion."""
        count = len(next(iter(self.zip.values()))) if self.zip else 1
        for values in self.product.values():
            count *= len(values)
        return count

    def points(self) -> Iterable[Point]:
        """Every combination that no exclusion matches."""
        rows: list[Point] = [{}]
        if self.zip:
            rows = [dict(zip(self.zip, row, strict=True)) for row in zip(*self.zip.values(), strict=True)]
        for row in rows:
            for combination in itertools.product(*self.product.values()):
                point = {**self.fixed, **row, **dict(zip(self.product, combination, strict=True))}
                if not any(_matches(point, line) for line in self.exclude):
                    yield point


def _matches(point: Point, line: Mapping[str, list[Any]]) -> bool:
    return all(key in point and point[key] in values for key, values in line.items())


def values_of(text: Any, key: str) -> list[Any]:
    """A list, a single value, or the notation of powers, as a list. Mistakes raise `ConfigError`."""
    if isinstance(text, list):
        expanded = [value for item in text for value in values_of(item, key)]
        if not expanded:
            raise ConfigError(f"sweep: {key} has an empty list of values: give at least one, or drop the key")
        return expanded
    match = _NOTATION.fullmatch(text.strip()) if isinstance(text, str) else None
    if match is None:
        if isinstance(text, str) and text.strip().startswith(("pow2(", "sqrt2(")):
            raise ConfigError(f"sweep: {key}: {text!r} is not understood: write pow2(5..13) or sqrt2(-16..-9 by 2)")
        return [text]
    name, first, last, by = match.groups()
    low, high = int(first), int(last)
    if low > high:
        raise ConfigError(f"sweep: {key}: {text!r} runs downwards: write {name}({high}..{low})")
    exponents = range(low, high + 1, int(by or 1))
    if name == "sqrt2":
        return [2.0 ** (n / 2) for n in exponents]
    return [2**n if n >= 0 else 2.0**n for n in exponents]


def read_grids(sweep: Mapping[str, Any], overrides: Mapping[str, list[Any]]) -> list[Grid]:
    """The grids of a sweep file, narrowed or changed by the command line's `overrides`."""
    _check_keys("sweep", sweep, ("description", "fixed", "grids"))
    entries = sweep.get("grids")
    if not isinstance(entries, list) or not entries:
        raise ConfigError("sweep.grids: give a list with at least one grid, each with a product, a zip or fixed values")
    grids = [_read_grid(f"sweep.grids[{n}]", entry, sweep.get("fixed")) for n, entry in enumerate(entries)]
    for key, values in overrides.items():
        known = [value for grid in grids for value in _values_in(grid, key)]
        if all(value in known for value in values):
            grids = [_narrowed(grid, key, values) for grid in grids]
            grids = [grid for grid in grids if grid.num_points]
        else:
            grids = [_replaced(grid, key, values) for grid in grids]
    return grids


def _read_grid(where: str, entry: Any, everywhere: Any) -> Grid:
    _check_keys(where, entry, _GRID_KEYS)
    product = {key: values_of(value, key) for key, value in _section(where, entry, "product").items()}
    zipped = {key: values_of(value, key) for key, value in _section(where, entry, "zip").items()}
    fixed = {**_section("sweep", {"fixed": everywhere}, "fixed"), **_section(where, entry, "fixed")}
    for key in {*product, *zipped, *fixed}:
        if (key in product) + (key in zipped) + (key in _section(where, entry, "fixed")) > 1:
            raise ConfigError(f"{where}: {key} stands in two of product, zip and fixed: keep one")
    # What a grid varies itself is not fixed by the file around it.
    fixed = {key: value for key, value in fixed.items() if key not in product and key not in zipped}
    lengths = {key: len(values) for key, values in zipped.items()}
    if len(set(lengths.values())) > 1:
        described = ", ".join(f"{key} has {n}" for key, n in lengths.items())
        raise ConfigError(f"{where}.zip: lists of different length ({described}): give them equally many values")
    exclude = entry.get("exclude") or []
    if not isinstance(exclude, list) or not all(isinstance(line, Mapping) and line for line in exclude):
        raise ConfigError(f"{where}.exclude: give a list of lines such as {{algorithm: muloco, model: 416m}}")
    lines = [{key: values_of(value, key) for key, value in line.items()} for line in exclude]
    for line in lines:
        for key in line:
            if key not in product and key not in zipped and key not in fixed:
                raise ConfigError(f"{where}.exclude: {key} is no key of this grid, so the line has no effect: drop it")
    return Grid(product, zipped, fixed, lines)


def _values_in(grid: Grid, key: str) -> list[Any]:
    return [*grid.product.get(key, ()), *grid.zip.get(key, ()), *([grid.fixed[key]] if key in grid.fixed else ())]


def _narrowed(grid: Grid, key: str, values: list[Any]) -> Grid:
    """Its runs that have one of the values; a grid that does not name the key gets it as one more factor."""
    if key in grid.zip:
        rows = [n for n, value in enumerate(grid.zip[key]) if value in values]
        return replace(grid, zip={name: [column[n] for n in rows] for name, column in grid.zip.items()})
    if key in grid.fixed:
        return grid if grid.fixed[key] in values else replace(grid, product={key: []})
    kept = [value for value in grid.product.get(key, values) if value in values]
    return replace(grid, product={**grid.product, key: kept})


def _replaced(grid: Grid, key: str, values: list[Any]) -> Grid:
    if key in grid.zip:
        # A row of a zip belongs together: no value can be put in alone.
        known = ", ".join(str(value) for value in grid.zip[key])
        raise ConfigError(f"{key} is zipped with other keys: choose out of {known}, or change the sweep file")
    fixed = {name: value for name, value in grid.fixed.items() if name != key}
    return replace(grid, fixed=fixed, product={**grid.product, key: values})


def _section(where: str, entry: Mapping[str, Any], name: str) -> dict[str, Any]:
    section = entry.get(name)
    if section is None:
        return {}
    if not isinstance(section, Mapping):
        raise ConfigError(f"{where}.{name}={section!r}: give keys with their values")
    return {str(key): value for key, value in section.items()}


def _check_keys(where: str, entry: Any, allowed: Sequence[str]) -> None:
    if not isinstance(entry, Mapping):
        raise ConfigError(f"{where}={entry!r}: give keys out of {', '.join(allowed)}")
    for key in entry:
        if key not in allowed:
            raise ConfigError(f"{where}.{key}: no such key; known here: {', '.join(allowed)}")


def expand(sweep: Mapping[str, Any], overrides: Mapping[str, list[Any]], base: Sequence[str] = ()) -> list[RunConfig]:
    """The runs of a sweep, each once, in the order of the file. `base` are overrides of every run.

    Names of files (model=150m) are composed once for each combination that occurs; values are set on a copy of that.
    """
    grids = read_grids(sweep, overrides)
    count = sum(grid.num_points for grid in grids)
    if count > LARGEST_SWEEP:
        raise ConfigError(f"sweep: {count:,} combinations, at most {LARGEST_SWEEP:,} are taken: narrow a list")
    groups = {path.name for path in config_dir().iterdir() if path.is_dir()}
    composer = _Composer(groups, base)
    runs: dict[str, RunConfig] = {}
    for grid in grids:
        for point in grid.points():
            run = composer.run_of(point)
            runs.setdefault(run.run_id, run)
    if not runs:
        raise ConfigError("sweep: every combination is excluded: drop a line of exclude")
    return list(runs.values())


class _Composer:
    """Points to runs. Composing is slow (tens of milliseconds), so each combination of file names is composed once,
    and each value is parsed once for each of those.
    """

    def __init__(self, groups: set[str], base: Sequence[str]) -> None:
        self.groups, self.base = groups, base
        self.trees: dict[tuple[tuple[str, Any], ...], tuple[DictConfig, dict[str, Any]]] = {}
        self.parsed: dict[tuple[Any, ...], Any] = {}

    def run_of(self, point: Point) -> RunConfig:
        names = tuple((key, value) for key, value in point.items() if key in self.groups)
        values = {key: value for key, value in point.items() if key not in self.groups}
        try:
            if names not in self.trees:
                tree = compose_tree([*self.base, *(f"{key}={value}" for key, value in names)])
                self.trees[names] = (tree, _plain_run(tree))
            tree, plain = self.trees[names]
            plain = copy.deepcopy(plain)
            for key, value in values.items():
                _set(plain, key, self._parse(names, tree, key, value))
            return RunConfig.from_dict(plain)
        except ConfigError as error:
            described = ", ".join(f"{key}={value}" for key, value in point.items())
            raise ConfigError(f"sweep: at {described}: {error}") from error

    def _parse(self, names: tuple[tuple[str, Any], ...], tree: DictConfig, key: str, value: Any) -> Any:
        """`value` as the schema's type."""
        place = (names, key, type(value), str(value))
        if place not in self.parsed:
            changed = copy.deepcopy(tree)
            try:
                OmegaConf.update(changed, key, value)
            except OmegaConfBaseException as error:
                raise ConfigError(one_line(error)) from error
            self.parsed[place] = OmegaConf.select(changed, key)
        return self.parsed[place]


def _plain_run(tree: DictConfig) -> dict[str, Any]:
    """The run's part of a composed tree, not yet checked: the values of a point may set right what is wrong."""
    values = OmegaConf.to_container(tree, resolve=True)
    assert isinstance(values, dict)
    known = set(RunConfig.__dataclass_fields__)
    return {str(key): value for key, value in values.items() if key in known}


def _set(values: dict[str, Any], key: str, value: Any) -> None:
    *path, last = key.split(".")
    for name in path:
        if not isinstance(values.get(name), dict):
            raise ConfigError(f"{key}: no such setting of a run")
        values = values[name]
    if last not in values:
        raise ConfigError(f"{key}: no such setting of a run; known there: {', '.join(values)}")
    values[last] = value
