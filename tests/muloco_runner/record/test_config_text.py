"""`config.yaml`: one text for readers of JSON, of YAML 1.1 and of YAML 1.2, of which JSON is a part."""

import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

from muloco_runner.config import RunConfig
from muloco_runner.record import RecordError, RunFolder
from muloco_runner.record.config_text import config_text

MakeRun = Callable[..., RunConfig]
scalars = st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text()
trees = st.dictionaries(
    st.text(max_size=9),
    st.recursive(scalars, lambda inner: st.lists(inner) | st.dictionaries(st.text(max_size=9), inner), max_leaves=4),
    max_size=4,
)


def assert_reads(text: str, expected: dict[str, Any]) -> None:
    for found in (json.loads(text), yaml.safe_load(text)):
        assert found == expected
        assert repr(found) == repr(expected)  # 1 and 1.0 are equal


@settings(max_examples=60, deadline=None)
@given(trees)
def test_any_values_are_read_alike_as_json_and_as_yaml(values: dict[str, Any]) -> None:
    assert_reads(config_text(values), values)


@pytest.mark.parametrize(
    "value",
    [1e-06, 1e-05, 2.5e-07, 1e16, 1e300, -1e-06, 0.1, 3.0, -0.0, 1, "1e-06", "no", "\U0001f600", "\u2028", "\udc80"],
)
def test_values_that_yaml_readers_mistake_are_read_right(value: Any) -> None:
    assert_reads(config_text({"a": value}), {"a": value})


def test_a_number_that_is_not_finite_is_refused() -> None:
    with pytest.raises(ValueError, match="finite"):
        config_text({"a": math.inf})


def test_a_runs_config_is_what_yaml_readers_say(tiny_run: MakeRun, tmp_path: Path) -> None:
    run = tiny_run("diloco", "muon")
    folder = RunFolder.of(tmp_path, run.run_id)
    folder.write_config(run.to_dict())
    found = yaml.safe_load(folder.config_file.read_text())
    assert found == run.to_dict()
    assert found["model"]["norm_eps"] == 1e-06
    assert RunConfig.from_dict(found).run_id == RunConfig.from_dict(folder.read_config()).run_id == run.run_id


def test_configs_of_earlier_versions_are_read_and_kept(tiny_run: MakeRun, tmp_path: Path) -> None:
    run = tiny_run()
    folder = RunFolder.of(tmp_path, run.run_id)
    folder.path.mkdir(parents=True)
    before = json.dumps(run.to_dict(), indent=1, allow_nan=False) + "\n"
    folder.config_file.write_text(before)
    assert RunConfig.from_dict(folder.read_config()) == run
    folder.write_config(run.to_dict())
    assert folder.config_file.read_text() == before


def test_a_config_that_was_cut_off_is_said_to_be_damaged(tiny_run: MakeRun, tmp_path: Path) -> None:
    folder = RunFolder(tmp_path)
    folder.write_config(tiny_run().to_dict())
    folder.config_file.write_text(folder.config_file.read_text()[:-20])
    with pytest.raises(RecordError, match="not JSON"):
        folder.read_config()
