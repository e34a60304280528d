"""By what rules a sweep went on by its results, and how they stand: <root>/sweeps/<name>/tuning.json, written by its
controller, read by anybody.

    {"format_version": 1, "sweep": "demo", "cluster": "local", "max_gpu_hours": null, "rules": ["extend: ..."],
     "groups": [{"label": "MuLoCo at 29k", "standing": "bracketed on all sides", "added": 9}],
     "contests": [{"scale": "29k", "outcome": "MuLoCo and DDP-Muon are a tie: ...", "sigma": 0.01, "seeds": 20}],
     "as_of": 1764525600.0, "ledger_bytes": 81230, "is_final": true}

Rules, groups and contests are empty where a sweep goes on by no results. The controller may be killed, or the sweep go
on, after it was written: then it is of the past, which `is_final` tells a reader.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from muloco_runner.record.atomic_files import write_atomically
from muloco_runner.record.records import RecordError

FORMAT_VERSION = 1


@dataclass(frozen=True)
class GroupStanding:
    """One series at one size and token budget."""

    label: str
    standing: str
    """Whether it is bracketed, waits, or what is open and why."""
    added: int
    """Runs that its rules added."""


@dataclass(frozen=True)
class ContestStanding:
    """A pair of series, or one against a target, under `decide`."""

    scale: str
    """Size, with the token budget where there are several."""
    outcome: str
    """In words, with the difference and its interval, or the formula's value."""
    sigma: float | None
    """Standard deviation in nats, of the differences between the pair at one seed, or of one series' losses; None below
    two seeds."""
    seeds: int
    """That the outcome rests on; none of them chose the settings."""


@dataclass(frozen=True)
class SweepTuning:
    """The rules of one sweep, the same for all of its series, and how they stand."""

    sweep: str
    cluster: str
    """Name of the cluster file that it was launched with."""
    max_gpu_hours: float | None
    rules: tuple[str, ...] = ()
    groups: tuple[GroupStanding, ...] = ()
    contests: tuple[ContestStanding, ...] = ()
    as_of: float | None = None
    """When they stood so, Unix seconds; None in files of earlier versions."""
    ledger_bytes: int | None = None
    """Length that the sweep's ledger had then."""
    is_final: bool = False
    """Whether the sweep was over; as it is read, whether nothing has been added to its ledger since, either."""

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> SweepTuning:
        return cls(
            **{
                **values,
                "rules": tuple(values["rules"]),
                "groups": tuple(GroupStanding(**one) for one in values["groups"]),
                "contests": tuple(ContestStanding(**one) for one in values["contests"]),
            }
        )


def write_tuning(path: Path, tuning: SweepTuning) -> None:
    """Replaces the file."""
    values = {"format_version": FORMAT_VERSION, **asdict(tuning)}
    write_atomically(path, json.dumps(values, indent=1, allow_nan=False) + "\n")


def read_all_tuning(root: Path) -> Iterator[SweepTuning]:
    """What every sweep under `root` says; a file of another format raises `RecordError`.

    `is_final` is False where the ledger beside the file is not as long any more as when it was written.
    """
    for path in sorted(root.glob("sweeps/*/tuning.json")):
        try:
            values = json.loads(path.read_text())
            version = values.pop("format_version")
            if version != FORMAT_VERSION:
                raise RecordError(f"{path}: format version {version}, this program reads {FORMAT_VERSION}")
            tuning = SweepTuning.from_dict(values)
            ledger = path.with_name("ledger.jsonl")
            is_same = not ledger.exists() or ledger.stat().st_size == tuning.ledger_bytes
            yield replace(tuning, is_final=tuning.is_final and is_same)
        except RecordError:
            raise
        except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
            raise RecordError(f"{path}: not readable ({error})") from error
