"""A run keeps its name: whatever settings are called, and whoever wrote its files."""

import json
import shutil
from pathlib import Path

import pytest

from muloco_runner.compose import compose_app_config, compose_model
from muloco_runner.config import ConfigError, RunConfig, names
from muloco_runner.config.names import warn_renamed
from muloco_runner.paths import config_dir
from muloco_runner.record import RunFolder
from sweeps.cli.filters import select
from sweeps.engine.work import Work
from sweeps.training.expansion import expand

HERE = Path(__file__).parent
OLD_CONFIGS = sorted((HERE / "old_configs").glob("*.yaml"))
PREPARED = "79ae5df8c6ef"


def named_runs() -> list[dict[str, object]]:
    """Runs of every axis, by their differences from the dataclasses' defaults, and the names that they were given."""
    return [json.loads(line) for line in (HERE / "run_ids.jsonl").read_text().splitlines()]


def test_fifty_runs_keep_their_names() -> None:
    named = named_runs()
    assert len({line["run_id"] for line in named}) >= 50
    assert [RunConfig.from_dict(line["run"]).run_id for line in named] == [line["run_id"] for line in named]


@pytest.mark.parametrize("file", OLD_CONFIGS, ids=lambda file: file.stem)
def test_a_config_of_old_names_is_read_and_keeps_its_name(file: Path) -> None:
    run = RunConfig.from_dict(json.loads(file.read_text()))
    assert run.run_id == file.stem
    assert RunConfig.from_dict(run.to_dict()) == run


def test_an_old_value_works_with_one_line_of_warning(
    capfd: pytest.CaptureFixture[str],
) -> None:
    today = compose_app_config(["data=prepared", "data.path=data/books"]).run
    assert today.run_id == PREPARED
    capfd.readouterr()
    for overrides in (["data=shards"], ["data=prepared", "data.source=shards"]):
        warn_renamed.cache_clear()
        assert compose_app_config([*overrides, "data.path=data/books"]).run == today
        assert capfd.readouterr().err.splitlines() == [
            "data.source=shards is called data.source=prepared now; the old name still works"
        ]
    warn_renamed.cache_clear()
    sweep = {"fixed": {"data.path": "data/books"}, "grids": [{"product": {"data": ["shards"], "seed": [0, 1]}}]}
    assert [run.data for run in expand(sweep, {})] == [today.data] * 2
    assert len(capfd.readouterr().err.splitlines()) == 1


def test_a_filter_finds_runs_by_old_and_new_values(tmp_path: Path) -> None:
    (old,) = (file for file in OLD_CONFIGS if '"shards"' in file.read_text())
    folder = RunFolder.of(tmp_path, old.stem)
    folder.write_config(json.loads(old.read_text()))
    works = [Work(old.stem, str(folder.path), "m:f")]
    for value in ("shards", "prepared"):
        assert select(works, [f"data.source={value}"]) == works
    with pytest.raises(ConfigError, match="no run"):
        select(works, ["data.source=text"])


def test_a_filter_finds_settings_that_are_not_named_at_their_default(tmp_path: Path) -> None:
    works = []
    for words in ([], ["inner_optimizer.weight_decay_form=cautious"]):
        run = compose_app_config(["algorithm=ddp_adamw", *words]).run
        folder = RunFolder.of(tmp_path, run.run_id)
        folder.write_config(run.to_dict())
        works.append(Work(run.run_id, str(folder.path), "m:f"))
    assert select(works, ["inner_optimizer.weight_decay_form=decoupled"]) == works[:1]
    assert select(works, ["inner_optimizer.weight_decay_form=cautious"]) == works[1:]
    with pytest.raises(ConfigError, match=r"inner_optimizer\.momentum: no such key to filter by"):
        select(works, ["inner_optimizer.momentum=0.9"])


def test_a_filter_by_model_composes_no_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A model whose sequences fit no usual batch is a model to filter by."""
    shutil.copytree(config_dir(), tmp_path / "conf")
    (tmp_path / "conf" / "model" / "odd.yaml").write_text("defaults: [base_model]\nsequence_length: 1000\n")
    for module in ("muloco_runner.compose", "muloco_runner.paths"):
        monkeypatch.setattr(f"{module}.config_dir", lambda: tmp_path / "conf")
    odd = Work("0" * 12, "", "m:f", labels={"num_params": compose_model("odd").num_params})
    assert select([odd], ["model=odd"]) == [odd]


def test_a_renamed_setting_keeps_its_hash_and_is_read_as_before(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    run = RunConfig.from_dict(named_runs()[3]["run"])  # type: ignore[arg-type]
    # As if seed and method.sync_interval had been called otherwise when runs were first named.
    monkeypatch.setattr(names, "KEYS_IN_HASH", {"seed": "number", "method.sync_interval": "h"})
    monkeypatch.setattr(names, "OLD_KEYS", {"number": "seed", "method.h": "sync_interval"})
    before = names.names_in_hash(run.to_dict())
    assert before["number"] == run.seed
    assert before["method"]["h"] == run.method.sync_interval  # type: ignore[attr-defined]
    assert {"seed", "sync_interval"}.isdisjoint({*before, *before["method"]})
    assert RunConfig.from_dict(before) == run
    told: list[tuple[str, str]] = []
    names.names_now(before, lambda *pair: told.append(pair))
    assert sorted(told) == [("method.h", "method.sync_interval"), ("number", "seed")]
    assert names.key_now("method.h") == "method.sync_interval"
