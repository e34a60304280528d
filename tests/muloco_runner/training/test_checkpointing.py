"""Checkpoints under kills, damage and full disks; written while training goes on."""

import json
import os
import subprocess
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
from forked import ForkedProcess
from torch.testing._internal.distributed.fake_pg import FakeStore

from benchmarks.train_parts.peak_memory import peak_bytes
from muloco_runner.config import ExecutionConfig, ModelConfig, QuantisationConfig, RunConfig, StreamingConfig
from muloco_runner.data.corpus import load_corpus
from muloco_runner.distributed.communicator import Communicator
from muloco_runner.distributed.topology import Topology
from muloco_runner.job import run_job
from muloco_runner.record import ExitCode, RunFolder
from muloco_runner.training.checkpoints.store import Checkpoint, CheckpointError, CheckpointStore
from muloco_runner.training.loop import Trainer
from muloco_runner.training.session import Session

SCRIPT = Path(__file__).parent / "kills_script.py"
OFTEN = {"device": "cpu", "log_interval_steps": 1, "checkpoint_interval_seconds": 0.01}
MakeRun = Callable[..., RunConfig]
MakeFolder = Callable[..., RunFolder]


def final_state(folder: RunFolder, num_workers: int) -> dict[str, Any]:
    """All that a finished run's last checkpoint holds but times."""
    loaded = CheckpointStore(folder.checkpoint_dir, Communicator(Topology(num_workers))).load(range(num_workers))
    assert loaded is not None
    shared = {k: v for k, v in loaded.shared.items() if k not in ("train_seconds", "started_at")}
    return {"step": loaded.step, "shared": shared, "workers": loaded.workers}


def assert_same(found: Any, expected: Any, where: str = "state") -> None:
    assert type(found) is type(expected), where
    if isinstance(expected, torch.Tensor):
        assert torch.equal(found, expected), where
    elif isinstance(expected, dict):
        assert found.keys() == expected.keys(), where
        for key in expected:
            assert_same(found[key], expected[key], f"{where}.{key}")
    elif isinstance(expected, list | tuple):
        assert len(found) == len(expected), where
        for number, pair in enumerate(zip(found, expected, strict=True)):
            assert_same(*pair, f"{where}.{number}")
    else:
        assert found == expected, where


def trainer_of(run: RunConfig, folder: RunFolder, stop_at: int = 10**9, **execution: Any) -> Trainer:
    def should_stop() -> bool:
        return trainer.state.step >= stop_at

    communicator = Communicator(Topology(run.num_workers))
    session = Session(
        folder,
        ExecutionConfig(**{**OFTEN, "checkpoint_interval_seconds": 1e6, **execution}),
        communicator,
        torch.device("cpu"),
        should_stop=should_stop,
    )
    trainer = Trainer(run, load_corpus(run.data), session)
    return trainer


@pytest.mark.parametrize(("kills", "num_steps"), [(5, 45), pytest.param(20, 160, marks=pytest.mark.long)])
@pytest.mark.parametrize("how", ["random", "filesystem"])
def test_a_run_killed_over_and_over_ends_as_the_uninterrupted_one(
    how: str, kills: int, num_steps: int, tiny_run: MakeRun, new_folder: MakeFolder
) -> None:
    if how == "random":  # with everything that a checkpoint may hold: errors, and fragments on their way
        composed = {"compression": QuantisationConfig(bits=2), "streaming": StreamingConfig(2, 2, 0.1)}
        run = tiny_run("diloco", "muon", num_workers=2, num_steps=num_steps, sync_interval=7, **composed)
    else:
        run = tiny_run("data_parallel", "adamw", num_steps=num_steps)
    whole, cut = new_folder(run, "whole"), new_folder(run, "cut")
    killed = ForkedProcess(SCRIPT, [str(cut.path), json.dumps(OFTEN), str(kills), "0", how])
    assert run_job(whole, ExecutionConfig(device="cpu", log_interval_steps=1)) is ExitCode.FINISHED
    assert killed.wait() == ExitCode.FINISHED, killed.errors()
    assert_same(final_state(cut, run.num_workers), final_state(whole, run.num_workers))
    result, expected = cut.read_result(), whole.read_result()
    assert result is not None
    assert expected is not None
    assert result.attempts == kills + 1
    assert (result.validation_loss, result.train_loss) == (expected.validation_loss, expected.train_loss)
    assert [s.loss for s in cut.read_steps()] == [s.loss for s in whole.read_steps()]


