"""Sweeps whose runs differ from ones that are there, and sweep files that know where they belong."""

from pathlib import Path
from typing import Any

import pytest

from muloco_runner.config import ConfigError, RunConfig
from muloco_runner.record import RunFolder
from sweeps.cli.command_line import parse
from sweeps.training.expansion import expand
from sweeps.training.sweep import Sweep, read_sweep


@pytest.fixture
def known(tmp_path: Path) -> RunConfig:
    (run,) = expand({"grids": [{"fixed": {"model": "29k", "algorithm": "muloco", "inner_optimizer.lr": 0.03}}]}, {})
    RunFolder.of(tmp_path / "study", run.run_id).write_config(run.to_dict())
    return run


def like(known: RunConfig, root: Path, **values: Any) -> list[RunConfig]:
    return expand({"grids": [{"fixed": {"like": known.run_id}, **values}]}, {}, root=root / "study")


def test_a_run_like_another_is_it_but_for_what_is_said(tmp_path: Path, known: RunConfig) -> None:
    same, other = like(known, tmp_path, product={"seed": [0, 1]})
    assert same == known
    assert {**other.to_dict(), "seed": 0} == known.to_dict()
    (wider,) = like(known, tmp_path, zip={"model.width": [64], "inner_optimizer.lr": [1]})
    assert wider.to_dict()["model"]["width"] == 64
    assert wider.inner_optimizer.lr == 1.0
    (text,) = like(known, tmp_path, zip={"inner_optimizer.lr": ["1e-5"], "seed": ["9007199254740993"]})
    assert (text.inner_optimizer.lr, text.seed) == (1e-5, 9007199254740993)


@pytest.mark.parametrize(
    ("values", "words"),
    [
        ({"model": "82k"}, "model names a file of choices"),
        ({"like": "0123456789ab"}, "no such run"),
        ({"like": 123456789012}, "in quotes"),
        ({"inner_optimizer.lrr": 0.1}, "no such setting"),
        ({"global_batch_tokens": 100}, "use a multiple"),
        ({"seed": "abc"}, "seed='abc': give a finite number"),
        ({"seed": 1.5}, "seed=1.5: it takes whole numbers"),
        ({"inner_optimizer.lr": "fast"}, "lr='fast': give a finite number"),
        ({"inner_optimizer.lr": None}, "lr=None: give a finite number"),
        ({"inner_optimizer.lr": float("inf")}, "lr=inf: give a finite number"),
        ({"inner_optimizer.lr": True}, "lr=True: give a finite number"),
        ({"inner_optimizer.lr": [1, 2]}, r"lr=\[1, 2\]: give a finite number"),
        ({"method.outer_optimizer.nesterov": "false"}, "nesterov='false': give true or false"),
        ({"precision": ["float32"]}, r"precision=\['float32'\]: give one value"),
        ({"inner_optimizer": "adamw"}, "inner_optimizer"),
    ],
)
def test_what_makes_no_run_is_refused(tmp_path: Path, known: RunConfig, values: dict[str, Any], words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        expand({"grids": [{"fixed": {"like": known.run_id, **values}}]}, {}, root=tmp_path / "study")


def read(*words: str) -> Sweep:
    return read_sweep(parse(["plan", *words]).overrides)


def test_a_file_is_launched_by_its_path_alone(tmp_path: Path, known: RunConfig, monkeypatch: Any) -> None:
    file = tmp_path / "study" / "it's a report" / "next.yaml"
    file.parent.mkdir()
    grids = f'grids: [{{fixed: {{like: "{known.run_id}"}}, product: {{seed: [0, 1]}}}}]'
    file.write_text(f"root: ..\ncluster: h100\n{grids}\n")
    found = read(str(file))
    assert (found.name, found.root, found.cluster.name) == ("next", tmp_path / "study", "h100")
    assert [run.seed for run in found.runs] == [0, 1]
    # Below the folder one is in, paths stay short; the command line's own words go before the file's.
    monkeypatch.chdir(tmp_path)
    assert read(str(file)).root == Path("study")
    with pytest.raises(ConfigError, match="no such run under elsewhere"):
        read(str(file), "root=elsewhere")
    assert read(str(file), "cluster=local").cluster.name == "local"


def test_a_root_that_is_no_text_is_refused(tmp_path: Path) -> None:
    file = tmp_path / "next.yaml"
    file.write_text("root: 7\ngrids: [{fixed: {seed: 0}}]\n")
    with pytest.raises(ConfigError, match="root: 7 is no name"):
        read(str(file))
