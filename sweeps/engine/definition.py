"""What a sweep is: its pieces of work and where they run, and the file that says so.

The file is JSON lines. The first holds what is asked of all pieces of work at once (names, shapes, expected minutes,
groups of the status table) and what they have in common; then one line for each. A piece of work is read when it is
first asked for.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, overload

from muloco_runner.config import ConfigError
from sweeps.engine.cluster_config import ClusterConfig, read_cluster
from sweeps.engine.work import Work

Shape = tuple[int, int, int]
"""Nodes, GPUs and CPUs a node: what runs of one kind ask for."""
Group = tuple[str, int]
"""Algorithm and number of parameters: one row of the status table."""


def shape_of(work: Work) -> Shape:
    return work.need.nodes, work.need.gpus_per_node, work.need.cpus_per_node


def group_of(work: Work) -> Group:
    """("", 0) for work that has no such labels."""
    num_params = work.labels.get("num_params")
    return str(work.labels.get("algorithm", "")), num_params if isinstance(num_params, int) else 0


class Works(Sequence[Work]):
    """Pieces of work in the sweep's order; the columns answer for all of them without reading one."""

    def __init__(self, columns: Mapping[str, Any], common: Mapping[str, Any], lines: Sequence[bytes]) -> None:
        self.names: list[str] = columns["names"]
        self._shapes: list[Shape] = [(nodes, gpus, cpus) for nodes, gpus, cpus in columns["shapes"]]
        self._shape_numbers: list[int] = columns["shape_numbers"]
        self._minutes: list[float] = columns["minutes"]
        self._groups: list[Group] = [(algorithm, size) for algorithm, size in columns["groups"]]
        self._group_numbers: list[int] = columns["group_numbers"]
        self._common, self._lines = common, lines
        self._read: dict[int, Work] = {}

    @classmethod
    def of(cls, works: Sequence[Work]) -> Works:
        if isinstance(works, Works):
            return works
        made = cls({key: [] for key in _COLUMNS}, {}, [])
        for work in works:
            made.add(work)
        return made

    def add(self, work: Work) -> None:
        """One more at the end, in memory."""
        self._read[len(self.names)] = work
        self.names.append(work.name)
        self._shape_numbers.append(_number_of(shape_of(work), self._shapes))
        self._minutes.append(work.need.expected_minutes)
        self._group_numbers.append(_number_of(group_of(work), self._groups))

    def shape(self, position: int) -> Shape:
        return self._shapes[self._shape_numbers[position]]

    def minutes(self, position: int) -> float:
        """Expected."""
        return self._minutes[position]

    def group(self, position: int) -> Group:
        return self._groups[self._group_numbers[position]]

    def __len__(self) -> int:
        return len(self.names)

    @overload
    def __getitem__(self, position: int) -> Work: ...
    @overload
    def __getitem__(self, position: slice) -> list[Work]: ...
    def __getitem__(self, position: int | slice) -> Work | list[Work]:
        if isinstance(position, slice):
            return [self[n] for n in range(*position.indices(len(self)))]
        work = self._read.get(position)
        if work is None:
            try:
                work = Work.from_dict({**self._common, **json.loads(self._lines[position])})
            except (ValueError, KeyError, TypeError) as error:
                raise _damaged(f"{self.names[position]}: {error}") from None
            self._read[position] = work
        return work

    def __iter__(self) -> Iterator[Work]:
        return (self[position] for position in range(len(self)))

    def columns(self) -> dict[str, Any]:
        values = (self.names, self._shapes, self._shape_numbers, self._minutes, self._groups, self._group_numbers)
        return dict(zip(_COLUMNS, values, strict=True))


_COLUMNS = ("names", "shapes", "shape_numbers", "minutes", "groups", "group_numbers")


def _number_of(value: Any, known: list[Any]) -> int:
    """Shapes and groups are few."""
    if value not in known:
        known.append(value)
    return known.index(value)


@dataclass(frozen=True)
class Definition:
    """What a sweep is."""

    name: str
    cluster_name: str
    cluster: dict[str, Any]
    works: Sequence[Work]
    read_id: str = ""
    """Of the file that it was read from."""

    @property
    def id(self) -> str:
        """The same for the same text."""
        return self.read_id or self._text_and_id[1]

    @property
    def text(self) -> str:
        return self._text_and_id[0]

    def read_cluster(self) -> ClusterConfig:
        return read_cluster(self.cluster_name, self.cluster)

    @cached_property
    def _text_and_id(self) -> tuple[str, str]:
        works = [work.to_dict() for work in self.works]
        first = works[0] if works else {}
        common = {key: value for key, value in first.items() if all(work[key] == value for work in works)}
        own = [{key: value for key, value in work.items() if key not in common} for work in works]
        lines = [json.dumps(work, allow_nan=False, separators=(",", ":")) for work in own]
        head = {
            "name": self.name,
            "cluster_name": self.cluster_name,
            "cluster": self.cluster,
            "common": common,
            **Works.of(self.works).columns(),
        }
        whole = "\n".join([json.dumps(head, allow_nan=False), *lines])
        head["id"] = hashlib.blake2b(whole.encode(), digest_size=12).hexdigest()
        return "\n".join([json.dumps(head, allow_nan=False), *lines, ""]), head["id"]

    @classmethod
    def read(cls, path: Path) -> Definition:
        """A file that is damaged raises `ConfigError`; one that is not there `FileNotFoundError`."""
        head, *lines = path.read_bytes().split(b"\n")
        try:
            values = json.loads(head)
            works = Works(values, values["common"], lines)
            if len(lines) != len(works) + 1:
                raise ValueError(f"it holds {len(lines) - 1} pieces of work instead of {len(works)}")
            return cls(values["name"], values["cluster_name"], values["cluster"], works, values["id"])
        except (ValueError, KeyError, TypeError) as error:
            raise _damaged(str(error)) from None


def _damaged(why: str) -> ConfigError:
    return ConfigError(f"the sweep's definition is damaged ({why}): launch the sweep again, which rewrites it")
