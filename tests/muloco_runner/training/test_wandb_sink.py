"""Weights & Biases beside the record: there when it works, and no trouble when it does not."""

import dataclasses
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from muloco_runner.config import ExecutionConfig, RunConfig
from muloco_runner.job import run_job
from muloco_runner.record import WANDB_FAILURE, ExitCode, RunFolder
from muloco_runner.training.sinks.wandb_sink import _has_key

MakeRun = Callable[..., RunConfig]
MakeFolder = Callable[..., RunFolder]
KEY = "0123456789abcdef0123456789abcdef01234567"


def test_offline_records_have_the_runs_name_and_not_the_key(
    tiny_run: MakeRun, new_folder: MakeFolder, execution: ExecutionConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("wandb")
    monkeypatch.setenv("WANDB_API_KEY", KEY)
    monkeypatch.setenv("WANDB_MODE", "offline")
    run = tiny_run("diloco", "muon", num_workers=2)
    folder = new_folder(run)
    for name in ("CACHE", "CONFIG", "DATA"):
        monkeypatch.setenv(f"WANDB_{name}_DIR", str(folder.path / name.lower()))
    assert run_job(folder, dataclasses.replace(execution, wandb_project="tests")) is ExitCode.FINISHED
    (written,) = folder.attempt_dir(1).glob("wandb/offline-run-*/*.wandb")
    assert written.name == f"run-{run.run_id}.wandb"
    content = written.read_bytes()
    for word in (
        "validation_loss",
        "scheduled_lr",
        "pseudogradient_cosine",
        "gradient_norm",
        "tokens_per_second",
        "MuLoCo",
    ):
        assert word.encode() in content, word
    for file in folder.path.rglob("*"):
        assert not file.is_file() or KEY.encode() not in file.read_bytes(), file


def broken(init: Callable[..., Any]) -> ModuleType:
    module = ModuleType("wandb")
    module.__dict__.update(init=init, Settings=lambda **settings: settings)
    return module


def fail(**settings: Any) -> None:
    raise ConnectionError("no\nnetwork")


def hang(**settings: Any) -> None:
    threading.Event().wait()


@pytest.mark.parametrize(
    ("module", "words"),
    [
        (None, "ModuleNotFoundError"),
        (broken(fail), "ConnectionError: no network"),
        (broken(hang), "did not accept the last records"),
    ],
    ids=["missing", "failing", "hanging"],
)
def test_a_run_does_not_notice_that_it_is_missing_broken_or_away(
    module: ModuleType | None,
    words: str,
    tiny_run: MakeRun,
    new_folder: MakeFolder,
    execution: ExecutionConfig,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setitem(sys.modules, "wandb", module)
    monkeypatch.setattr("muloco_runner.training.sinks.wandb_sink.FLUSH_TIMEOUT_SECONDS", 0.2)
    run = tiny_run()
    with_it, without = new_folder(run, "with"), new_folder(run, "without")
    assert run_job(with_it, dataclasses.replace(execution, wandb_project="tests")) is ExitCode.FINISHED
    assert run_job(without, execution) is ExitCode.FINISHED
    assert [s.loss for s in with_it.read_steps()] == [s.loss for s in without.read_steps()]
    message = capsys.readouterr().err
    assert words in message
    assert len(message.splitlines()) == 1, message
    # For whoever does not read the attempt's log.
    assert words in (with_it.attempt_dir(1) / WANDB_FAILURE).read_text()
    assert not (without.attempt_dir(1) / WANDB_FAILURE).exists()


def test_without_a_key_it_stays_offline(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    for name in ("WANDB_API_KEY", "WANDB_MODE", "NETRC"):
        monkeypatch.delenv(name, raising=False)
    assert not _has_key()
    (tmp_path / ".netrc").write_text(f"machine api.wandb.ai login user password {KEY}\n")
    (tmp_path / ".netrc").chmod(0o600)
    assert _has_key()
    (tmp_path / ".netrc").unlink()
    monkeypatch.setenv("WANDB_API_KEY", KEY)
    assert _has_key()
