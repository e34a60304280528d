"""Losses of checkpoints after training: those of the record, computed once."""

import json
import math
import sys
from collections.abc import Callable

import pytest

from muloco_runner.config import ConfigError, ExecutionConfig, RunConfig
from muloco_runner.inference.command import main
from muloco_runner.inference.evaluation import validation
from muloco_runner.inference.load import load_run
from muloco_runner.job import run_job
from muloco_runner.record import ExitCode, RunFolder

MakeRun = Callable[..., RunConfig]
MakeFolder = Callable[..., RunFolder]


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


def test_other_data_is_refused(tiny_run: MakeRun, new_folder: MakeFolder) -> None:
    run = tiny_run()
    folder = new_folder(run)
    assert run_job(folder, ExecutionConfig(device="cpu")) is ExitCode.FINISHED
    lines = folder.record_file.read_text().splitlines(keepends=True)
    header = json.loads(lines[0]) | {"corpus_hash": "0" * 16}
    folder.record_file.write_text(json.dumps(header) + "\n" + "".join(lines[1:]))
    with pytest.raises(ConfigError, match="was trained on data 0000000000000000"):
        validation(load_run(folder.path))
