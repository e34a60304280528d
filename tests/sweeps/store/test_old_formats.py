"""Files of a sweep that an earlier version wrote are read as that version meant them."""

import json
import zlib
from pathlib import Path
from typing import Any

import pytest
from state_values import values_of

from sweeps.engine.cluster import JobRequest
from sweeps.engine.sweep_state import Event
from sweeps.engine.work import Adapter, Need, Work
from sweeps.hydra_apps.job_adapter import HYDRA_JOB
from sweeps.node.old_formats import cancelling_now, work_now
from sweeps.node.run_attempt import resolve_entry
from sweeps.store.definition import Definition
from sweeps.store.folder import SweepFolder
from sweeps.store.lease import Lease
from sweeps.store.ledger import Ledger
from sweeps.training.adapter import TRAINING

CLUSTER = {
    "kind": "slurm",
    "hang_minutes": 5.0,
    "doubt_seconds": 9.0,
    "allocations": [{"name": "a", "partition": "gpu", "account": None, "qos": None, "sbatch": {"mem": 1}, "quota": {}}],
    "controller": {"partition": None, "account": None, "qos": None, "wall_minutes": 60, "memory_gigabytes": 2.0},
}
ENTRIES = {
    "sweeps.training:train": ("sweeps.training.entry:train", TRAINING),
    "sweeps.multirun.program:run": ("sweeps.hydra_apps.program:run", HYDRA_JOB),
}


def old_work(name: str, entry: str) -> dict[str, Any]:
    labels = {"algorithm": "MuLoCo", "num_params": 29000} if "train" in entry else {"lr": "0.1"}
    return {
        "name": name, "folder": f"/nowhere/{name}", "entry": entry, "arguments": {}, "need": vars(Need()),
        "labels": labels, "result": "result.json", "source": "",
    }  # fmt: skip


def old_request(tag: str, works: list[dict[str, Any]], number: int, halvings: int) -> dict[str, Any]:
    attempts = [{"work": work, "number": number, "memory_halvings": halvings} for work in works]
    return {
        "tag": tag, "allocation": "a", "attempts": attempts, "nodes": 1, "gpus_per_node": 8, "cpus_per_node": 1,
        "wall_minutes": 60.0, "excluded_nodes": [], "code": "/nowhere/code",
    }  # fmt: skip