@pytest.mark.parametrize("damage", ["truncated", "flipped", "missing", "half_written", "other_format"])
def test_a_damaged_newest_checkpoint_falls_back_to_the_one_before(
    damage: str, tiny_run: MakeRun, new_folder: MakeFolder, capfd: pytest.CaptureFixture[str]
) -> None:
    run = tiny_run("diloco", "muon", num_workers=2)
    whole, cut = new_folder(run, "whole"), new_folder(run, "cut")
    trainer_of(run, whole).train()
    for stop_at in (7, 13):
        assert trainer_of(run, cut, stop_at).train() is None
    newest = cut.checkpoint_dir / "step-00000013"
    file = newest / "worker-1.pt"
    content = file.read_bytes()
    match damage:
        case "truncated":
            file.write_bytes(content[:-100])
        case "flipped":
            file.write_bytes(content[:1000] + bytes([content[1000] ^ 1]) + content[1001:])
        case "missing":
            (newest / "manifest.json").unlink()
        case "other_format":
            (newest / "manifest.json").write_text('{"format_version": 99}')
        case "half_written":
            newest.rename(cut.checkpoint_dir / ".step-00000013")
    again = trainer_of(run, cut)
    steps: list[int] = []
    again.session.on_record = lambda record: steps.append(record.step)
    again.train()
    assert steps[0] == 8
    assert_same(final_state(cut, 2), final_state(whole, 2))
    assert ("damaged" in capfd.readouterr().err) == (damage != "half_written")


