"""Where a sweep's charged hours went: <root>/sweeps/<name>/goodput.json, written by its controller, read by anybody.

    {"format_version": 1, "sweep": "demo", "processors": {"GPU": {"hours": {"training": 5.1, "start-up": 0.4, ...},
     "progress": {"tokens": 1.2e9}, "progress_hours": 5.9}}}

Hours are processors (GPUs, or CPUs of jobs without any) times the time from a job's start to its end: no queueing. The
kinds add up to what was charged.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from pathlib import Path
from typing import Any

from muloco_runner.record.atomic_files import write_atomically
from muloco_runner.record.records import RecordError

FORMAT_VERSION = 1


class Kind(StrEnum):
    """What charged hours were spent on, in the order in which it is shown; lost work, by cause, comes after."""

    TRAINING = "training"
    WORK = "work, not itemised"
    """Of programs, and of attempts of earlier versions, that do not say what they spend their time on."""
    START_UP = "start-up"
    """From a job's start to the first training step: imports, data, building the model."""
    COMPILE = "compile"
    """By torch.compile."""
    EVALUATION = "evaluation"
    CHECKPOINTS = "checkpoints"
    """Reading one, and standing still for the writing of others."""
    SHUT_DOWN = "shut-down"
    """From an attempt's last word, said in order, to its job's end."""
    IDLE = "idle in a pack"
    """Processors of a job that no run used, or whose run had ended before the job."""


def lost_to(cause: str) -> str:
    """Return the kind of training that no checkpoint held when its attempt ended so."""
    return f"lost: {cause}"


@dataclass
class Goodput:
    """Charged hours of processors of one sort, by kind, and what came of them."""

    hours: dict[str, float] = field(default_factory=dict)
    """By kind: a `Kind`, or one of `lost_to`."""
    progress: dict[str, float] = field(default_factory=dict)
    """What came to be held by results and checkpoints, by unit: tokens of training runs, steps of programs that report
    them."""
    progress_hours: float = 0.0
    """Charged hours of the jobs whose progress was counted: all but those that earlier versions recorded."""

    @property
    def charged(self) -> float:
        """All hours."""
        return sum(self.hours.values())

    @property
    def rates(self) -> dict[str, float]:
        """Progress for each charged hour, by unit; empty where none was reported."""
        return {unit: done / self.progress_hours for unit, done in self.progress.items() if done > 0}

    @property
    def shares(self) -> dict[str, float]:
        """Each kind's share of the whole, as shown: known kinds first, then lost work, the most first."""
        charged = self.charged
        lost = sorted((kind for kind in self.hours if kind not in list(Kind)), key=lambda kind: -self.hours[kind])
        present = [kind for kind in (*map(str, Kind), *lost) if self.hours.get(kind, 0.0) > 0]
        return {kind: self.hours[kind] / charged for kind in present}

    def add(self, hours: Mapping[str, float]) -> None:
        for kind, more in hours.items():
            self.hours[kind] = self.hours.get(kind, 0.0) + more

    def to_dict(self) -> dict[str, Any]:
        return {"hours": self.hours, "progress": self.progress, "progress_hours": self.progress_hours}

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Goodput:
        return cls(dict(values["hours"]), dict(values["progress"]), values["progress_hours"])


def write_goodput(path: Path, sweep: str, by_processor: Mapping[str, Goodput]) -> None:
    """Replaces the file."""
    processors = {name: goodput.to_dict() for name, goodput in by_processor.items()}
    values = {"format_version": FORMAT_VERSION, "sweep": sweep, "processors": processors}
    write_atomically(path, json.dumps(values, indent=1, allow_nan=False) + "\n")


def read_all_goodput(root: Path) -> Iterator[tuple[str, str, Goodput]]:
    """Sweep, processor (GPU or CPU) and hours of every sweep under `root`; a file of another format raises
    `RecordError`."""
    for path in sorted(root.glob("sweeps/*/goodput.json")):
        try:
            values = json.loads(path.read_text())
            version = values["format_version"]
            if version != FORMAT_VERSION:
                raise RecordError(f"{path}: format version {version}, this program reads {FORMAT_VERSION}")
            found = {name: Goodput.from_dict(one) for name, one in values["processors"].items()}
        except RecordError:
            raise
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise RecordError(f"{path}: not readable ({error})") from error
        yield from ((str(values["sweep"]), name, goodput) for name, goodput in found.items())
