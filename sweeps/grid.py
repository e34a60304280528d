"""The sweep language: a few lines of YAML to the points they mean, whatever program the points are for.

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
        when:                                    # more for the points that match all of a line's `if`
          - if: {algorithm: muloco}
            product: {method.num_workers: [1, 2]}
            fixed: {seed: 1}
        exclude:                                 # a point that matches all of a line's values is left out
          - {algorithm: muloco, model: 416m}

Keys and values are what the command line takes. Values on the command line that the file has narrow it to them; other
values take the place of the file's; a key that a grid does not have is one more factor of it.
"""

from __future__ import annotations

import itertools
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from muloco_runner.config import ConfigError

Point = dict[str, Any]
"""Override key to value, in the order in which they apply."""

LARGE_SWEEP = 100_000
"""More points than this are more often a slip of the pen than a wish."""
_NOTATION = re.compile(r"(pow2|sqrt2)\(\s*(-?\d+)\s*\.\.\s*(-?\d+)\s*(?:by\s+(\d+)\s*)?\)")
_GRID_KEYS = ("product", "zip", "fixed", "when", "exclude")
_LINE_KEYS = ("if", "product", "fixed")

Line = Mapping[str, list[Any]]
"""Keys with the values that match; all keys must."""


@dataclass(frozen=True)
class Condition:
    """What is added to the points that match."""

    line: Line
    product: Mapping[str, list[Any]]
    fixed: Mapping[str, Any]


@dataclass(frozen=True)
class Grid:
    """One grid, its notation expanded."""

    product: Mapping[str, list[Any]] = field(default_factory=dict)
    zip: Mapping[str, list[Any]] = field(default_factory=dict)
    fixed: Mapping[str, Any] = field(default_factory=dict)
    exclude: Sequence[Line] = ()
    when: Sequence[Condition] = ()

    @property
    def num_points(self) -> int:
        """Before exclusion and conditions."""
        count = len(next(iter(self.zip.values()))) if self.zip else 1
        for values in self.product.values():
            count *= len(values)
        return count

    def split(self) -> list[Grid]:
        """The same points as grids without conditions, those that match a condition before those that do not."""
        grids = [replace(self, when=())]
        for condition in self.when:
            parted = [_parted(grid, condition.line) for grid in grids]
            inside = [_extended(inner, condition) for inner, _ in parted if inner is not None]
            grids = [*inside, *(outer for _, outers in parted for outer in outers)]
        return grids

    def points(self) -> Iterable[Point]:
        """Every combination that no exclusion matches. For a grid without conditions."""
        rows: list[Point] = [{}]
        if self.zip:
            rows = [dict(zip(self.zip, row, strict=True)) for row in zip(*self.zip.values(), strict=True)]
        for row in rows:
            for combination in itertools.product(*self.product.values()):
                point = {**self.fixed, **row, **dict(zip(self.product, combination, strict=True))}
                if not any(_matches(point, line) for line in self.exclude):
                    yield point


def _matches(point: Point, line: Line) -> bool:
    return all(key in point and point[key] in values for key, values in line.items())


def _parted(grid: Grid, line: Line) -> tuple[Grid | None, list[Grid]]:
    """What of the grid matches the line, and the rest as grids that do not overlap."""
    outside = []
    for key, values in line.items():
        unmatched = _restricted(grid, key, [value for value in _values_in(grid, key) if value not in values])
        if unmatched.num_points:
            outside.append(unmatched)
        grid = _restricted(grid, key, values)
        if not grid.num_points:
            return None, outside
    return grid, outside


def _extended(grid: Grid, condition: Condition) -> Grid:
    """Where two conditions set one key of a point, the later one counts."""
    fixed = {key: value for key, value in grid.fixed.items() if key not in condition.product}
    product = {key: values for key, values in grid.product.items() if key not in condition.fixed}
    return replace(grid, fixed={**fixed, **condition.fixed}, product={**product, **condition.product})


def values_of(text: Any, key: str) -> list[Any]:
    """A list, a single value, or the notation of powers, as a list; a list in the list is one value.

    Mistakes raise `ConfigError`.
    """
    if isinstance(text, list):
        expanded = [value for item in text for value in ([item] if isinstance(item, list) else values_of(item, key))]
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
    """The grids of a sweep file, narrowed or changed by the command line's `overrides`, without conditions left.

    Mistakes raise `ConfigError`.
    """
    _check_keys("sweep", sweep, ("description", "fixed", "grids"))
    entries = sweep.get("grids")
    if not isinstance(entries, list) or not entries:
        raise ConfigError("sweep.grids: give a list with at least one grid, each with a product, a zip or fixed values")
    grids = [_read_grid(f"sweep.grids[{n}]", entry, sweep.get("fixed")) for n, entry in enumerate(entries)]
    # What a condition adds is changed once it is added; what it asks for, before it is asked.
    added = {key for grid in grids for condition in grid.when for key in (*condition.product, *condition.fixed)}
    grids = _changed(grids, {key: values for key, values in overrides.items() if key not in added})
    grids = [part for grid in grids for part in grid.split()]
    return _changed(grids, {key: values for key, values in overrides.items() if key in added})


def check_size(grids: Sequence[Grid], allow_large: bool, how_to_allow: str) -> None:
    """Before anything is enumerated. Raises `ConfigError`."""
    count = sum(grid.num_points for grid in grids)
    if count > LARGE_SWEEP and not allow_large:
        raise ConfigError(f"sweep: {count:,} combinations, more than {LARGE_SWEEP:,}: narrow a list, or {how_to_allow}")


