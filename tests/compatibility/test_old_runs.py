"""Run folders that an earlier version wrote: read, reported and continued as if nothing had changed."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from old_files import Old

from analysis.runs import load_study
from muloco_runner.config import ExecutionConfig, RunConfig
from muloco_runner.job import run_job
from muloco_runner.record import ExitCode, RunFolder

AS_BEFORE = ExecutionConfig(device="cpu", micro_batch_sequences=1, log_interval_steps=1, evaluate_interval_steps=16)


def lines(file: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in file.read_text().splitlines()]


def test_runs_keep_their_names(old: Old) -> None:
    folders = old.run_folders()
    assert len(folders) == 13
    for folder in folders:
        assert RunConfig.from_dict(RunFolder(folder).read_config()).run_id == folder.name


def test_records_say_what_they_said(old: Old) -> None:
    for path in old.run_folders():
        folder = RunFolder(path)
        if not folder.record_file.exists():
            assert folder.read_header() is folder.read_result() is None
            assert folder.read_steps() == []
            continue
        head, *steps = lines(folder.record_file)
        header = folder.read_header()
        assert header is not None
        assert (header.run_id, header.config, header.corpus_hash, header.baselines) == (
            path.name, head["config"], head["corpus_hash"], head["baselines"],
        )  # fmt: skip
        same = (
            "step",
            "tokens",
            "loss",
            "gradient_norm",
            "validation_loss",
            "pseudogradient_norm",
            "bytes_sent",
            "rank_bytes_sent",
        )
        for step, said in zip(folder.read_steps(), steps, strict=True):
            assert [getattr(step, name) for name in same] == [said.get(name) for name in same]
            assert step.scheduled_lr == said["lr"]
        status = folder.read_status()
        assert status is not None
        said = json.loads(folder.status_file.read_text())
        assert (status.state, status.step, status.exit_code) == (said["state"], said["step"], said.get("exit_code"))
        result = folder.read_result()
        assert (result is None) == (status.state != "finished")
        if result is not None:
            said = json.loads(folder.result_file.read_text())
            same = (
                "validation_loss",
                "train_loss",
                "diverged",
                "divergence",
                "flops",
                "bytes_sent",
                "num_ranks",
                "attempts",
            )
            assert [getattr(result, name) for name in same] == [said.get(name) for name in same]


def plain(value: Any) -> Any:
    """As JSON holds it."""
    value = value.item() if isinstance(value, np.generic) else value
    return None if isinstance(value, float) and np.isnan(value) else value


def test_the_report_reads_the_rows_that_it_read(old: Old) -> None:
    study = load_study(old.root / "study")
    rows = {row["run_id"]: row for row in study.runs.to_dict("records")}
    assert set(rows) == set(old.expected["rows"])
    for run_id, expected in old.expected["rows"].items():
        if (expected["outer_lr"], expected["outer_momentum"]) == (1.0, 0.0):
            # Since then the workers' plain average has a name of its own.
            expected |= {"algorithm": "LocalSGD-AdamW", "series": "LocalSGD-AdamW K=1"}
        assert {name: plain(rows[run_id][name]) for name in expected} == expected
    assert sorted(excluded.run_id for excluded in study.excluded) == old.expected["excluded"]


def losses(folder: RunFolder) -> dict[int, float]:
    return {step.step: step.loss for step in folder.read_steps()}


@pytest.mark.parametrize("run", ["study/runs/1f2607d17f9e", "sweep/runs/2a39c4309bbc"])
def test_an_old_checkpoint_is_continued_to_the_same_end(run: str, old: Old) -> None:
    """DDP-Muon; and DiLoCo with Muon as outer optimizer, compressed, one of two fragments under way."""
    folder = RunFolder(old.root / run)
    saved = max(int(path.name.removeprefix("step-")) for path in folder.checkpoint_dir.iterdir())
    assert run_job(folder, AS_BEFORE, attempt=2) is ExitCode.FINISHED
    whole = RunFolder(old.root / "whole" / "runs" / folder.run_id)
    again = [step.step for step in folder.read_steps() if step.attempt == 2]
    assert again == list(range(saved + 1, 41))
    now, then = losses(folder), losses(whole)
    assert [now[step] for step in then] == old.same(list(then.values()))
    result, expected = folder.read_result(), whole.read_result()
    assert result is not None
    assert expected is not None
    assert [result.validation_loss, result.train_loss] == old.same([expected.validation_loss, expected.train_loss])
    assert result.bytes_sent == expected.bytes_sent
