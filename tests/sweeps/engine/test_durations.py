"""Estimates follow what finished runs have shown."""

from pathlib import Path

import pytest

from muloco_runner.record import RunFolder, RunResult
from sweeps.engine.durations import Estimates, refine
from sweeps.engine.work import Need, Work
from sweeps.node.reports import measured_minutes
from sweeps.training.adapter import TRAINING


def work(root: Path, number: int, algorithm: str, num_params: int, minutes: float) -> Work:
    name = f"{number:012x}"
    labels = {"algorithm": algorithm, "num_params": num_params, "num_workers": 1, "global_batch_tokens": 512}
    return Work(
        name, str(root / "runs" / name), "m:f", need=Need(expected_minutes=minutes), labels=labels, adapter=TRAINING
    )


def finish(work: Work, minutes: float) -> None:
    result = RunResult(work.name, "x", False, 1.0, None, 1.0, 1, 1, 1, 1.0, 60 * minutes, 60 * minutes, 0, "hash")
    RunFolder(work.folder).write_result(result)


def test_the_most_similar_that_has_finished_decides(tmp_path: Path) -> None:
    works = [
        work(tmp_path, 0, "MuLoCo", 100, 10.0),
        work(tmp_path, 1, "MuLoCo", 100, 10.0),
        work(tmp_path, 2, "DiLoCo", 100, 10.0),
        work(tmp_path, 3, "DiLoCo", 900, 90.0),
        work(tmp_path, 4, "MuLoCo", 900, 90.0),
        work(tmp_path, 5, "MuLoCo", 5000, 500.0),
    ]
    assert refine(works, measured_minutes) == works
    finish(works[0], 20.0)
    finish(works[3], 45.0)
    expected = [work.need.expected_minutes for work in refine(works, measured_minutes)]
    # Its own kind; its own kind; its size; its own kind; its size; the median of all.
    assert expected == pytest.approx([20.0, 20.0, 20.0, 45.0, 45.0, 500.0 * 1.25])


def test_a_damaged_result_is_no_measurement(tmp_path: Path) -> None:
    works = [work(tmp_path, 0, "MuLoCo", 100, 10.0)]
    Path(works[0].folder).mkdir(parents=True)
    (Path(works[0].folder) / "result.json").write_text("{")
    assert refine(works, measured_minutes) == works


def test_a_controller_goes_on_to_learn_from_the_most_similar(tmp_path: Path) -> None:
    estimates = Estimates()
    assert estimates.minutes_of(work(tmp_path, 2, "MuLoCo", 100, 10.0)) == 10.0
    for number, (name, minutes) in enumerate((("MuLoCo", 30.0), ("MuLoCo", 30.0), ("DDP-Muon", 10.0))):
        finished = work(tmp_path, number, name, 100, 10.0)
        finish(finished, minutes)
        estimates.learn(finished, measured_minutes(finished))
    asked = {
        name: estimates.minutes_of(work(tmp_path, 3, name, 100, 10.0)) for name in ("MuLoCo", "DDP-Muon", "DiLoCo")
    }
    # Of the third algorithm only the size is known: the median over all of it.
    assert asked == {"MuLoCo": 30.0, "DDP-Muon": 10.0, "DiLoCo": 30.0}
