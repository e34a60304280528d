"""The folder of one sweep, <root>/sweeps/<name>/, and the only code that knows its files.

definition.jsonl  cluster and pieces of work, replaced atomically by each launch (`sweeps.store.definition`)
config_sources.json  the folders that the last launch was composed from, if not the package's alone
ledger.jsonl      the event log (`sweeps.store.ledger`)
snapshot.jsonl    what replaying it gave a while ago, with snapshot_runs_N.jsonl (`sweeps.store.snapshot`)
wandb.json        what Weights & Biases has not got (`sweeps.training.wandb_unsent`)
goodput.json      where the charged hours of its jobs went (`muloco_runner.record.goodput`)
tuning.json       by what rules it went on by its results, and how they stand (`muloco_runner.record.tuning`)
jobs/<tag>.json   what was asked for with each job, written before it is submitted
inbox/            people's commands on their way to the controller
lease/            which controller is at work (`sweeps.store.lease`)
cluster/          the cluster's own files
controller.log    what a detached controller prints
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import pwd
import sys
import time
import uuid
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

from muloco_runner.config import ConfigError
from muloco_runner.record import SweepTuning, write_atomically, write_goodput, write_tuning
from sweeps.engine.cluster import JobRequest
from sweeps.engine.run_states import Runs
from sweeps.engine.sweep_state import Event, SweepState, number_of
from sweeps.engine.tuning.study import Coordinates
from sweeps.engine.work import Attempt
from sweeps.node.old_formats import request_now
from sweeps.store.definition import Definition
from sweeps.store.ledger import START, Damage, Position, read_events
from sweeps.store.moved_root import work_here
from sweeps.store.snapshot import SnapshotWriter, read_snapshot

_LONG_REPLAY_BYTES = 20_000_000
"""Of a ledger, which take seconds: about 70,000 lines."""


class Replay(NamedTuple):
    """What a sweep's ledger says."""

    state: SweepState
    damage: list[Damage]
    end: Position
    """Where the ledger ended when it was read."""
    num_events: int
    """Replayed, beyond the snapshot."""


