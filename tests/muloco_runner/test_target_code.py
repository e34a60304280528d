"""The code of targets: where it is found, and that a process imports what its run was trained with, or none."""

import importlib
import sys
from collections.abc import Iterator
from importlib.machinery import ModuleSpec, PathFinder
from pathlib import Path
from typing import Any

import pytest
from target_labs import lab_in

from muloco_runner.config import ConfigError, RunConfig, TargetConfig, TargetDataConfig
from muloco_runner.data.corpus import load_corpus
from muloco_runner.record import RunFolder, write_folder
from muloco_runner.targets import (
    Answer,
    check_targets,
    facts_of,
    find_source,
    hand_on_code,
    make_importable,
    record_code,
    refuse_sharded,
    source_code,
)
from muloco_runner.targets.code_record import recorded_code
from muloco_runner.targets.questions import key_of_facts
from muloco_runner.targets.source_code import sources_by_package

LAB = "SCALE = {0}\n\n\nclass O:\n    pass\n\n\ndef texts():\n    yield from (f'{{n}} {0}' * 99 for n in range(99))\n"


@pytest.fixture
def lab(tmp_path: Path) -> Iterator[Path]:
    with lab_in(tmp_path / "lab", "their_code", {"their_code/__init__.py": LAB.format(1), "conf/x": ""}) as folder:
        yield folder


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))


def run_of(version: str, **values: Any) -> RunConfig:
    return RunConfig(inner_optimizer=TargetConfig(_target_="their_code.O", version=version), **values)


def change(lab: Path, scale: int) -> None:
    (lab / "their_code" / "__init__.py").write_text(LAB.format(scale))


def imported_scale() -> Any:
    return importlib.import_module("their_code").SCALE


@pytest.mark.parametrize("snapshot", [True, False])
def test_each_run_gets_the_code_it_was_trained_with(snapshot: bool, lab: Path, tmp_path: Path) -> None:
    runs = {11: run_of("1"), 222: run_of("2")}
    for scale, run in runs.items():
        change(lab, scale)
        record_code([run], tmp_path, snapshot)
        make_importable(run, RunFolder.of(tmp_path, run.run_id))
        assert imported_scale() == scale, "in one process, one after the other"
    first = RunFolder.of(tmp_path, runs[11].run_id)
    if snapshot:
        make_importable(runs[11], first)
        assert imported_scale() == 11
        module = sys.modules["their_code"]
        make_importable(runs[11], first)
        assert importlib.import_module("their_code") is module, "what is the same is not loaded again"
    else:
        with pytest.raises(ConfigError, match=r"was trained with other code of their_code.*put it back.*version"):
            make_importable(runs[11], first)


def test_hashes_of_earlier_versions_are_of_python_alone(lab: Path, tmp_path: Path) -> None:
    run, folder = run_of("1"), RunFolder.of(tmp_path, run_of("1").run_id)
    python_alone = find_source("their_code.O").hash
    (lab / "their_code" / "__pycache__").mkdir(exist_ok=True)
    for left in ("__pycache__/a.pyc", ".a.swp"):
        (lab / "their_code" / left).write_text("x")
    assert find_source("their_code.O").hash == python_alone
    (lab / "their_code" / "scales.txt").write_text("3")
    assert find_source("their_code.O").hash != python_alone
    record_code([run], tmp_path, snapshot=False)
    file = folder.path / "target_code.json"
    new = file.read_text()
    file.write_text(new.replace('"all_files": true,', "").replace(find_source("their_code.O").hash, python_alone))
    make_importable(run, folder)
    file.write_text(new)
    make_importable(run, folder)
    (lab / "their_code" / "scales.txt").write_text("4")
    with pytest.raises(ConfigError, match="other code of their_code"):
        make_importable(run, folder)


