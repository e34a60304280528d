"""A snapshot says what replaying the ledger would say, or is not believed."""

import gc
import random
from pathlib import Path

import pytest
from killed_controllers import take_for_dead
from state_values import counted_anew, counter_values, values_of

from muloco_runner.config import ConfigError
from sweeps import controller as controller_module
from sweeps.controller import Tick
from sweeps.engine.cluster_config import AllocationConfig, ClusterConfig, QuotaConfig
from sweeps.engine.work import Need, Work
from sweeps.simulation.faults import FAIR, ROUGH
from sweeps.simulation.simulate import begin, play
from sweeps.simulation.simulated_cluster import SimulatedCluster
from sweeps.store import folder as folder_module
from sweeps.store.definition import Definition
from sweeps.store.folder import SweepFolder
from sweeps.store.ledger import Ledger

CLUSTER = ClusterConfig(
    "c",
    "slurm",
    [AllocationConfig("a", gpus_per_node=8, cpus_per_node=96, whole_nodes=True, quota=QuotaConfig(nodes=4))],
)


class Stopped(BaseException):
    """The sweep as it stands in the middle."""


def works(count: int = 60) -> list[Work]:
    rng = random.Random(0)
    return [
        Work(
            f'r{n}, "{n}"',
            f"/nowhere/r{n}",
            "m:f",
            {"n": n},
            Need(1, rng.choice([1, 4, 8]), 8, 0.0, rng.uniform(5, 60)),
            {"algorithm": rng.choice(["DiLoCo", "MuLoCo"]), "num_params": 1000},
        )
        for n in range(count)
    ]