def check_not_empty(points: Sequence[Any]) -> None:
    if not points:
        raise ConfigError("sweep: every combination is excluded: drop a line of exclude, or narrow it less")


def _changed(grids: Sequence[Grid], overrides: Mapping[str, list[Any]]) -> list[Grid]:
    changed = list(grids)
    for key, values in overrides.items():
        known = [value for grid in changed for value in _values_in(grid, key)]
        if all(value in known for value in values):
            narrowed = [_narrowed(grid, key, values) for grid in changed]
            changed = [grid for grid in narrowed if grid.num_points]
        else:
            changed = [_replaced(grid, key, values) for grid in changed]
    return changed


def _read_grid(where: str, entry: Any, everywhere: Any) -> Grid:
    _check_keys(where, entry, _GRID_KEYS)
    product = _lists(where, entry, "product")
    zipped = _lists(where, entry, "zip")
    own_fixed = _section(where, entry, "fixed")
    _check_apart(where, product, zipped, own_fixed)
    # What a grid varies itself is not fixed by the file around it.
    everywhere = _section("sweep", {"fixed": everywhere}, "fixed")
    around = {key: value for key, value in everywhere.items() if key not in product and key not in zipped}
    lengths = {key: len(values) for key, values in zipped.items()}
    if len(set(lengths.values())) > 1:
        described = ", ".join(f"{key} has {n}" for key, n in lengths.items())
        raise ConfigError(f"{where}.zip: lists of different length ({described}): give them equally many values")
    grid = Grid(product, zipped, {**around, **own_fixed})
    lines = _entries(where, entry, "when", "{if: {algorithm: muloco}, product: {seed: [0, 1]}}")
    for number, line in enumerate(lines):
        condition = _read_condition(f"{where}.when[{number}]", line, grid)
        grid = replace(grid, when=[*grid.when, condition])
    known = [*_keys(grid), *(key for condition in grid.when for key in (*condition.product, *condition.fixed))]
    excluded = _entries(where, entry, "exclude", "{algorithm: muloco, model: 416m}")
    return replace(grid, exclude=[_read_line(f"{where}.exclude", line, known) for line in excluded])


def _read_condition(where: str, entry: Any, grid: Grid) -> Condition:
    _check_keys(where, entry, _LINE_KEYS)
    line = _read_line(f"{where}.if", entry.get("if"), _keys(grid))
    condition = Condition(line, _lists(where, entry, "product"), _section(where, entry, "fixed"))
    _check_apart(where, condition.product, {}, condition.fixed)
    for key in (*condition.product, *condition.fixed):
        if key in grid.product or key in grid.zip:
            raise ConfigError(f"{where}: {key} is varied by the grid itself: keep it there or under `when`")
    if not condition.product and not condition.fixed:
        raise ConfigError(f"{where}: adds nothing: give it a product or fixed values")
    if _parted(grid, line)[0] is None:
        raise ConfigError(f"{where}.if: matches no point of this grid, so the line has no effect: drop it")
    return condition


def _read_line(where: str, line: Any, known: Sequence[str]) -> Line:
    if not isinstance(line, Mapping) or not line:
        raise ConfigError(f"{where}={line!r}: give keys with their values, such as {{algorithm: muloco}}")
    for key in line:
        if key not in known:
            raise ConfigError(f"{where}: {key} is no key of this grid, so the line has no effect: drop it")
    return {key: values_of(value, key) for key, value in line.items()}


def _keys(grid: Grid) -> list[str]:
    return [*grid.product, *grid.zip, *grid.fixed]


def _check_apart(where: str, *sections: Mapping[str, Any]) -> None:
    for key in {key for section in sections for key in section}:
        if sum(key in section for section in sections) > 1:
            raise ConfigError(f"{where}: {key} stands in two of product, zip and fixed: keep one")


def _values_in(grid: Grid, key: str) -> list[Any]:
    return [*grid.product.get(key, ()), *grid.zip.get(key, ()), *([grid.fixed[key]] if key in grid.fixed else ())]


def _narrowed(grid: Grid, key: str, values: list[Any]) -> Grid:
    """Its points that have one of the values; a grid that does not name the key gets it as one more factor."""
    if key in _keys(grid):
        return _restricted(grid, key, values)
    return replace(grid, product={**grid.product, key: values})


def _restricted(grid: Grid, key: str, values: list[Any]) -> Grid:
    if key in grid.zip:
        rows = [n for n, value in enumerate(grid.zip[key]) if value in values]
        return replace(grid, zip={name: [column[n] for n in rows] for name, column in grid.zip.items()})
    if key in grid.fixed:
        return grid if grid.fixed[key] in values else replace(grid, product={**grid.product, key: []})
    return replace(grid, product={**grid.product, key: [value for value in grid.product[key] if value in values]})


def _replaced(grid: Grid, key: str, values: list[Any]) -> Grid:
    if key in grid.zip:
        # A row of a zip belongs together: no value can be put in alone.
        known = ", ".join(str(value) for value in grid.zip[key])
        raise ConfigError(f"{key} is zipped with other keys: choose out of {known}, or change the sweep file")
    fixed = {name: value for name, value in grid.fixed.items() if name != key}
    return replace(grid, fixed=fixed, product={**grid.product, key: values})


def _lists(where: str, entry: Mapping[str, Any], name: str) -> dict[str, list[Any]]:
    return {key: values_of(value, key) for key, value in _section(where, entry, name).items()}


def _entries(where: str, entry: Mapping[str, Any], name: str, example: str) -> list[Any]:
    lines = entry.get(name) or []
    if not isinstance(lines, list):
        raise ConfigError(f"{where}.{name}: give a list of lines such as {example}")
    return lines


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