@pytest.fixture(params=ENTRIES)
def entry(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture
def folder(tmp_path: Path, entry: str) -> SweepFolder:
    """Two runs as an earlier version left them: one out of memory once and submitted again, one untried."""
    folder = SweepFolder(tmp_path, "s")
    works = [old_work(name, entry) for name in ("r0", "r1")]
    common = {key: value for key, value in works[0].items() if key not in ("name", "folder")}
    head = {
        "name": "s", "cluster_name": "c", "cluster": CLUSTER, "common": common, "names": ["r0", "r1"],
        "shapes": [[1, 0, 1]], "shape_numbers": [0, 0], "minutes": [60.0, 60.0], "groups": [old_group(entry)],
        "group_numbers": [0, 0], "id": "old",
    }  # fmt: skip
    lines = [head, *({"name": work["name"], "folder": work["folder"]} for work in works)]
    folder.path.mkdir(parents=True)
    folder.definition_file.write_text("".join(json.dumps(line) + "\n" for line in lines))
    tags = [f"{folder.tag_prefix}{n:06d}" for n in (1, 2)]
    (folder.path / "jobs").mkdir()
    for number, tag in enumerate(tags, start=1):
        text = json.dumps(old_request(tag, works[:1], number, number - 1))
        (folder.path / "jobs" / f"{tag}.json").write_text(text)
    lease = Lease(folder.lease_dir)
    ledger = Ledger(folder.ledger_file, lease, lambda: 1000.0)
    for event in events(*tags):
        ledger.append(event.pop("event"), **event)
    lease.release()
    return folder


def old_group(entry: str) -> list[Any]:
    return ["MuLoCo", 29000] if "train" in entry else ["", 0]


def events(first: str, second: str) -> list[Event]:
    ending = {
        "cause": "out of memory", "detail": "", "checkpoint_step": 0, "minutes_left": None,
        "started_at": 1.0, "at": 2.0,
    }  # fmt: skip
    return [
        {"event": "intended", "tag": first, "allocation": "a", "runs": {"r0": 1}},
        {"event": "ended", "tag": first, "endings": {"r0": ending}, "gpu_hours": 0.0, "struck_nodes": []},
        {"event": "intended", "tag": second, "allocation": "a", "runs": {"r0": 2}},
    ]


def test_work_finds_its_entry_and_its_adapter(folder: SweepFolder, entry: str) -> None:
    now, adapter = ENTRIES[entry]
    for work in folder.read_definition().works:
        assert (work.entry, work.adapter) == (now, adapter)
        assert callable(resolve_entry(work.entry))
    again = Definition("s", "c", CLUSTER, folder.read_definition().works)
    folder.write_definition(again)
    assert list(folder.read_definition().works) == list(again.works)


@pytest.mark.parametrize("adapter", [TRAINING, HYDRA_JOB], ids=["training", "hydra"])
def test_adapters_that_said_nothing_of_exit_codes_mean_today(adapter: Adapter) -> None:
    values = Work("w", "/nowhere/w", "m:f", adapter=adapter).to_dict()
    old = {key: value for key, value in values["adapter"].items() if key != "speaks_exit_codes"}
    assert Work.from_dict(work_now({**values, "adapter": old})).adapter == adapter
    assert Work.from_dict(work_now(values)).adapter == adapter


def test_settings_of_the_cluster_keep_their_values(folder: SweepFolder) -> None:
    cluster = folder.read_definition().read_cluster()
    assert (cluster.heartbeat_timeout_minutes, cluster.submit_confirm_timeout_seconds) == (5.0, 9.0)
    assert cluster.allocations[0].options["sbatch"] == {"mem": 1}


def test_the_state_and_what_the_next_attempts_are_given(folder: SweepFolder, entry: str) -> None:
    state = folder.read_state(folder.read_definition()).state
    assert {name: run.status for name, run in state.runs.items()} == {"r0": "submitted", "r1": "waiting"}
    expected = {"memory_halvings": 1} if "train" in entry else {}
    assert state.runs["r0"].adjustments == expected
    (job,) = state.jobs.values()
    assert job.request.attempts[0].adjustments == expected
    assert JobRequest.from_dict(json.loads(json.dumps(job.request.to_dict()))) == job.request
    assert sum(map(sum, (counts.values() for counts in state.counters.groups.values()))) == 2
    rows = {group for group, counts in state.counters.groups.items() if any(counts.values())}
    assert rows == {("MuLoCo", 29000) if "train" in entry else ()}


def test_an_old_snapshot_says_what_the_ledger_says(folder: SweepFolder, entry: str) -> None:
    definition = folder.read_definition()
    replay = folder.read_state(definition)
    folder.snapshots(1).write(definition, replay.state, replay.end, [])
    (runs,) = folder.path.glob("snapshot_runs_*")
    make_old(folder.snapshot_file, runs, old_group(entry), old_work("r0", entry))
    known = folder.read_state(definition)
    assert known.num_events == 0
    assert values_of(known.state) == values_of(replay.state)


def make_old(snapshot: Path, runs: Path, group: list[Any], work: dict[str, Any]) -> None:
    """As the earlier version would have written it, into one file."""
    _, head = snapshot.read_text().split("\n")
    lines = runs.read_text().splitlines()
    runs.unlink()
    values = json.loads(head)
    values["layout"] = 1
    for name in ("groups", "left", "finished"):
        values["tally"][name] = [[group, *rest] for _, *rest in values["tally"][name]]
    for job in values["jobs"]:
        job["request"] = old_request(job["tag"], [work], 2, 1)
    body = "\n".join([json.dumps(values), *lines])
    first = json.dumps({"crc": zlib.crc32(body.encode()), "length": len(body.encode())})
    snapshot.write_text(f"{first}\n{body}")


def test_work_of_today_is_read_as_it_was_written() -> None:
    work = Work("r", "/nowhere/r", "m:f", labels={"algorithm": "MuLoCo"}, adapter=TRAINING)
    assert Work.from_dict(json.loads(json.dumps(work.to_dict()))) == work


def test_a_job_that_was_being_cancelled_says_why_for_each_run() -> None:
    assert cancelling_now("hang", ["a", "b"]) == {"a": "hang", "b": "hang"}
    assert cancelling_now(None, ["a"]) == {}
    assert cancelling_now({"b": "cancelled"}, ["a", "b"]) == {"b": "cancelled"}
