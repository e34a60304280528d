"""The state of a sweep as of one position in its ledger, so that a reader need not replay what came before.

    snapshot.jsonl           a line with length and checksum of the rest, which is sums, jobs in flight and settings
    snapshot_runs_N.jsonl    lines of runs that have a history, appended by the controller with token N: of each run the
                             last one counts; how many bytes of it, and their checksum, snapshot.jsonl says

So a snapshot costs what has changed since the last one, however many runs there are. The ledger is what counts: a
snapshot that is damaged, that belongs to another definition or whose position the ledger does not know is passed over,
and everything replayed.
"""

from __future__ import annotations

import itertools
import json
import os
import zlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from muloco_runner.record import Goodput, Kind, naming, write_atomically
from sweeps.engine.cluster import JobRequest
from sweeps.engine.counters import Counters
from sweeps.engine.policy import RULES, Cause
from sweeps.engine.run_states import Runs, queues
from sweeps.engine.sweep_state import NodeFailures, SlowNode, SweepState, TrackedJob
from sweeps.engine.tuning.growth import Added
from sweeps.engine.tuning.study import Coordinates
from sweeps.engine.work import Work
from sweeps.engine.works import Works
from sweeps.node.old_formats import cancelling_now, counters_now, request_now
from sweeps.store.definition import Definition
from sweeps.store.ledger import Damage, Position
from sweeps.store.moved_root import work_here

LAYOUT = 3
"""The format: one that is neither this nor an earlier one of those below is passed over."""
_IN_ONE_FILE = 2
"""Lines of runs stood in snapshot.jsonl."""
_OLD_LAYOUT = 1
"""The same, and rows were as `sweeps.node.old_formats` has them."""
_RUNS = "snapshot_runs_"


@dataclass(frozen=True)
class _Extent:
    """The first bytes of a file."""

    length: int = 0
    crc: int = 0

    def after(self, more: bytes) -> _Extent:
        return _Extent(self.length + len(more), zlib.crc32(more, self.crc))

    def read(self, path: Path) -> bytes | None:
        """None where the file does not hold what it held."""
        try:
            with open(path, "rb") as file:
                body = file.read(self.length)
        except OSError:
            return None
        return body if _Extent().after(body) == self else None


class SnapshotWriter:
    """The snapshots of one controller, whose lease has this token; `path` is that of snapshot.jsonl."""

    def __init__(self, path: Path, token: int) -> None:
        self.path = path
        self._runs_file = path.with_name(f"{_RUNS}{token}.jsonl")
        self._written: _Extent | None = None
        """Of the runs' file; None before the first snapshot."""

    def write(self, definition: Definition, state: SweepState, end: Position, damage: list[Damage]) -> None:
        """`state`, the same object each time, is what replaying the ledger up to `end` gives."""
        is_first = self._written is None
        self._append(b"".join(line + b"\n" for line in state.runs.lines(unsaved_alone=not is_first)))
        state.runs.note_saved()
        head = {"runs": {"file": self._runs_file.name, **asdict(self._written or _Extent())}}
        body = json.dumps(head | _head(definition, state, end, damage)).encode()
        first = json.dumps({"crc": zlib.crc32(body), "length": len(body)})
        write_atomically(self.path, f"{first}\n{body.decode()}")
        if is_first:
            for other in self.path.parent.glob(f"{_RUNS}*.jsonl"):
                if other != self._runs_file:
                    other.unlink(missing_ok=True)

    def _append(self, lines: bytes) -> None:
        before = self._written or _Extent()
        with naming(self._runs_file), open(self._runs_file, "ab" if before.length else "wb") as file:
            # What was written of lines whose writing failed.
            file.truncate(before.length)
            file.write(lines)
            file.flush()
            os.fsync(file.fileno())
        self._written = before.after(lines)


def _head(definition: Definition, state: SweepState, end: Position, damage: list[Damage]) -> dict[str, Any]:
    return {
        "layout": LAYOUT,
        "definition": definition.id,
        "end": asdict(end),
        "damage": [[one.line, one.why] for one in damage],
        "prefix": state.prefix,
        "jobs": [_job_to_dict(job) for job in state.jobs.values()],
        "num_jobs": state.num_jobs,
        "strikes": {node: failures.times for node, failures in state.node_failures.items()},
        "slow_nodes": {node: asdict(slow) for node, slow in state.slow_nodes.items()},
        "paused": state.paused,
        "own_limits": state.own_limits,
        "defer_until": state.defer_until,
        "left_after": state.left_after,
        "commands": sorted(state.commands),
        "tally": state.counters.to_dict(),
        "waiting": sorted(
            itertools.chain.from_iterable(
                state.runs.with_history_at(queue.positions()) for queue in state.waiting.values()
            )
        ),
        "spent_gpu_hours": state.spent_gpu_hours,
        "goodput": {processor: goodput.to_dict() for processor, goodput in state.goodput.items()},
        "crashes": [[detail, algorithm, sorted(names)] for (detail, algorithm), names in state.crashes.items()],
        "failed": sorted(state.failed),
        **({"behind": {trunk: sorted(names) for trunk, names in state.behind.items()}} if state.behind else {}),
        **({"study": _study_to_dict(state)} if definition.study is not None else {}),
    }


