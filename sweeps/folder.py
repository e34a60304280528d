"""The folder of one sweep, <root>/sweeps/<name>/, and the only code that knows its files.

definition.json   cluster and pieces of work, replaced atomically by each launch
ledger.jsonl      the event log (`sweeps.ledger`)
jobs/<tag>.json   what was asked for with each job, written before it is submitted
inbox/            people's commands on their way to the controller
lease/            which controller is at work (`sweeps.lease`)
cluster/          the cluster's own files
controller.log    what a detached controller prints
"""

from __future__ import annotations

import hashlib
import json
import time
import uuid
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from muloco_runner.config import ConfigError
from muloco_runner.record import write_atomically
from sweeps.clusters.interface import JobRequest
from sweeps.config import ClusterConfig, read_cluster
from sweeps.ledger import Damage, Event, read_events
from sweeps.state import RunState, SweepState
from sweeps.work import Attempt, Work


@dataclass(frozen=True)
class Definition:
    """What a sweep is: its pieces of work and where they run."""

    name: str
    cluster_name: str
    cluster: dict[str, Any]
    works: list[Work]

    def read_cluster(self) -> ClusterConfig:
        return read_cluster(self.cluster_name, self.cluster)


class SweepFolder:
    """Paths, and reading and writing of everything but the ledger's lines."""

    def __init__(self, root: Path, name: str) -> None:
        self.root, self.name = root, name
        self.path = root / "sweeps" / name

    @staticmethod
    def all_under(root: Path) -> list[SweepFolder]:
        return [SweepFolder(root, path.parent.name) for path in sorted(root.glob("sweeps/*/definition.json"))]

    @property
    def ledger_file(self) -> Path:
        return self.path / "ledger.jsonl"

    @property
    def lease_dir(self) -> Path:
        return self.path / "lease"

    @property
    def cluster_dir(self) -> Path:
        return self.path / "cluster"

    @property
    def inbox(self) -> Path:
        return self.path / "inbox"

    @property
    def controller_log(self) -> Path:
        return self.path / "controller.log"

    @property
    def tag_prefix(self) -> str:
        """The sweep's name and a few digits of its place, so that two sweeps of one name are told apart."""
        return f"{self.name}-{hashlib.sha256(str(self.path.resolve()).encode()).hexdigest()[:6]}-"

    def write_definition(self, definition: Definition) -> None:
        values = {
            "name": definition.name,
            "cluster_name": definition.cluster_name,
            "cluster": definition.cluster,
            "works": [work.to_dict() for work in definition.works],
        }
        write_atomically(self.path / "definition.json", json.dumps(values, allow_nan=False) + "\n")

    def read_definition(self) -> Definition:
        """A sweep that is not there, or not readable, raises `ConfigError`."""
        path = self.path / "definition.json"
        try:
            values = json.loads(path.read_text())
            values["works"] = [Work.from_dict(work) for work in values["works"]]
            return Definition(**values)
        except FileNotFoundError:
            raise ConfigError(f"no sweep {self.name!r} under {self.root}: launch it, or name another folder") from None
        except (ValueError, KeyError, TypeError) as error:
            raise ConfigError(f"{path}: damaged ({error}): launch the sweep again, which rewrites it") from None

    def write_request(self, request: JobRequest) -> None:
        write_atomically(self.path / "jobs" / f"{request.tag}.json", json.dumps(request.to_dict()) + "\n")

    def read_request(self, tag: str) -> JobRequest | None:
        try:
            return JobRequest.from_dict(json.loads((self.path / "jobs" / f"{tag}.json").read_text()))
        except (FileNotFoundError, ValueError, KeyError, TypeError):
            return None

    def drop_request(self, tag: str) -> None:
        """Of a job that has ended."""
        (self.path / "jobs" / f"{tag}.json").unlink(missing_ok=True)

    def read_state(self, works: Sequence[Work]) -> tuple[SweepState, list[Damage]]:
        """Replays the ledger over the given works."""
        events, damage = read_events(self.ledger_file)
        by_name = {work.name: work for work in works}
        state = SweepState({work.name: RunState(work) for work in works}, self.tag_prefix)
        settled = {event["tag"] for event in events if event["event"] in ("ended", "refused")}
        for event in events:
            request = None
            if event["event"] == "intended":
                request = _past_request(event, by_name) if event["tag"] in settled else self.read_request(event["tag"])
                if request is None:
                    damage.append(Damage(0, f"the request of job {event['tag']} is gone"))
                    state.num_jobs += 1
                    continue
            state.apply(event, request)
        return state, damage

    def send(self, command: str, **values: Any) -> None:
        """A person's command, for the controller to carry out at its next tick."""
        name = f"{time.time_ns()}-{uuid.uuid4().hex[:8]}"
        event: Event = {"event": command, "command": name, **values}
        write_atomically(self.inbox / f"{name}.json", json.dumps(event) + "\n")

    def received(self) -> list[tuple[Path, Event]]:
        """Commands that wait, oldest first."""
        found = []
        for path in sorted(self.inbox.glob("[0-9]*.json")):
            try:
                found.append((path, json.loads(path.read_text())))
            except ValueError:
                path.unlink()
        return found


def _past_request(event: Event, works: Mapping[str, Work]) -> JobRequest:
    """Of a job that has ended: as much as the history of its runs needs."""
    attempts = tuple(Attempt(works[name], number) for name, number in event["runs"].items() if name in works)
    return JobRequest(event["tag"], event["allocation"], attempts, 0, 0, 0, 0.0)
