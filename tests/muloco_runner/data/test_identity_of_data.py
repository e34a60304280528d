"""A run is named by what it is trained on, not by where that lies; runs named by a path go on under that name."""

import dataclasses
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from prepared_text import prepared, texts, write_jsonl

from muloco_runner.compose import compose_app_config
from muloco_runner.config import ConfigError, DataConfig, ExecutionConfig, RunConfig
from muloco_runner.data import corpus
from muloco_runner.data.identity import contents_of, named_by_content
from muloco_runner.job import check_can_run, run_job
from muloco_runner.record import ExitCode, RecordHeader, RunFolder
from sweeps.training.sweep import read_sweep


@pytest.fixture(autouse=True)
def _own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.chdir(tmp_path)


def make_data(source: str, folder: Path, seed: int = 0) -> Path:
    if source == "prepared":
        return prepared(write_jsonl(folder.parent / "input.jsonl", texts(300, seed)), folder)
    folder.mkdir()
    for number, text in enumerate(texts(100, seed)):
        (folder / f"{number}.txt").write_text(text)
    return folder


def run_id(source: str, path: object, root: str = "root") -> str:
    return compose_app_config([f"data={source}", f"data.path={path}", f"root={root}"]).run.run_id


@pytest.mark.parametrize("source", ["text", "prepared"])
def test_a_run_is_named_by_the_content_of_its_data(source: str, tmp_path: Path) -> None:
    data = make_data(source, tmp_path / "data")
    shutil.copytree(data, tmp_path / "else where")
    (tmp_path / "link").symlink_to(data)
    spelled = [data, "data", "./data/", "../" + tmp_path.name + "/data", "link", "'else where'"]
    assert len({run_id(source, path) for path in spelled}) == 1
    found = read_sweep([f"data={source}", "data.path=data,./data", "seed=0,1"]).runs
    assert len(found) == 2
    assert found[0].run_id == run_id(source, "data")
    shutil.rmtree(data)
    (tmp_path / "input.jsonl").unlink(missing_ok=True)
    make_data(source, data, seed=1)
    assert run_id(source, "data") != run_id(source, "'else where'")


def test_text_is_not_read_again_for_a_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    data = make_data("text", tmp_path / "data")
    name = run_id("text", "data")
    monkeypatch.setattr(corpus, "_load", None)
    monkeypatch.setattr(corpus, "find_files", None)
    assert run_id("text", "data") == name
    monkeypatch.undo()
    monkeypatch.chdir(tmp_path)
    before = (data / "0.txt").stat()
    (data / "0.txt").write_text("x" * before.st_size)
    os.utime(data / "0.txt", ns=(before.st_atime_ns, before.st_mtime_ns))
    assert run_id("text", "data") != name


def test_a_known_text_costs_no_import_of_numpy(tmp_path: Path) -> None:
    make_data("text", tmp_path / "data")
    contents_of(DataConfig("text", "data"))
    code = (
        "import sys\nfrom muloco_runner.config import DataConfig\nfrom muloco_runner.data.identity import contents_of\n"
        "assert contents_of(DataConfig('text', 'data'))\nassert 'numpy' not in sys.modules, 'a tenth of a second'"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


def test_what_an_earlier_version_remembered_of_a_text_is_read_anew(tmp_path: Path) -> None:
    make_data("text", tmp_path / "data")
    data = DataConfig("text", "data")
    found = contents_of(data)
    assert found is not None
    assert found.validation_tokens == (corpus.load_corpus(data).validation.num_tokens,)
    (file,) = (tmp_path / "cache").rglob("*.json")
    known = json.loads(file.read_text())
    file.write_text(json.dumps({key: known[key] for key in ("content_hash", "train_tokens", "path")}))
    assert contents_of(data) == found
    assert json.loads(file.read_text()) == known


def begin(run: RunConfig, content: str, root: str = "root") -> RunFolder:
    """A run as an earlier version leaves it: named by its path, begun on data of that hash."""
    assert run.data.content_hash is None
    folder = RunFolder.of(root, run.run_id)
    folder.write_config(run.to_dict())
    folder.append_record(RecordHeader(run.run_id, "", {}, content, 0, 0, 0, 1.0))
    return folder


@pytest.mark.parametrize("kind", ["text", "prepared", "one file", "text that is refused today"])
def test_a_run_of_an_earlier_version_goes_on_under_its_name(
    kind: str, tmp_path: Path, tiny_run: Callable[..., RunConfig]
) -> None:
    path = "data"
    if kind == "one file":
        path = "data.txt"
        (tmp_path / path).write_text("\n\n".join(texts(100)) + "\n\n\n")
    else:
        make_data("prepared" if kind == "prepared" else "text", tmp_path / "data")
    if kind == "text that is refused today":
        (tmp_path / "data" / "package.json").write_text('{\n  "name": "no rows"\n}\n')
        (tmp_path / "data" / "picture.png").write_bytes(bytes(range(256)))
    source = "prepared" if kind == "prepared" else "text"
    data = DataConfig(source, path, validation_tokens=256)
    load = corpus.load_corpus_as_before if source == "text" else corpus.load_corpus
    content = load(data).content_hash
    run = tiny_run(data=data)
    folder = begin(run, content)
    assert named_by_content([run], "root") == [run]
    assert check_can_run(run, folder).content_hash == content
    if kind == "text that is refused today":
        with pytest.raises(ConfigError, match=r"package\.json, at byte 0: not JSON"):
            named_by_content([run], "other")
        return
    # Elsewhere, and on data that has changed meanwhile, it is another run.
    assert named_by_content([run], "other")[0].run_id != run.run_id
    begin(run, "another", root="changed")
    assert named_by_content([run], "changed")[0].run_id != run.run_id


def test_a_run_goes_on_where_its_data_lies_now(
    tmp_path: Path, tiny_run: Callable[..., RunConfig], execution: ExecutionConfig
) -> None:
    make_data("prepared", tmp_path / "data")
    (run,) = named_by_content([tiny_run(data=DataConfig("prepared", "data", validation_tokens=512))], "root")
    folder = RunFolder.of("root", run.run_id)
    folder.write_config(run.to_dict())
    (tmp_path / "data").rename(tmp_path / "moved")
    moved = dataclasses.replace(run, data=dataclasses.replace(run.data, path="moved"))
    assert moved.run_id == run.run_id
    folder.write_config(moved.to_dict())
    assert run_job(folder, execution) is ExitCode.FINISHED


def test_data_that_is_not_there_leaves_the_name_by_its_path(tiny_run: Callable[..., RunConfig]) -> None:
    run = tiny_run(data=DataConfig("prepared", "nowhere"))
    assert named_by_content([run], "root") == [run]
