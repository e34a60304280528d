"""Data sets by name, from a mirror: what is read is what the same documents give as files, at one revision."""

import json
from pathlib import Path
from typing import Any

import pytest
from prepared_text import all_documents, command, prepared, texts, write_jsonl

from muloco_runner.data.prepared.manifest import read_manifest

pyarrow = pytest.importorskip("pyarrow")
datasets = pytest.importorskip("datasets")


@pytest.fixture
def contents(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    monkeypatch.setenv("HF_HOME", str(tmp_path / "home"))
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    return texts(200)


def make_mirror(kind: str, mirror: Path, contents: list[str]) -> None:
    """`group/name` as a copy of a repository, or as the library writes it to a disk."""
    folder = mirror / "group" / "name"
    rows = {"title": [f"t{n}" for n in range(len(contents))], "text": contents}
    made: Any = datasets.Dataset.from_dict(rows)
    if kind == "repository":
        parquet = pytest.importorskip("pyarrow.parquet")
        (folder / "data").mkdir(parents=True)
        for number, start in enumerate(range(0, len(contents), 70)):
            part = pyarrow.table({name: values[start : start + 70] for name, values in rows.items()})
            parquet.write_table(part, folder / "data" / f"train-{number:05d}-of-00003.parquet")
        (folder / "README.md").write_text("# a card, no document\n")
    elif kind == "saved":
        made.save_to_disk(folder, num_shards=3)
    else:
        datasets.DatasetDict({"train": made, "other": made}).save_to_disk(folder, num_shards={"train": 3, "other": 1})


@pytest.mark.parametrize("kind", ["repository", "saved", "saved splits"])
def test_a_data_set_gives_the_tokens_of_its_documents(
    kind: str, contents: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    make_mirror(kind, tmp_path / "mirror", contents)
    words = ["hf://datasets/group/name", "--mirror", tmp_path / "mirror", "--split", "train", "--processes", "1"]
    words += ["--validation-fraction", "0.2", "--chunk-megabytes", "1"]
    assert command(monkeypatch, "prepare", *words, "--out", tmp_path / "out") == 0
    plain = prepared(write_jsonl(tmp_path / "in.jsonl", contents), tmp_path / "plain", validation_fraction=0.2)
    assert all_documents(tmp_path / "out") == all_documents(plain)
    (source,) = read_manifest(tmp_path / "out").inputs
    assert (source["name"], source["split"], source["columns"]) == ("group/name/train", "train", ["text"])
    assert source["revision"].startswith("files-")
    # The same data set from a mirror elsewhere is known; another state of it is another.
    (tmp_path / "mirror").rename(tmp_path / "moved")
    words[2] = tmp_path / "moved"
    assert command(monkeypatch, "prepare", *words, "--out", tmp_path / "out") == 0
    (tmp_path / "moved" / "group" / "name" / "new.txt").write_text("one more file")
    capsys.readouterr()
    assert command(monkeypatch, "prepare", *words, "--out", tmp_path / "out") == 2
    assert "was prepared from other input files" in capsys.readouterr().err


def test_columns_make_one_document(contents: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    make_mirror("repository", tmp_path / "mirror", contents)
    words = ["hf://datasets/group/name", "--mirror", tmp_path / "mirror", "--columns", "title,text"]
    words += ["--validation-fraction", "0.2", "--out", tmp_path / "out", "--processes", "1"]
    assert command(monkeypatch, "prepare", *words) == 0
    assert sorted(all_documents(tmp_path / "out")) == sorted(f"t{n}\n\n{t}".encode() for n, t in enumerate(contents))


def test_a_saved_data_set_is_read_as_files_too(contents: list[str], tmp_path: Path) -> None:
    make_mirror("saved", tmp_path / "mirror", contents)
    out = prepared(tmp_path / "mirror" / "group" / "name", tmp_path / "out", validation_fraction=0.2)
    assert sorted(all_documents(out)) == sorted(text.encode() for text in contents)


NAME = ["hf://datasets/group/name", "--mirror", "MIRROR"]


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (["hf://datasets/group/other", "--mirror", "MIRROR"], "no folder group/other there"),
        ([*NAME, "--split", "test"], "hf://datasets/group/name: "),
        ([*NAME, "--columns", "body"], "no column body (there is: title, text)"),
        ([*NAME, "--revision", "v1"], "--revision has no effect with --mirror"),
        (["MIRROR", "--split", "train"], "--split has no effect without an input hf://datasets/NAME"),
    ],
)
def test_a_mistake_is_one_line(
    words: list[str],
    expected: str,
    contents: list[str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    make_mirror("repository", tmp_path / "mirror", contents)
    words = [word.replace("MIRROR", str(tmp_path / "mirror")) for word in words]
    assert command(monkeypatch, "prepare", *words, "--out", tmp_path / "out") == 2
    message = capsys.readouterr().err
    assert len(message.splitlines()) == 1, message
    assert expected in message
    assert not (tmp_path / "out").exists()


def test_null_texts_are_named(
    contents: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "mirror" / "name"
    folder.mkdir(parents=True)
    lines = [json.dumps({"text": text}) for text in contents] + ['{"text": null}']
    (folder / "train.jsonl").write_text("\n".join(lines))
    words = ["hf://datasets/name", "--mirror", tmp_path / "mirror", "--out", tmp_path / "out", "--processes", "1"]
    assert command(monkeypatch, "prepare", *words) == 2
    assert "name/train, row 200 of part 0: 'text' is null" in capsys.readouterr().err
    assert command(monkeypatch, "prepare", *words, "--bad-documents", "skip", "--validation-fraction", "0.2") == 0