@pytest.fixture
def midway(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> SweepFolder:
    """A sweep on a rough cluster, left in its middle, with a snapshot and lines after it."""
    monkeypatch.setattr(controller_module, "SNAPSHOT_LINES", 25)
    folder = SweepFolder(tmp_path, "s")
    cluster = SimulatedCluster(CLUSTER, ROUGH, 4, 1.8e9)
    controller = begin(folder, works(), cluster)
    folder.write_definition(controller.definition)
    folder.send("held", runs=[works()[-1].name], why="by hand")
    with pytest.raises(Stopped):
        play(controller, cluster, Leaves(150), 1e12)
    assert folder.snapshot_file.exists()
    return folder


class Leaves:
    """Called after each tick; goes after so many."""

    def __init__(self, ticks: int) -> None:
        self.left = ticks

    def __call__(self, tick: Tick, cluster: SimulatedCluster) -> None:
        self.left -= 1
        if self.left < 0:
            raise Stopped


def replayed(folder: SweepFolder) -> dict[str, object]:
    """Without the snapshot."""
    aside = folder.path / "aside"
    folder.snapshot_file.rename(aside)
    try:
        return values_of(folder.read_state(folder.read_definition()).state)
    finally:
        aside.rename(folder.snapshot_file)


def test_a_snapshot_and_later_lines_equal_the_whole_ledger(midway: SweepFolder) -> None:
    replay = midway.read_state(midway.read_definition())
    whole = sum(1 for _ in midway.ledger_file.open())
    assert 0 < replay.num_events < whole
    assert values_of(replay.state) == replayed(midway)
    assert counter_values(replay.state.counters) == counter_values(counted_anew(replay.state))
    assert replay.state.counts["held"] >= 1


def test_a_look_at_the_sums_makes_no_run(midway: SweepFolder) -> None:
    state = midway.read_state(midway.read_definition()).state
    assert sum(state.counts.values()) == 60
    assert len(state.runs._made) < 30


def test_a_flipped_byte_anywhere_in_a_snapshot_is_noticed(midway: SweepFolder) -> None:
    expected = replayed(midway)
    (runs,) = midway.path.glob("snapshot_runs_*")
    lines = midway.ledger_file.read_bytes().count(b"\n")
    for file in (midway.snapshot_file, runs):
        whole = file.read_bytes()
        damaged = [whole[:cut] for cut in (0, 1, len(whole) // 2, len(whole) - 1)]
        for place in random.Random(0).sample(range(len(whole)), 30):
            damaged.append(whole[:place] + bytes([whole[place] ^ 0x04]) + whole[place + 1 :])
        for text in damaged:
            file.write_bytes(text)
            replay = midway.read_state(midway.read_definition())
            assert replay.num_events == lines
            assert values_of(replay.state) == expected
        file.write_bytes(whole)
    assert midway.read_state(midway.read_definition()).num_events < lines
    runs.unlink()
    assert midway.read_state(midway.read_definition()).num_events == lines


def test_a_later_snapshot_writes_what_has_changed(midway: SweepFolder, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(controller_module, "SNAPSHOT_LINES", 10)
    take_for_dead(midway)
    cluster = SimulatedCluster(CLUSTER, ROUGH, 4, 1.8e9)
    controller = begin(midway, works(), cluster)
    controller.take_stock()
    # One file of runs, of the controller that is at work, as soon as it begins.
    (runs,) = midway.path.glob("snapshot_runs_*")
    before, tried = runs.read_bytes(), len(list(controller.state.runs.with_history()))
    assert before.count(b"\n") == tried
    midway.send("held", runs=[works()[-2].name], why="by hand")
    for _ in range(5):
        controller.tick()
        cluster.world.advance(cluster.world.now + 600.0)
    after = runs.read_bytes()
    assert after.startswith(before)
    assert 0 < after.count(b"\n") - tried < 40
    assert values_of(midway.read_state(midway.read_definition()).state) == replayed(midway)

    # What the disk took of lines that it had no room for is not in the way of the next.
    with runs.open("ab") as file:
        file.write(b"a part of a li")
    midway.send("held", runs=[works()[-3].name], why="by hand")
    for _ in range(20):
        controller.tick()
        cluster.world.advance(cluster.world.now + 600.0)
    assert b"a part" not in runs.read_bytes()
    assert values_of(midway.read_state(midway.read_definition()).state) == replayed(midway)


def test_a_command_without_ticks_writes_no_snapshot(midway: SweepFolder, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(controller_module, "SNAPSHOT_LINES", 1)
    take_for_dead(midway)
    before = midway.snapshot_file.read_bytes()
    controller = begin(midway, works(), SimulatedCluster(CLUSTER, ROUGH, 4, 1.8e9))
    midway.send("paused", paused=True)
    controller.apply_pending_commands()
    assert controller.state.paused
    assert midway.snapshot_file.read_bytes() == before


def test_ticks_search_no_runs_for_garbage(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    cluster = SimulatedCluster(CLUSTER, FAIR, 4, 1.8e9)
    controller = begin(SweepFolder(tmp_path, "s"), works(3), cluster)
    monkeypatch.setattr(controller, "_sleep", lambda seconds: cluster.world.advance(cluster.world.now + 3600.0))
    frozen: list[int] = []
    assert controller.run(lambda tick: frozen.append(gc.get_freeze_count())).counts["done"] == 3
    assert min(frozen) > 0
    assert gc.get_freeze_count() == 0


def test_a_long_ledger_is_not_read_without_a_word(
    midway: SweepFolder, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(folder_module, "_LONG_REPLAY_BYTES", midway.ledger_file.stat().st_size)
    midway.read_state(midway.read_definition())
    assert capsys.readouterr().err == ""
    midway.snapshot_file.unlink()
    midway.read_state(midway.read_definition())
    assert "MB of the ledger of sweep s, for some seconds" in capsys.readouterr().err


def test_a_snapshot_of_another_ledger_is_not_believed(midway: SweepFolder) -> None:
    lines = midway.ledger_file.read_bytes().splitlines(keepends=True)
    midway.ledger_file.write_bytes(b"".join(lines[:10]))
    assert values_of(midway.read_state(midway.read_definition()).state) == replayed(midway)
    assert midway.read_state(midway.read_definition()).num_events == 10


def test_a_snapshot_of_another_definition_is_not_believed(midway: SweepFolder) -> None:
    definition = midway.read_definition()
    fewer = Definition("s", definition.cluster_name, definition.cluster, definition.works[:-1])
    assert fewer.id != definition.id
    midway.write_definition(fewer)
    replay = midway.read_state(midway.read_definition())
    assert len(replay.state.runs) == 59
    assert values_of(replay.state) == replayed(midway)


def test_damage_before_a_snapshot_is_still_told(midway: SweepFolder, monkeypatch: pytest.MonkeyPatch) -> None:
    lines = midway.ledger_file.read_bytes().splitlines(keepends=True)
    midway.ledger_file.write_bytes(b"".join([*lines[:5], b"not json\n", *lines[5:]]))
    take_for_dead(midway)
    monkeypatch.setattr(controller_module, "SNAPSHOT_LINES", 0)
    controller = begin(midway, works(), SimulatedCluster(CLUSTER, ROUGH, 4, 1.8e9))
    controller.tick()
    replay = midway.read_state(midway.read_definition())
    assert replay.num_events == 0
    assert [one.line for one in replay.damage] == [6]


def test_no_snapshot_is_kept_once_another_has_written(midway: SweepFolder, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(controller_module, "SNAPSHOT_LINES", 0)
    take_for_dead(midway)
    controller = begin(midway, works(), SimulatedCluster(CLUSTER, ROUGH, 4, 1.8e9))
    before = midway.snapshot_file.read_bytes()
    with open(midway.ledger_file, "ab") as file:
        file.write(b"of a writer that was taken for dead\n")
    controller.ledger.append("paused", paused=True)
    controller.tick()
    assert midway.snapshot_file.read_bytes() == before


def test_a_definition_is_read_as_it_was_written(tmp_path: Path) -> None:
    folder = SweepFolder(tmp_path, "s")
    definition = Definition("s", "c", {"kind": "slurm"}, works())
    folder.write_definition(definition)
    read = folder.read_definition()
    assert list(read.works) == works()
    assert read.id == definition.id
    assert Definition("s", "c", {"kind": "slurm"}, works(59)).id != definition.id


@pytest.mark.parametrize("place", ["head", "line", "cut"])
def test_a_damaged_definition_is_one_clear_line(tmp_path: Path, place: str) -> None:
    folder = SweepFolder(tmp_path, "s")
    folder.write_definition(Definition("s", "c", {"kind": "slurm"}, works()))
    whole = folder.definition_file.read_bytes()
    head_ends = whole.index(b"\n")
    damaged = {
        "head": whole[5:],
        "line": whole[: head_ends + 1] + b"\x00" + whole[head_ends + 2 :],
        "cut": whole[: -len(whole) // 3],
    }
    folder.definition_file.write_bytes(damaged[place])
    with pytest.raises(ConfigError, match="launch the sweep again"):
        list(folder.read_definition().works)


def test_a_ledger_knows_its_end_as_a_reader_does(tmp_path: Path) -> None:
    folder = SweepFolder(tmp_path, "s")
    controller = begin(folder, works(), SimulatedCluster(CLUSTER, ROUGH, 4, 1.8e9))
    for _ in range(3):
        controller.tick()
    ledger: Ledger = controller.ledger
    assert ledger.end == folder.read_state(controller.definition).end