def test_code_beside_a_module_is_refused_before_the_queue(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    text = "from their_scale import SCALE\n\n\ndef texts():\n    yield from map(str, range(99 * SCALE))\n"
    files = {"lone_code.py": text, "their_scale.py": "SCALE = 2\n", "conf/x": ""}
    data: dict[str, Any] = {"_target_": "lone_code.texts"}
    with lab_in(tmp_path / "lab", "lone_code", files) as folder:
        monkeypatch.syspath_prepend(folder)
        with pytest.raises(ConfigError, match=r"their_scale lies beside lone_code.*move it into a package lone_code"):
            facts_of("data", [data])
        assert not list((tmp_path / "cache").rglob("*.json")), "a problem may be gone the next time"


def test_another_version_of_data_is_read_anew(lab: Path) -> None:
    keys = set()
    for version in ("1", "2"):
        config = TargetDataConfig(_target_="their_code.texts", version=version)
        keys.add(key_of_facts(config, sources_by_package([("their_code.texts", "data")])))
    assert len(keys) == 2, "it may read files, which are in no hash of its code"


def test_documents_are_made_anew_by_changed_code(lab: Path) -> None:
    data = TargetDataConfig(_target_="their_code.texts", validation_fraction=0.4)
    found = set()
    for scale in (1, 22):
        change(lab, scale)
        make_importable(run_of("1", data=data), None)
        found.add(load_corpus(data).content_hash)
        assert load_corpus(data) is load_corpus(data)
    assert len(found) == 2


def test_changed_code_under_the_same_version_stops(lab: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("muloco_runner.targets.answers._try", lambda asked, *folders: {key: Answer() for key in asked})
    run, root = run_of("1"), tmp_path
    RunFolder.of(root, run.run_id).write_config(run.to_dict())
    record_code([run], root, snapshot=True)
    check_targets([run], root, same_code=False)
    with pytest.raises(ConfigError, match="not found to take parameters that are sharded"):
        refuse_sharded(run, RunFolder.of(root, run.run_id))
    (copy,) = (root / "code").iterdir()
    assert (copy / "their_code" / "__init__.py").read_text() == LAB.format(1)
    (lab / "their_code" / "more.py").write_text("x = 1\n")
    with pytest.raises(ConfigError, match=rf"their_code has changed since 1 of these runs.*{run.run_id}.*--same-code"):
        check_targets([run], root, same_code=False)
    check_targets([run], root, same_code=True)
    record_code([run], root, snapshot=True)
    recorded = recorded_code(RunFolder.of(root, run.run_id))
    assert recorded is not None
    assert recorded["earlier"][0]["folders"] == [str(copy)]
    check_targets([run_of("2")], root, same_code=False)


def test_a_continued_run_uses_its_parents_code(lab: Path, tmp_path: Path) -> None:
    run, child = run_of("1"), RunFolder.of(tmp_path, "c" * 12)
    parent = RunFolder.of(tmp_path, run.run_id)
    for folder in (parent, child):
        folder.write_config(run.to_dict())
    hand_on_code(parent, child)
    assert recorded_code(child) is None, "there was none"
    record_code([run], tmp_path, snapshot=True)
    hand_on_code(parent, child)
    assert recorded_code(child) == recorded_code(parent)


def test_each_package_is_read_once_for_all_runs(lab: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    read: list[str] = []
    monkeypatch.setattr(source_code, "find_source", lambda target, part: read.append(target) or find_source(target))
    runs = [run_of(version) for version in ("1", "2", "3")]
    record_code(runs, tmp_path, snapshot=True)
    assert read == ["their_code.O"]
    assert all(recorded_code(RunFolder.of(tmp_path, run.run_id)) for run in runs)


def test_a_copy_that_cannot_be_put_there_is_an_error(tmp_path: Path) -> None:
    (tmp_path / "code").write_text("a file has its name")
    with pytest.raises(OSError, match="could not be put there"):
        write_folder(tmp_path / "code", {"lab/a.py": b"x = 1"})
    assert [path.name for path in tmp_path.iterdir()] == ["code"], "and nothing is left of it"


@pytest.mark.parametrize("target", ["math.sqrt", "random.Random"])
def test_the_standard_library_holds_no_target(target: str) -> None:
    with pytest.raises(ConfigError, match="is of the standard library"):
        find_source(target)


def test_a_package_that_is_installed_to_be_edited_is_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its installer leaves no folder on the path, but something that finds its modules."""
    (tmp_path / "edited_lab").mkdir()
    (tmp_path / "edited_lab" / "__init__.py").write_text("x = 1\n")

    class Finder:
        @staticmethod
        def find_spec(name: str, path: object = None, target: object = None) -> ModuleSpec | None:
            return PathFinder.find_spec(name, [str(tmp_path)]) if name == "edited_lab" else None

    monkeypatch.setattr(sys, "meta_path", [*sys.meta_path, Finder])
    source = find_source("edited_lab.Lion")
    assert (source.folder, source.installed) == (tmp_path.resolve(), False)
    assert "edited_lab" not in sys.modules


def test_a_package_that_is_nowhere_is_named(lab: Path) -> None:
    with pytest.raises(ConfigError, match="no package or module their_lab"):
        find_source("their_lab.Lion")