def test_a_damaged_checkpoint_never_replaces_an_intact_one(tiny_run: MakeRun, new_folder: MakeFolder) -> None:
    run = tiny_run(num_steps=40)
    folder = new_folder(run)
    for stop_at in (5, 30):
        trainer_of(run, folder, stop_at).train()
    (folder.checkpoint_dir / "step-00000030" / "shared.pt").unlink()
    for stop_at in (10, 15):
        trainer_of(run, folder, stop_at).train()
    assert sorted(path.name for path in folder.checkpoint_dir.iterdir()) == ["step-00000010", "step-00000015"]


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 500 kB: room for one checkpoint of the tiny model and a part of another."""
    folder = tmp_path / "disk"
    folder.mkdir()
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=500k", "tmpfs", str(folder)], capture_output=True, check=False
    )
    if mounted.returncode:
        pytest.skip(f"a file system cannot be mounted here: {mounted.stderr.decode().strip()}")
    yield folder
    subprocess.run(["umount", str(folder)], check=True)


def test_a_full_disk_loses_no_checkpoint_and_training_goes_on(
    small_disk: Path, tiny_run: MakeRun, new_folder: MakeFolder, capfd: pytest.CaptureFixture[str]
) -> None:
    run = tiny_run("diloco", "adamw", num_steps=60)
    whole, cut = new_folder(run, "whole"), new_folder(run, "cut")
    trainer_of(run, whole).train()
    cut.checkpoint_dir.symlink_to(small_disk)
    trainer_of(run, cut, stop_at=7).train()
    assert [path.name for path in small_disk.iterdir()] == ["step-00000007"]
    # In the background the failure is reported, and training goes on; asked to stop, it is the attempt's failure.
    second = trainer_of(run, cut, stop_at=40, checkpoint_interval_seconds=0.01)
    with pytest.raises(CheckpointError, match="No space left on device"):
        second.train()
    assert second.state.step == 40
    status = cut.read_status()
    assert status is not None
    assert status.checkpoint_step == 7
    assert "the one of step 7 is kept" in capfd.readouterr().err
    assert [path.name for path in small_disk.iterdir()] == ["step-00000007"]
    # A run that ends on a full disk has its result all the same.
    result = trainer_of(run, cut).train()
    assert result is not None
    assert [path.name for path in small_disk.iterdir()] == ["step-00000007"]
    subprocess.run(["mount", "-o", "remount,size=4m", str(small_disk)], check=True)
    trainer_of(run, cut).train()
    assert_same(final_state(cut, 1), final_state(whole, 1))


def test_training_goes_on_while_one_checkpoint_is_written(
    tiny_run: MakeRun, new_folder: MakeFolder, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = tiny_run("diloco", "adamw", num_workers=2, num_steps=30)
    whole, folder = new_folder(run, "whole"), new_folder(run, "held")
    trainer_of(run, whole).train()
    disk, writing, lines_meanwhile = threading.Event(), [], []
    sync = os.fsync

    def slow_disk(handle: int) -> None:
        if threading.current_thread().name == "checkpoint-writer":
            writing.append(handle)
            assert disk.wait(timeout=600)
        sync(handle)

    monkeypatch.setattr("muloco_runner.training.checkpoints.files.os.fsync", slow_disk)
    trainer = trainer_of(run, folder, checkpoint_interval_seconds=1e-9)

    def note(record: Any) -> None:
        lines_meanwhile.append(record.step)
        if record.step == 20:
            # Twenty checkpoints were due; the first one is still at its first file.
            assert len(writing) == 1
            assert not list(folder.checkpoint_dir.glob("step-*"))
            disk.set()

    trainer.session.on_record = note
    result = trainer.train()
    assert result is not None
    assert lines_meanwhile == list(range(1, 31))
    assert_same(final_state(folder, 2), final_state(whole, 2))
    # The first one was written from the state at step 1, though training had changed it since.
    names = sorted(path.name for path in folder.checkpoint_dir.iterdir())
    assert names[-1] == "step-00000030"
    assert len(names) == 2


def test_a_checkpoint_written_late_holds_the_state_of_its_step(
    tiny_run: MakeRun, new_folder: MakeFolder, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = tiny_run("diloco", "muon", num_steps=30)
    at_once, late = new_folder(run, "at_once"), new_folder(run, "late")
    trainer_of(run, at_once, stop_at=4).train()
    trainer = trainer_of(run, late, stop_at=9, checkpoint_interval_seconds=1e-9)
    gate = threading.Event()
    save = torch.save
    monkeypatch.setattr(
        "muloco_runner.training.checkpoints.files.torch.save", lambda *args: gate.wait(60) and save(*args)
    )
    monkeypatch.setattr(trainer.checkpointing.store, "begin", _begin_only_at(trainer, 4))
    trainer.session.on_record = lambda record: gate.set() if record.step == 9 else None
    trainer.train()
    found = torch.load(late.checkpoint_dir / "step-00000004" / "worker-0.pt", weights_only=True)
    expected = torch.load(at_once.checkpoint_dir / "step-00000004" / "worker-0.pt", weights_only=True)
    assert_same(found, expected)


def _begin_only_at(trainer: Trainer, step: int) -> Callable[..., None]:
    begin = trainer.checkpointing.store.begin

    def maybe(checkpoint: Checkpoint) -> None:
        if checkpoint.step >= step:
            begin(checkpoint)

    return maybe


def test_a_run_killed_before_its_result_has_the_same_result(tiny_run: MakeRun, new_folder: MakeFolder) -> None:
    run = tiny_run("diloco", "muon", num_workers=2)
    folder = new_folder(run)
    expected = trainer_of(run, folder).train()
    result = trainer_of(run, folder).train()
    assert expected is not None
    assert result is not None
    assert result.validation_loss == expected.validation_loss
    assert result.local_validation_loss == expected.local_validation_loss != result.validation_loss
    assert result.train_loss == expected.train_loss


@pytest.mark.parametrize("inner_optimizer", ["adamw", "muon"])
def test_a_sharded_rank_reads_its_rows_of_a_checkpoint_alone(
    inner_optimizer: str, tiny_run: MakeRun, new_folder: MakeFolder
) -> None:
    model = ModelConfig(width=128, num_layers=3, head_width=32, vocab_size=256, sequence_length=32)
    run = tiny_run("diloco", inner_optimizer, model=model, num_steps=10, global_batch_tokens=128)
    folder = new_folder(run)
    trainer_of(run, folder, stop_at=2).train()
    # The first of four ranks: the others are not there, and what they would send it does not need.
    dist.init_process_group("fake", store=FakeStore(), rank=0, world_size=4)
    try:
        communicator = Communicator(Topology(1, rank=0, num_ranks=4), sharded=True)
        execution = ExecutionConfig(**OFTEN)
        trainer = Trainer(run, load_corpus(run.data), Session(folder, execution, communicator, torch.device("cpu")))
        taken = peak_bytes(trainer.checkpointing.resume, torch.device("cpu"))
    finally:
        dist.destroy_process_group()
    assert trainer.state.step == 2
    size = sum(file.stat().st_size for file in folder.checkpoint_dir.glob("*/*.pt"))
    # Of six models in the files (five with Muon): AdamW's moments, which it had not yet, and one copy on the way.
    assert taken < size / 5


@pytest.mark.parametrize(
    ("final_checkpoint", "left"), [(True, ["step-00000023"]), (None, ["step-00000023"]), (False, [])]
)
def test_a_finished_run_keeps_its_last_state_or_nothing(
    final_checkpoint: bool | None, left: list[str], tiny_run: MakeRun, new_folder: MakeFolder
) -> None:
    folder = new_folder(tiny_run())
    execution = ExecutionConfig(**{**OFTEN, "final_checkpoint": final_checkpoint})
    assert run_job(folder, execution) is ExitCode.FINISHED
    assert [path.name for path in folder.checkpoint_dir.iterdir()] == left