def read_snapshot(
    path: Path, definition: Definition, ledger: Path, prefix: str
) -> tuple[SweepState, Position, list[Damage]] | None:
    """The state, the position in the ledger up to which it is right, and the damage before it; None where there is no
    snapshot that can be believed."""
    try:
        first, _, body = path.read_bytes().partition(b"\n")
        if json.loads(first) != {"crc": zlib.crc32(body), "length": len(body)}:
            return None
    except (OSError, ValueError):
        return None
    head, *lines = body.split(b"\n")
    values = json.loads(head)
    of_this_sweep = (values["definition"], values["prefix"]) == (definition.id, prefix)
    if not of_this_sweep or values["layout"] not in (LAYOUT, _IN_ONE_FILE, _OLD_LAYOUT):
        return None
    if values["layout"] == LAYOUT:
        runs = values["runs"]
        appended = _Extent(runs["length"], runs["crc"]).read(path.with_name(runs["file"]))
        if appended is None:
            return None
        lines = appended.splitlines()
    end = Position(**values["end"])
    if not end.is_in(ledger):
        return None
    works = Works.of(definition.works)
    if values["layout"] == _OLD_LAYOUT:
        values["tally"] = counters_now(values["tally"], works.group_labels)
    for one in values.get("study", {}).get("added", ()):
        one["work"] = work_here(one["work"], definition.name, path.parents[2])
    state = _state(values, works.copy(), lines)
    return state, end, [Damage(line, why) for line, why in values["damage"]]


def _state(values: dict[str, Any], works: Works, lines: list[bytes]) -> SweepState:
    study = values.get("study", {"losses": {}, "added": [], "blocked": {}, "unscored": []})
    of_file = set(works.names) if study["added"] else set()
    for one in study["added"]:
        if one["work"]["name"] not in of_file:
            works.add(Work.from_dict(one["work"]))
    runs = Runs(works, {_name_in(line): line for line in lines})
    behind = {trunk: set(names) for trunk, names in values.get("behind", {}).items()}
    cannot_start = {name for names in behind.values() for name in names}
    untouched = (position for position in runs.untouched() if works.names[position] not in cannot_start)
    waiting = queues(runs, [*untouched, *values["waiting"]])
    return SweepState(
        runs,
        values["prefix"],
        jobs={job["tag"]: _job_from_dict(job) for job in values["jobs"]},
        num_jobs=values["num_jobs"],
        node_failures={node: NodeFailures(times) for node, times in values["strikes"].items()},
        slow_nodes={node: SlowNode(**slow) for node, slow in values.get("slow_nodes", {}).items()},
        paused=values["paused"],
        own_limits=values["own_limits"],
        defer_until=values["defer_until"],
        left_after=values.get("left_after", {}),
        commands=set(values["commands"]),
        counters=Counters.from_dict(values["tally"]),
        waiting=waiting,
        spent_gpu_hours=values["spent_gpu_hours"],
        goodput=_goodput(values),
        crashes={(detail, algorithm): set(names) for detail, algorithm, names in values["crashes"]},
        failed=set(values["failed"] if "failed" in values else _failed_in(values["tally"]["held"])),
        unscored=set(study["unscored"]),
        losses=study["losses"],
        added={one["work"]["name"]: Added(Coordinates(*one["at"]), one["why"]) for one in study["added"]},
        rungs=study.get("rungs", {}),
        num_rungs=study.get("num_rungs", 0),
        stopped=study.get("stopped", {}),
        behind=behind,
        blocked=study["blocked"],
    )


def _study_to_dict(state: SweepState) -> dict[str, Any]:
    """What the sweep knows of its own results; runs that were added in their order."""
    added = [
        {"work": state.runs[name].work.to_dict(), "at": list(one.at), "why": one.why}
        for name, one in state.added.items()
    ]
    return {
        "unscored": sorted(state.unscored),
        "losses": state.losses,
        "added": added,
        "rungs": state.rungs,
        "num_rungs": state.num_rungs,
        "stopped": state.stopped,
        "blocked": state.blocked,
    }


def _goodput(values: dict[str, Any]) -> dict[str, Goodput]:
    """What a snapshot without it was charged is not itemised."""
    if "goodput" in values:
        return {processor: Goodput.from_dict(one) for processor, one in values["goodput"].items()}
    spent = sum(values["spent_gpu_hours"].values())
    return {"GPU": Goodput({Kind.WORK: spent})} if spent else {}


def _failed_in(held: Mapping[str, Sequence[str]]) -> Iterator[str]:
    """The runs of a snapshot that did not list those that failed, by why they are held."""
    failures = tuple(f"{cause.value}: " for cause, rule in RULES.items() if rule.is_failure)
    return (name for why, names in held.items() if why.startswith(failures) for name in names)


def _name_in(line: bytes) -> str:
    """The first value of a run's line, without reading the others."""
    name, _ = _DECODER.raw_decode(line.decode(), 1)
    return str(name)


_DECODER = json.JSONDecoder()


def _job_to_dict(job: TrackedJob) -> dict[str, Any]:
    return {
        "tag": job.tag,
        "request": job.request.to_dict(),
        "intended_at": job.intended_at,
        "job_id": job.job_id,
        "started_at": job.started_at,
        "cancelling": {name: cause.value for name, cause in job.cancelling.items()},
        "withdrawing": job.cancel_pending,
        "hold": job.hold,
        **({"why": job.why} if job.why else {}),
        "uid": job.uid,
        "submitted_at": job.submitted_at,
        "queued_at": job.queued_at,
    }


def _job_from_dict(values: dict[str, Any]) -> TrackedJob:
    request = JobRequest.from_dict(request_now(values["request"]))
    cancelling = cancelling_now(values["cancelling"], [attempt.work.name for attempt in request.attempts])
    return TrackedJob(
        values["tag"],
        request,
        values["intended_at"],
        values["job_id"],
        values["started_at"],
        {name: Cause(cause) for name, cause in cancelling.items()},
        values["withdrawing"],
        values.get("why", {}),
        values.get("hold", ""),
        values.get("uid"),
        values.get("submitted_at"),
        # Before there were successors every job was in the cluster's queue from its submission on.
        values.get("queued_at", values["intended_at"]),
    )
