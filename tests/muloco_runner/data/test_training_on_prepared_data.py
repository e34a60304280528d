"""Runs on prepared text, and the text that they refuse."""

import shutil
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from prepared_text import prepared, texts, write_jsonl

from muloco_runner.__main__ import main as train_command
from muloco_runner.config import ConfigError, DataConfig, ExecutionConfig, RunConfig
from muloco_runner.data.batches import TrainingData
from muloco_runner.data.check import check_data
from muloco_runner.data.corpus import load_corpus
from muloco_runner.data.prepared.manifest import read_manifest
from muloco_runner.job import check_can_run, run_job
from muloco_runner.record import ExitCode, RunFolder


def test_a_run_trains_on_its_prepared_data_and_no_other(
    tmp_path: Path,
    tokenizer_file: Path,
    tiny_run: Callable[..., RunConfig],
    new_folder: Callable[..., RunFolder],
    execution: ExecutionConfig,
    capsys: pytest.CaptureFixture[str],
) -> None:
    source = write_jsonl(tmp_path / "input.jsonl", texts(300))
    out = prepared(source, tmp_path / "out", chunk_bytes=4000, validation_fraction=0.2)
    run = tiny_run("diloco", "muon", num_workers=2, data=DataConfig("prepared", str(out), validation_tokens=512))
    folder = new_folder(run)
    assert run_job(folder, execution) is ExitCode.FINISHED
    header, result = folder.read_header(), folder.read_result()
    assert header is not None
    assert result is not None
    assert header.corpus_hash == read_manifest(out).content_hash
    assert header.baselines["bigram"] < header.baselines["unigram"]
    # Workers share the one stream: nothing is seen twice in an epoch.
    data = TrainingData(load_corpus(run.data), run, torch.device("cpu"))
    steps = data.num_sequences // run.global_batch_sequences
    numbers = np.concatenate(
        [data._starts(step, worker, replica, 2) for step in range(steps) for worker in (0, 1) for replica in (0, 1)]
    )
    assert len(set(numbers.tolist())) == len(numbers)
    # A larger vocabulary than the model's.
    prepared(source, tmp_path / "bpe", tokenizer=str(tokenizer_file), validation_fraction=0.2)
    with pytest.raises(ConfigError, match=r"model.vocab_size=256 is smaller than the corpus's 290"):
        check_can_run(tiny_run(data=DataConfig("prepared", str(tmp_path / "bpe"), validation_tokens=512)))
    with pytest.raises(ConfigError, match="290"):
        check_data(tiny_run(data=DataConfig("prepared", str(tmp_path / "bpe"))))


def train(monkeypatch: pytest.MonkeyPatch, *words: object) -> object:
    monkeypatch.setattr(sys, "argv", ["muloco-train", *map(str, words)])
    with pytest.raises(SystemExit) as ending:
        train_command()
    return ending.value.code


def test_a_run_never_goes_on_on_other_data(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Other data is another run; in the folder of the first one it is refused."""
    out = prepared(write_jsonl(tmp_path / "input.jsonl", texts(300)), tmp_path / "out")
    words = ["model=29k", "model.sequence_length=32", "global_batch_tokens=256", "tokens_per_parameter=0.1"]
    words += ["data=prepared", f"data.path={out}", "data.validation_tokens=256", f"root={tmp_path / 'root'}"]
    assert train(monkeypatch, *words) == 0
    (first,) = RunFolder.all_under(tmp_path / "root")
    shutil.rmtree(out)
    prepared(write_jsonl(tmp_path / "input.jsonl", texts(300, seed=1)), out)
    assert train(monkeypatch, *words) == 0
    assert len(RunFolder.all_under(tmp_path / "root")) == 2
    first.result_file.unlink()
    capsys.readouterr()
    assert run_job(first, ExecutionConfig(device="cpu"), 2) is ExitCode.CONFIG_CANNOT_RUN
    message = capsys.readouterr().err
    assert len(message.splitlines()) == 1, message
    assert "put the first data back" in message
