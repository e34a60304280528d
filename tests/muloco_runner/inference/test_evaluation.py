"""Losses of checkpoints after training: those of the record, computed once."""

import json
import math
import shutil
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from forked import on_two_ranks

import muloco_runner.inference.command
from muloco_runner.config import ConfigError, ExecutionConfig, RunConfig
from muloco_runner.inference.command import main
from muloco_runner.inference.evaluation import validation
from muloco_runner.inference.load import load_run
from muloco_runner.job import run_job
from muloco_runner.record import ExitCode, RunFolder

MakeRun = Callable[..., RunConfig]
MakeFolder = Callable[..., RunFolder]
COMMAND = Path(muloco_runner.inference.command.__file__)


def test_each_checkpoint_has_the_loss_of_the_record(
    tiny_run: MakeRun, new_folder: MakeFolder, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    run = tiny_run("diloco", "muon", num_workers=2)
    folder = new_folder(run)
    execution = ExecutionConfig(device="cpu", keep=[10, 23], evaluate_interval_steps=10)
    assert run_job(folder, execution) is ExitCode.FINISHED
    recorded = {record.step: record.validation_loss for record in folder.read_steps()}
    for step in (10, 23):
        found = validation(load_run(folder.path, step=step))
        assert found["validation_loss"] == recorded[step]
        assert found["bits_per_byte"] == pytest.approx(found["validation_loss"] / math.log(2))
        assert found["validation_tokens"] == 512
    monkeypatch.setattr("muloco_runner.inference.evaluation.evaluate", None)  # once is enough
    monkeypatch.setattr(sys, "argv", ["muloco-model", "eval", str(folder.path), "--step", "10", "--json"])
    capsys.readouterr()
    with pytest.raises(SystemExit) as ended:
        main()
    assert ended.value.code == 0
    assert json.loads(capsys.readouterr().out)["validation_loss"] == recorded[10]
    monkeypatch.setattr(sys, "argv", ["muloco-model", "eval", str(folder.path), "--limit", "3"])
    with pytest.raises(SystemExit) as ended:
        main()
    assert ended.value.code == 2
    assert "--limit has no effect without --tasks" in capsys.readouterr().err


def test_two_processes_find_what_one_does(tiny_run: MakeRun, new_folder: MakeFolder, tmp_path: Path) -> None:
    run = tiny_run(num_steps=3)
    (tmp_path / "own.txt").write_text("the outer step moves the anchor\n\n" * 20)
    folder = new_folder(run)
    assert run_job(folder, ExecutionConfig(device="cpu")) is ExitCode.FINISHED
    own = tmp_path / "own.txt"
    alone = validation(load_run(folder.path), {"own": str(own)})
    kept = {file.name: file.read_text() for file in folder.evaluations_at(3).iterdir()}
    assert len(kept) == 2
    shutil.rmtree(folder.path / "evaluations")
    on_two_ranks(COMMAND, ["eval", str(folder.path), "--validation", f"own={own}"])
    assert {file.name: file.read_text() for file in folder.evaluations_at(3).iterdir()} == kept
    assert validation(load_run(folder.path), {"own": str(own)}) == alone


def test_other_data_is_refused(tiny_run: MakeRun, new_folder: MakeFolder) -> None:
    run = tiny_run()
    folder = new_folder(run)
    assert run_job(folder, ExecutionConfig(device="cpu")) is ExitCode.FINISHED
    lines = folder.record_file.read_text().splitlines(keepends=True)
    header = json.loads(lines[0]) | {"corpus_hash": "0" * 16}
    folder.record_file.write_text(json.dumps(header) + "\n" + "".join(lines[1:]))
    with pytest.raises(ConfigError, match="was trained on data 0000000000000000"):
        validation(load_run(folder.path))


def said(words: list[str], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> tuple[int, str, str]:
    """What `muloco-model eval` ends with, and what it says."""
    monkeypatch.setattr(sys, "argv", ["muloco-model", "eval", *words])
    capsys.readouterr()
    with pytest.raises(SystemExit) as ended:
        main()
    return int(ended.value.code or 0), *capsys.readouterr()


def test_a_sweep_is_evaluated_where_weights_are(
    tiny_run: MakeRun,
    new_folder: MakeFolder,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    root, own = str(tmp_path / "root"), tmp_path / "own.txt"
    own.write_text("the outer step moves the anchor\n\n" * 20)
    runs = [tiny_run(seed=seed, num_steps=3) for seed in range(3)]
    for run, keep in zip(runs[:2], ("none", "final"), strict=True):
        assert run_job(new_folder(run), ExecutionConfig(device="cpu", keep=keep)) is ExitCode.FINISHED
    new_folder(runs[2])
    words = [root, "--json", "--validation", f"own={own}"]
    code, lines, errors = said(words, monkeypatch, capsys)
    assert code == 0
    (found,) = map(json.loads, lines.splitlines())
    assert found["run_id"] == runs[1].run_id
    assert found["named"]["own"]["validation_tokens"] == 512
    assert "left out of 3 runs: " in errors
    assert "1 without weights" in errors
    assert "1 not finished" in errors
    monkeypatch.setattr("muloco_runner.inference.evaluation.evaluate", None)  # once is enough
    assert said(words, monkeypatch, capsys)[1] == lines
    (line,) = said([root], monkeypatch, capsys)[1].splitlines()
    assert line.startswith(f"{runs[1].run_id}  validation loss ")
    code, _, errors = said([root, "--step", "2"], monkeypatch, capsys)
    assert code == ExitCode.USAGE
    assert "none of 3 runs can be evaluated" in errors
    assert "1 without a checkpoint of step 2" in errors
    code, _, errors = said([root, "--worker", "5"], monkeypatch, capsys)
    assert code == ExitCode.USAGE
    assert "1 worker=5: the run has 1 worker(s)" in errors


@pytest.mark.parametrize(
    ("words", "refusal"),
    [
        (["--validation", "own"], "give NAME=PATH"),
        (["--validation", "a=x", "--validation", "a=y"], "each name once"),
        (["--validation", "a=x", "--tasks", "b"], "has no effect with --tasks"),
        (["--include", "x"], "has no effect without --tasks"),
        (["--tasks", "a,,b"], "an empty name"),
    ],
)
def test_options_without_an_effect_are_refused(
    words: list[str], refusal: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    code, _, errors = said(["3fa", *words], monkeypatch, capsys)
    assert code == ExitCode.USAGE
    assert refusal in errors