class SweepFolder:
    """Paths, and reading and writing of everything but the ledger's lines."""

    def __init__(self, root: Path, name: str) -> None:
        self.root, self.name = root, name
        self.path = root / "sweeps" / name

    @staticmethod
    def all_under(root: Path) -> list[SweepFolder]:
        return [SweepFolder(root, path.parent.name) for path in sorted(root.glob("sweeps/*/definition.jsonl"))]

    @property
    def definition_file(self) -> Path:
        return self.path / "definition.jsonl"

    @property
    def snapshot_file(self) -> Path:
        return self.path / "snapshot.jsonl"

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
    def wandb_log(self) -> Path:
        return self.path / "wandb.log"

    @property
    def owner(self) -> str | None:
        """Name of the user who launched it, where that is somebody else; None where it is this process's own."""
        uid = self.definition_file.stat().st_uid
        return None if uid == os.getuid() else _name_of(uid)

    def others_jobs(self, tags: Iterable[str]) -> str | None:
        """Name of the user whose controller submitted one of those jobs, where that is not who holds the lease."""
        # As the file system sees this process: some map root to somebody else.
        own = max(self.lease_dir.glob("[0-9]*")).stat().st_uid
        for tag in tags:
            with contextlib.suppress(FileNotFoundError):
                uid = (self.path / "jobs" / f"{tag}.json").stat().st_uid
                if uid != own:
                    return _name_of(uid)
        return None

    @property
    def tag_prefix(self) -> str:
        """The sweep's name and a few digits of its path's hash, so that two sweeps of one name differ."""
        return f"{self.name}-{hashlib.sha256(str(self.path.resolve()).encode()).hexdigest()[:6]}-"

    def owns(self, tag: str) -> bool:
        """Whether a job with that tag is this sweep's, whoever knows of it."""
        return tag.startswith(self.tag_prefix)

    def write_definition(self, definition: Definition) -> None:
        write_atomically(self.definition_file, definition.text)

    def write_config_sources(self, sources: Mapping[str, Any] | None) -> None:
        """Writes where the launch's configs were composed from; None: from the package's files alone."""
        file = self.path / "config_sources.json"
        if sources is None:
            file.unlink(missing_ok=True)
        else:
            write_atomically(file, json.dumps(sources, indent=1) + "\n")

    def read_definition(self) -> Definition:
        """A sweep that is not there, or not readable, raises `ConfigError`."""
        try:
            return Definition.read(self.definition_file, self.root)
        except FileNotFoundError:
            raise ConfigError(f"no sweep {self.name!r} under {self.root}: launch it, or name another folder") from None

    def write_request(self, request: JobRequest) -> None:
        write_atomically(self.path / "jobs" / f"{request.tag}.json", json.dumps(request.to_dict()) + "\n")

    def read_request(self, tag: str) -> JobRequest | None:
        try:
            values = request_now(json.loads((self.path / "jobs" / f"{tag}.json").read_text()))
            for attempt in values["attempts"]:
                attempt["work"] = work_here(attempt["work"], self.name, self.root)
            return JobRequest.from_dict(values)
        except (FileNotFoundError, ValueError, KeyError, TypeError):
            return None

    def drop_request(self, tag: str) -> None:
        """Removes the request of a job that has ended."""
        (self.path / "jobs" / f"{tag}.json").unlink(missing_ok=True)

    def read_state(self, definition: Definition) -> Replay:
        """The ledger replayed over the sweep's works, from the newest snapshot on where there is one."""
        known = read_snapshot(self.snapshot_file, definition, self.ledger_file, self.tag_prefix)
        state, start, damage = known or (SweepState.of(definition.works, self.tag_prefix), START, [])
        self._tell_of_long_replay(start)
        reading = read_events(self.ledger_file, start)
        damage += reading.damage
        ends = {event["tag"]: n for n, event in enumerate(reading.events) if event["event"] in ("ended", "refused")}
        for n, event in enumerate(reading.events):
            if definition.move is not None:
                event = definition.move.words(event)  # noqa: PLW2901
            if event["event"] == "added":
                # A definition that was written anew does not know where the root was.
                runs = [{**one, "work": work_here(one["work"], self.name, self.root)} for one in event["runs"]]
                event = {**event, "runs": runs}  # noqa: PLW2901
            request = None
            if event["event"] == "intended":
                is_past = ends.get(event["tag"], -1) > n
                request = _past_request(event, state.runs) if is_past else self.read_request(event["tag"])
                if request is None:
                    damage.append(Damage(0, f"the request of job {event['tag']} is gone"))
                    state.num_jobs = max(state.num_jobs, number_of(event["tag"]))
                    continue
            state.apply(event, request)
        # A lost line may have recorded a later job: no tag is used twice.
        requested = (number_of(path.stem) for path in (self.path / "jobs").glob("*.json"))
        state.num_jobs = max(state.num_jobs, *requested, 0)
        return Replay(state, damage, reading.end, len(reading.events))

    def _tell_of_long_replay(self, start: Position) -> None:
        length = self.ledger_file.stat().st_size - start.offset if self.ledger_file.exists() else 0
        if length >= _LONG_REPLAY_BYTES:
            what = f"{length / 1e6:,.0f} MB of the ledger of sweep {self.name}"
            why = "nothing shorter tells how it stands with the runs that it has now"
            print(f"reading {what}, for some seconds: {why}", file=sys.stderr, flush=True)

    def added_runs(self) -> dict[str, Coordinates]:
        """Return where the runs stand that the sweep has added by its results, by name."""
        events = read_events(self.ledger_file, START).events
        added = (run for event in events if event["event"] == "added" for run in event["runs"])
        return {run["work"]["name"]: Coordinates.of(run) for run in added}

    def snapshots(self, token: int) -> SnapshotWriter:
        """Return what writes the snapshots of the controller whose lease has this token."""
        return SnapshotWriter(self.snapshot_file, token)

    def write_goodput(self, state: SweepState) -> None:
        write_goodput(self.path / "goodput.json", self.name, state.goodput)

    def write_tuning(self, tuning: SweepTuning) -> None:
        write_tuning(self.path / "tuning.json", tuning)

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
            except FileNotFoundError:
                # Carried out meanwhile, where it is not the controller that asks.
                continue
            except ValueError:
                path.unlink(missing_ok=True)
        return found


def _name_of(uid: int) -> str:
    try:
        return pwd.getpwuid(uid).pw_name
    except KeyError:
        return f"user {uid}"


def _past_request(event: Event, runs: Runs) -> JobRequest:
    """The request of a job that has ended, as far as the history of its runs needs it."""
    attempts = tuple(Attempt(runs[name].work, number) for name, number in event["runs"].items() if name in runs)
    return JobRequest(event["tag"], event["allocation"], attempts, 0, 0, 0, 0.0)
