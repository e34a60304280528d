"""One piece of work of a sweep, whatever it is: where its files go, what it needs, the function that does it.

A training run is one kind, a job of a Hydra application another. The engine knows of a kind what its `Adapter` says.
"""

from __future__ import annotations

import hashlib
import json
import os
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from muloco_runner.config import ConfigError


@dataclass(frozen=True)
class Need:
    """What one attempt asks of a cluster."""

    nodes: int = 1
    gpus_per_node: int = 0
    """0 for work on CPUs."""
    cpus_per_node: int = 1
    wall_minutes: float = 60.0
    """Time asked for; 0 where nobody says, and it follows from the time expected."""
    expected_minutes: float = 60.0
    """Time it is expected to take, all attempts together."""
    tasks_per_node: int = 1
    """Processes that do the work together, each with its rank (`sweeps.node.tasks`)."""
    memory_gigabytes: float | None = None
    """Main memory of each node, in GiB; None takes the allocation's."""
    max_memory_gigabytes: float | None = None
    """What is asked for at most, after attempts that ran out of it; None takes the allocation's."""
    options: Mapping[str, Any] = field(default_factory=dict, hash=False)
    """Settings of the cluster's kind for this work, in place of all of its allocation's; empty takes those."""

    @property
    def gpus(self) -> int:
        return self.nodes * self.gpus_per_node

    @property
    def tasks(self) -> int:
        return self.nodes * self.tasks_per_node


@dataclass(frozen=True)
class Adapter:
    """What one kind of work, such as training runs or jobs of a Hydra application, tells the engine of itself."""

    reports: str = ""
    """The module that reads what attempts report (`sweeps.node.reports`); without one there are no heartbeats,
    checkpoints and measured times."""
    group_labels: tuple[str, ...] = ()
    """Labels that make a row of the status table."""
    failure_label: str = ""
    """Runs with the same value of this label are held together when several of them fail in the same way; without one
    all runs of the sweep are."""
    similarity_keys: tuple[tuple[str, ...], ...] = ((),)
    """Labels that make the times of two runs comparable, the most similar runs first."""
    resumes: bool = False
    """Whether an attempt goes on from what an earlier one has saved, so that the work may be cut into several jobs."""
    adjustments: Mapping[str, str] = field(default_factory=dict)
    """Parameter of the entry that counts the attempts that ended with a cause, by cause (`Rule.adjusts`)."""
    speaks_exit_codes: bool = False
    """Whether its exit codes are those of `ExitCode`; of other work only 0 and `WANTS_MORE_TIME` are."""

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Adapter:
        keys = tuple(tuple(labels) for labels in values["similarity_keys"])
        return cls(**{**values, "group_labels": tuple(values["group_labels"]), "similarity_keys": keys})


ITS_TRUNK = "its trunk "
"""Reasons that a branch's trunk gives to hold it begin so: `retry` of the trunk releases it too."""


@dataclass(frozen=True)
class Trunk:
    """Another piece of work of the sweep, from whose checkpoint a piece of work goes on."""

    run: str
    """Its name."""
    step: int
    """Of that checkpoint."""
    share: float
    """Of the trunk's own work that is done by then."""
    spared: float
    """Share of the whole work that was done by then: what is expected is the rest."""

    @property
    def wait_words(self) -> str:
        """For what the work waits until that checkpoint is there."""
        return f"waits for the checkpoint of step {self.step:,} of its trunk, run {self.run}"

    @property
    def missing_words(self) -> str:
        """Why the work cannot start where its trunk has ended and that checkpoint is not there."""
        return (
            f"{ITS_TRUNK}{self.run} has ended without a checkpoint of step {self.step:,}: train this one by itself, in "
            "a sweep without branches"
        )

    def spared_minutes(self, expected_minutes: float) -> float:
        """What the work would take besides what is expected of it, were it not for the trunk."""
        return expected_minutes * self.spared / (1 - self.spared)


@dataclass(frozen=True)
class Work:
    """One piece of work. `name` is unique in its sweep."""

    name: str
    folder: str
    """Attempts leave their files in folder/attempts/<n>/. Empty until it is launched, of a function's work."""
    entry: str
    """`module:function`, called as function(folder, attempt, **arguments, **adjustments) in a process of its own;
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
    adapter: Adapter = field(default_factory=Adapter)
    trunk: Trunk | None = None
    """From where it goes on, and what it waits for; None where it starts by itself."""

    @classmethod
    def calling(cls, function: Callable[..., Any], /, **arguments: Any) -> Work:
        """The work of calling a function of the user's own, for `sweeps.launch`; named by function and arguments.

        `function` is any that a module or a script defines at its top level; the arguments, and what it returns, are
        values that JSON can hold. Anything else raises `ConfigError`.
        """
        name = getattr(function, "__qualname__", "")
        place = getattr(function, "__module__", None)
        if place == "__main__":
            place = getattr(sys.modules["__main__"], "__file__", None)
            place = os.path.abspath(place) if place else None
        if place is None or not name.isidentifier():
            raise ConfigError(
                f"{name or function!r}: its jobs could not find it by name: define it with def at the top level of a "
                "module or a script"
            )
        try:
            content = json.dumps([place, name, arguments], sort_keys=True, allow_nan=False)
        except (TypeError, ValueError) as error:
            raise ConfigError(
                f"{name}: arguments must be what JSON can hold, numbers, text, lists and dicts ({error}): for others "
                "pass the path of a file"
            ) from None
        return cls(
            name=hashlib.sha256(content.encode()).hexdigest()[:12],
            folder="",
            entry="sweeps.functions:call",
            arguments={"function": f"{place}:{name}", "arguments": json.loads(content)[2]},
            labels={key: value for key, value in arguments.items() if isinstance(value, str | int | float | bool)},
        )

    def needing(self, need: Need) -> Work:
        """The same work, asking for something else of the cluster."""
        return replace(self, need=need)

    def expecting(self, minutes: float) -> Work:
        """The same work with another expectation of its time."""
        return replace(self, need=replace(self.need, expected_minutes=minutes))

    def to_dict(self) -> dict[str, Any]:
        trunk = vars(self.trunk) if self.trunk is not None else None
        return {**vars(self), "need": vars(self.need), "adapter": vars(self.adapter), "trunk": trunk}

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> Work:
        adapter = Adapter.from_dict(values["adapter"])
        trunk = Trunk(**values["trunk"]) if values.get("trunk") else None
        return cls(**{**values, "need": Need(**values["need"]), "adapter": adapter, "trunk": trunk})


@dataclass(frozen=True)
class Attempt:
    """One try at one piece of work."""

    work: Work
    number: int
    adjustments: Mapping[str, int] = field(default_factory=dict)
    """Parameters of the entry that its adapter adjusts after failures; each with the number of attempts that call for
    it."""

    @property
    def folder(self) -> Path:
        return Path(self.work.folder) / "attempts" / str(self.number)

    def to_dict(self) -> dict[str, Any]:
        return {"work": self.work.to_dict(), "number": self.number, "adjustments": dict(self.adjustments)}

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> Attempt:
        return cls(Work.from_dict(values["work"]), values["number"], values["adjustments"])


def expected_minutes(work: Work) -> float:
    """Minutes that were first expected of the whole work."""
    return work.need.expected_minutes
