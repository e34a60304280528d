"""The pieces of work of a sweep, as columns that answer for all of them and as objects made when first asked for."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, overload

from sweeps.engine.work import Work

Shape = tuple[int, int, int]
"""Nodes, GPUs and CPUs a node: what runs of one kind ask for."""
Group = tuple[Any, ...]
"""Values of the adapter's `group_labels`: one row of the status table."""


def shape_of(work: Work) -> Shape:
    return work.need.nodes, work.need.gpus_per_node, work.need.cpus_per_node


def group_of(work: Work) -> Group:
    return tuple(work.labels.get(label) for label in work.adapter.group_labels)


class Works(Sequence[Work]):
    """Pieces of work in the sweep's order; the columns answer for all of them without reading one."""

    def __init__(self, columns: Mapping[str, Any], read: Callable[[int], Work]) -> None:
        """`read` makes the work at a position that has not been added in memory."""
        self.names: list[str] = columns["names"]
        self._shapes: list[Shape] = [(nodes, gpus, cpus) for nodes, gpus, cpus in columns["shapes"]]
        self._shape_numbers: list[int] = columns["shape_numbers"]
        self._minutes: list[float] = columns["minutes"]
        self._groups: list[Group] = [tuple(group) for group in columns["groups"]]
        self._group_numbers: list[int] = columns["group_numbers"]
        self.trunks: dict[str, str] = columns.get("trunks", {})
        """Names of the works that go on from another one's checkpoint, with that one's name."""
        self._read = read
        self._made: dict[int, Work] = {}

    @classmethod
    def of(cls, works: Sequence[Work]) -> Works:
        if isinstance(works, Works):
            return works
        made = cls({key: [] for key in _COLUMNS} | {"trunks": {}}, _nothing_to_read)
        for work in works:
            made.add(work)
        return made

    def copy(self) -> Works:
        """The same pieces of work; more may be added without changing these."""
        made = Works({key: copy.copy(values) for key, values in self.columns().items()}, self._read)
        made._made = dict(self._made)
        return made

    def add(self, work: Work) -> None:
        """One more at the end, in memory."""
        self._made[len(self.names)] = work
        self.names.append(work.name)
        self._shape_numbers.append(_number_of(shape_of(work), self._shapes))
        self._minutes.append(work.need.expected_minutes)
        self._group_numbers.append(_number_of(group_of(work), self._groups))
        if work.trunk is not None:
            self.trunks[work.name] = work.trunk.run

    def shape(self, position: int) -> Shape:
        return self._shapes[self._shape_numbers[position]]

    def minutes(self, position: int) -> float:
        """Expected."""
        return self._minutes[position]

    def group(self, position: int) -> Group:
        return self._groups[self._group_numbers[position]]

    @property
    def group_labels(self) -> tuple[str, ...]:
        """What the values of a group are called."""
        return self[0].adapter.group_labels if self.names else ()

    def __len__(self) -> int:
        return len(self.names)

    @overload
    def __getitem__(self, position: int) -> Work: ...
    @overload
    def __getitem__(self, position: slice) -> list[Work]: ...
    def __getitem__(self, position: int | slice) -> Work | list[Work]:
        if isinstance(position, slice):
            return [self[n] for n in range(*position.indices(len(self)))]
        if position not in self._made:
            self._made[position] = self._read(position)
        return self._made[position]

    def __iter__(self) -> Iterator[Work]:
        return (self[position] for position in range(len(self)))

    def columns(self) -> dict[str, Any]:
        values = (self.names, self._shapes, self._shape_numbers, self._minutes, self._groups, self._group_numbers)
        return {**dict(zip(_COLUMNS, values, strict=True)), "trunks": self.trunks}


def _nothing_to_read(position: int) -> Work:
    raise IndexError(position)


_COLUMNS = ("names", "shapes", "shape_numbers", "minutes", "groups", "group_numbers")


def _number_of(value: Any, known: list[Any]) -> int:
    """Shapes and groups are few."""
    if value not in known:
        known.append(value)
    return known.index(value)
