"""One piece of work of a sweep, whatever it is: where its files go, what it needs, the function that does it.

A training run is one kind; any other program can be another. The engine knows only this.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any


@dataclass(frozen=True)
class Need:
    """What one attempt asks of a cluster."""

    nodes: int = 1
    gpus_per_node: int = 0
    """0 for work on CPUs."""
    cpus_per_node: int = 1
    wall_minutes: float = 60.0
    """Time asked for."""
    expected_minutes: float = 60.0
    """Time it is thought to take, all attempts together."""
    tasks_per_node: int = 1
    """Processes that do the work together, each with its rank (`sweeps.node.tasks`)."""

    @property
    def gpus(self) -> int:
        return self.nodes * self.gpus_per_node

    @property
    def tasks(self) -> int:
        return self.nodes * self.tasks_per_node


@dataclass(frozen=True)
class Work:
    """One piece of work. `name` is unique in its sweep."""

    name: str
    folder: str
    """Attempts leave their files in folder/attempts/<n>/."""
    entry: str
    """`module:function`, called as function(folder, attempt, memory_halvings, **arguments) in a process of its own;
    returns an exit code (`ExitCode`). Where its module has `preload(folder)`, that runs once before processes are
    forked from it."""
    arguments: dict[str, Any] = field(default_factory=dict)
    need: Need = field(default_factory=Need)
    labels: dict[str, Any] = field(default_factory=dict)
    """What people filter and group by."""
    result: str = "result.json"
    """A file that its folder holds when the work is finished."""
    source: str = ""
    """A folder whose git commit each attempt records, for work that is not this project's own code."""

    def expecting(self, minutes: float) -> Work:
        """The same work with another expectation of its time."""
        return replace(self, need=replace(self.need, expected_minutes=minutes))

    def to_dict(self) -> dict[str, Any]:
        return {**vars(self), "need": vars(self.need)}

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> Work:
        return cls(**{**values, "need": Need(**values["need"])})


@dataclass(frozen=True)
class Attempt:
    """One try at one piece of work."""

    work: Work
    number: int
    memory_halvings: int = 0
    """How many attempts before it ran out of memory: each asks for half of what it takes."""

    @property
    def folder(self) -> Path:
        return Path(self.work.folder) / "attempts" / str(self.number)

    def to_dict(self) -> dict[str, Any]:
        return {"work": self.work.to_dict(), "number": self.number, "memory_halvings": self.memory_halvings}

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> Attempt:
        return cls(Work.from_dict(values["work"]), values["number"], values["memory_halvings"])


def expected_minutes(work: Work) -> float:
    """Of the whole work, as it was first thought."""
    return work.need.expected_minutes
