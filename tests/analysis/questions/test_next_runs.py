"""What a report says is missing, and the sweep file that it writes of it."""

import contextlib
import io
import shutil
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pandas as pd
import pytest
from planted import Law, run_config, start_run, write_run

from analysis.__main__ import run
from analysis.questions.going_on.new_sizes import between, shape_near, sizes_wanted
from analysis.questions.going_on.next_runs import QUESTION, WhatNext, to_sweep_file
from analysis.questions.going_on.wishes import beyond
from analysis.report.compare import read_report
from muloco_runner.config import RunConfig
from muloco_runner.record import RunFolder, SweepTuning, write_tuning
from sweeps.cli.command_line import parse
from sweeps.training.sweep import read_sweep


@pytest.fixture(scope="module")
def study(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two series at three sizes: rates of one on their edge, batches of both too, one seed."""
    root, law = tmp_path_factory.mktemp("study"), Law()
    for algorithm, lrs in (("DDP-AdamW", (0.0025, 0.005)), ("DDP-Muon", (0.005, 0.01, 0.02))):
        for model in ("29k", "42k", "82k"):
            for batch in (8192, 16384):
                for lr in lrs:
                    config = run_config(algorithm, model, batch, lr)
                    write_run(root, config, law.loss(config))
    write_tuning(root / "sweeps" / "mine" / "tuning.json", SweepTuning("mine", "local", None))
    printed = io.StringIO()
    with contextlib.redirect_stdout(printed):
        assert run([str(root), "--out", str(root / "report"), "--bootstrap", "0"]) == 0
    (root / "printed.txt").write_text(printed.getvalue())
    return root


def found(root: Path) -> WhatNext:
    return QUESTION.read(read_report(root / "report"))


def test_edges_go_on_by_the_rule_of_sweeps(study: Path) -> None:
    edges = [step for step in found(study).steps if step.kind == "edge"]
    assert {step.why.split(":")[0] for step in edges} == {f"DDP-AdamW at {n}" for n in ("29.1k", "41.8k", "81.5k")}
    assert all(step.values == {"inner_optimizer.lr": [0.01]} for step in edges)
    assert "inner_optimizer.lr=0.005 was best at a batch of 8" in edges[0].why


def test_batches_seeds_and_sizes_are_asked_for(study: Path) -> None:
    next_runs = found(study)
    kinds = [step.kind for step in next_runs.steps]
    assert kinds == sorted(kinds, key=["edge", "batch", "seeds", "size"].index)
    batches = [step for step in next_runs.steps if step.kind == "batch"]
    assert {value for step in batches for value in step.values["global_batch_tokens"]} == {4096}
    seeds = [step for step in next_runs.steps if step.kind == "seeds"]
    assert len(seeds) == 6
    assert all(step.values["seed"][:2] == [1, 2] for step in seeds)


def test_the_file_is_a_sweep_that_repeats_nothing(study: Path) -> None:
    sweep = read_sweep(parse(["plan", str(study / "report" / "next.yaml")]).overrides)
    assert (sweep.root, sweep.cluster.name) == (study, "local")
    assert len(sweep.runs) == found(study).runs
    there = {folder.run_id for folder in RunFolder.all_under(study)}
    assert not there & {one.run_id for one in sweep.runs}
    # Values are to the last bit those of the grid, so that runs that exist already would be found.
    (wanted,) = [one for one in sweep.runs if one.seed == 1 and one.num_params < 3e4 and one.algorithm == "DDP-Muon"]
    like = RunConfig.from_dict(RunFolder.of(study, _like(study)).read_config())
    assert replace(wanted, seed=0) == like


def _like(study: Path) -> str:
    return next(step.like for step in found(study).steps if step.kind == "seeds" and "DDP-Muon at 29.1k" in step.why)


def test_the_line_that_plans_it_is_printed(study: Path) -> None:
    assert f"muloco-sweep plan {study}/report/next.yaml\n" in (study / "printed.txt").read_text()
    page = (study / "report" / "report.md").read_text()
    assert "## What would settle what is open" in page


def test_runs_that_are_under_way_are_not_asked_for(study: Path) -> None:
    first = found(study).steps[0]
    like = RunConfig.from_dict(RunFolder.of(study, first.like).read_config())
    started = start_run(study, like.with_values({key: value for key, (value,) in first.values.items()}))
    try:
        assert run([str(study), "--out", str(study / "later"), "--bootstrap", "0"]) == 0
    finally:
        shutil.rmtree(started.path)
    later = QUESTION.read(read_report(study / "later"))
    assert first.why not in [step.why for step in later.steps]
    assert f"{first.why}; the runs that would tell are there, without a result" in later.unwritten


def test_of_a_table_words_are_all_there_is(tmp_path: Path) -> None:
    rows = [
        {"algorithm": "A", "num_params": n, "global_batch_tokens": b, "lr": lr, "loss": 3 - lr + b / 1e6, "seed": 0,
         "tokens_per_parameter": 20}
        for n in (1e6, 2e6) for b in (1000, 2000) for lr in (0.01, 0.02)
    ]  # fmt: skip
    pd.DataFrame(rows).to_csv(tmp_path / "t.csv", index=False)
    (tmp_path / "r").mkdir()
    (tmp_path / "r" / "next.yaml").write_text("an older one")
    assert run(["--table", str(tmp_path / "t.csv"), "--out", str(tmp_path / "r"), "--bootstrap", "0"]) == 0
    next_runs = QUESTION.read(read_report(tmp_path / "r"))
    assert next_runs.steps == []
    assert any("inner_optimizer.lr=0.02 was best" in line for line in next_runs.unwritten)
    assert not (tmp_path / "r" / "next.yaml").exists()


def test_text_of_others_stays_in_its_comment(tmp_path: Path) -> None:
    step = SimpleNamespace(kind="edge", why="a\nroot: /\u202e", like="0e0f938d8722", values={"seed": [1]}, runs=1)
    text = to_sweep_file(WhatNext(str(tmp_path), None, [step], [], 0.1), tmp_path / "report")  # type: ignore[list-item]
    assert text is not None
    assert "\\nroot" in text
    assert text.count("\nroot:") == 1


def test_more_sizes_are_for_intervals_that_are_too_wide() -> None:
    sizes = [100, 200, 400]
    assert sizes_wanted(sizes, 0.05, 0.1) == 0
    assert sizes_wanted(sizes, 0.3, 0.1) == 1
    assert sizes_wanted(sizes, 1.0, 0.1) is None
    assert sizes_wanted([100], None, 0.1) == 2
    assert between([100, 400], 2) == pytest.approx([200, 100 * 2**0.5])
    run_at = run_config("DDP-Muon", "29k")
    assert shape_near(run_at, 20_000, [11_000, 29_120], 32, 3) == {"model.width": 16, "model.num_layers": 3}
    assert shape_near(run_at, 20_000, [11_000, 29_120], 32, 2) is None, "the nearest is no such size"


def test_values_beyond_an_edge_are_those_of_sweep_files() -> None:
    assert beyond(2.0**-6.5, 2.0**1.5, 1) == 2.0**-5
    assert beyond(0.01, 2.0, -1) == 0.005
