"""What `muloco-data` refuses, in one line, and what is left after that."""

import gzip
import shutil
from pathlib import Path

import pytest
from prepared_text import all_documents, command, prepared, texts, write_jsonl

from muloco_runner.config import ConfigError, DataConfig
from muloco_runner.data.check import check_data_path
from muloco_runner.data.prepared.input_chunk import PrepareOptions
from muloco_runner.data.prepared.inputs import find_files
from muloco_runner.data.prepared.manifest import read_manifest
from muloco_runner.data.prepared.prepare import prepare


@pytest.mark.parametrize(
    ("content", "options", "words"),
    [
        (None, [], "no such file"),
        (b"", [], "empty"),
        (b'{"text": "ok"}\n{"body": "no"}\n', [], "body"),
        (b'{"text": "ok"}\n{"text": 3}\n', [], "at byte 15"),
        (b'{"text": "ok"}\n{"text": "\xff"}\n', [], "UTF-8"),
        (b'{"text": "\\ud800"}\n', [], "Unicode"),
        (b"not json\n", [], "not JSON"),
        (b"[" * 100_000, [], "not JSON"),
        (b'{"text": "only one"}\n', [], "no document is left"),
        (b'{"text": "ok"}\n', ["--tokenizer", "nowhere.json"], "nowhere.json"),
        (b'{"text": "ok"}\n', ["--tokenizer", __file__], "tokenizer"),
        (b'{"text": "ok"}\n', ["--end-of-document", "</s>"], "no effect"),
        (b'{"text": "ok"}\n', ["--validation-fraction", "1.5"], "more than zero and less than 1"),
        (b'{"text": "ok"}\n', ["--processes", "0"], "one or more"),
        (b'{"text": "ok"}\n', ["--format", "parquet"], "not a parquet file"),
    ],
)
def test_a_mistake_is_one_line_and_leaves_nothing(
    content: bytes | None,
    options: list[str],
    words: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    source, out = tmp_path / "input.jsonl", tmp_path / "out"
    if content is not None:
        source.write_bytes(content)
    assert command(monkeypatch, "prepare", source, "--out", out, *options) == 2
    message = capsys.readouterr().err
    assert len(message.splitlines()) == 1, message
    assert words in message
    assert not out.exists()


@pytest.mark.parametrize("damage", ["cut", "changed", "not compressed"])
@pytest.mark.parametrize("kind", ["gz", "zst"])
def test_a_damaged_compressed_file_is_one_line_or_left_out(
    kind: str, damage: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    plain = write_jsonl(tmp_path / "whole.jsonl", texts(300)).read_bytes()
    if kind == "gz":
        content = gzip.compress(plain)
    else:
        content = pytest.importorskip("pyarrow").compress(plain, "zstd", asbytes=True)
    half = len(content) // 2
    damaged = {"cut": content[:half], "changed": content[:half] + bytes(half), "not compressed": plain}[damage]
    source, out = tmp_path / f"damaged.jsonl.{kind}", tmp_path / "out"
    source.write_bytes(damaged)
    assert command(monkeypatch, "prepare", source, "--out", out) == 2
    message = capsys.readouterr().err
    assert len(message.splitlines()) == 1, message
    assert source.name in message
    assert not out.exists()
    inputs = (source, tmp_path / "whole.jsonl")
    assert command(monkeypatch, "prepare", *inputs, "--out", out, "--bad-documents", "skip") == 0
    assert read_manifest(out).num_skipped >= 1
    assert len(all_documents(out)) >= 300


def test_a_mended_command_may_use_the_same_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source, out = write_jsonl(tmp_path / "input.jsonl", texts(300)), tmp_path / "out"
    assert command(monkeypatch, "prepare", source, "--out", out, "--column", "body") == 2
    assert command(monkeypatch, "prepare", source, "--out", out) == 0
    assert command(monkeypatch, "prepare", source, "--out", out) == 0
    assert command(monkeypatch, "prepare", source, "--out", out, "--validation-fraction", "0.1") == 2


def test_two_preparations_of_one_folder_do_not_meet(tmp_path: Path) -> None:
    source, out = write_jsonl(tmp_path / "input.jsonl", texts(300)), tmp_path / "out"
    refused: list[str] = []

    def again(done: int) -> None:
        with pytest.raises(ConfigError, match="another process is preparing") as error:
            prepare(find_files([source], None), out, PrepareOptions(), 1, lambda done: None)
        refused.append(str(error.value))

    prepare(find_files([source], None), out, PrepareOptions(), 1, again)
    assert refused
    assert len(all_documents(out)) == 300


def test_bad_documents_may_be_left_out_and_are_counted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source, out = write_jsonl(tmp_path / "input.jsonl", texts(300)), tmp_path / "out"
    source.write_bytes(source.read_bytes() + b'{"text": null}\nbroken\n{"text": ""}\n')
    assert command(monkeypatch, "prepare", source, "--out", out, "--bad-documents", "skip") == 0
    assert read_manifest(out).num_skipped == 2
    assert len(all_documents(out)) == 300


def test_a_damaged_folder_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = prepared(write_jsonl(tmp_path / "input.jsonl", texts(300)), tmp_path / "whole")
    data = DataConfig("prepared", str(tmp_path / "cut"))
    shutil.copytree(whole, tmp_path / "cut")
    tokens = tmp_path / "cut" / "train-00000.tokens"
    content = tokens.read_bytes()
    tokens.write_bytes(content[:-1])
    with pytest.raises(ConfigError, match="bytes instead of"):
        check_data_path(data)
    tokens.write_bytes(bytes([content[0] ^ 1]) + content[1:])
    check_data_path(data)
    assert command(monkeypatch, "inspect", tmp_path / "cut", "--verify") == 2
    manifest = tmp_path / "cut" / "manifest.json"
    manifest.write_text(manifest.read_text().replace('"vocab_size": 256', '"vocab_size": 250'))
    with pytest.raises(ConfigError, match="changed after"):
        check_data_path(data)
    manifest.unlink()
    with pytest.raises(ConfigError, match="muloco-data prepare"):
        check_data_path(data)


def test_numbers_fixed_by_the_manifest_are_not_given_again() -> None:
    with pytest.raises(ConfigError, match="no effect"):
        DataConfig("prepared", "somewhere", validation_fraction=0.2)
