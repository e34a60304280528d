"""One piece of work of a sweep, whatever it is: where its files go, what it needs, the function that does it.

A training run is one kind; any other program can be another. The engine knows only this.
"""

from __future__ import annotations

import contextlib
import importlib
import json
import os
import signal
import socket
import sys
import time
import traceback
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

from muloco_runner.record import ExitCode, write_atomically


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

    @property
    def is_finished(self) -> bool:
        return os.path.exists(Path(self.folder, self.result))  # also where the folder may not be read

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


@dataclass(frozen=True)
class Ending:
    """An attempt's own word on how it ended: the one channel that no scheduler rewrites."""

    exit_code: int
    host: str
    started_at: float
    ended_at: float
    """Unix seconds."""
    stopped_early: bool = False
    """Whether it was asked to stop long before its time limit: its nodes were wanted for others."""


def run_attempt(attempt: Attempt) -> int:
    """Does the work of one task in this process, and leaves its `Ending` in the attempt's folder."""
    started_at = time.time()
    code = run_task(attempt)
    write_ending(attempt, Ending(code, socket.gethostname(), started_at, time.time()))
    return code


def run_task(attempt: Attempt, rank: int = 0) -> int:
    """Does one rank's share of the work in this process, its output in the attempt's folder; returns its exit code."""
    folder = attempt.folder
    folder.mkdir(parents=True, exist_ok=True)
    with _output_to(folder, f".rank{rank}" if rank else ""):
        try:
            work = attempt.work
            function = resolve_entry(work.entry)
            return int(function(work.folder, attempt.number, attempt.memory_halvings, **work.arguments))
        except SystemExit as leaving:
            return leaving.code if isinstance(leaving.code, int) else int(leaving.code is not None)
        except BaseException:
            traceback.print_exc()
            return int(ExitCode.CRASH)


def write_ending(attempt: Attempt, ending: Ending) -> None:
    write_atomically(attempt.folder / "ending.json", json.dumps(asdict(ending)) + "\n")


def read_ending(attempt: Attempt) -> Ending | None:
    """What the attempt left, or None where it has not ended, was killed, or could leave nothing in its folder."""
    try:
        return Ending(**json.loads((attempt.folder / "ending.json").read_text()))
    except (FileNotFoundError, NotADirectoryError, PermissionError, ValueError, TypeError):
        return None


def resolve_entry(entry: str) -> Callable[..., int]:
    module, _, function = entry.partition(":")
    resolved: Callable[..., int] = getattr(importlib.import_module(module), function)
    return resolved


def preload(work: Work) -> None:
    """What this work's module would rather do once than in every process. What goes wrong here will go wrong in the
    attempt itself, where it is heard and harms no neighbour."""
    with contextlib.suppress(Exception):
        module = importlib.import_module(work.entry.partition(":")[0])
        hook = getattr(module, "preload", None)
        if hook is not None:
            hook(work.folder)


def die_with(parent: int) -> None:
    """Linux kills this process when its parent dies: an attempt that nobody watches would run unseen."""
    import ctypes

    pr_set_pdeathsig = 1
    ctypes.CDLL(None).prctl(pr_set_pdeathsig, signal.SIGKILL)
    if os.getppid() != parent:
        os._exit(ExitCode.CRASH)


@contextlib.contextmanager
def _output_to(folder: Path, ending: str) -> Iterator[None]:
    """File descriptors 1 and 2 into the attempt's folder, for this process and its children."""
    saved = os.dup(1), os.dup(2)
    sys.stdout.flush()
    sys.stderr.flush()
    with open(folder / f"stdout{ending}.log", "ab") as out, open(folder / f"stderr{ending}.log", "ab") as err:
        os.dup2(out.fileno(), 1)
        os.dup2(err.fileno(), 2)
        try:
            yield
        finally:
            sys.stdout.flush()
            sys.stderr.flush()
            os.dup2(saved[0], 1)
            os.dup2(saved[1], 2)
            os.close(saved[0])
            os.close(saved[1])
