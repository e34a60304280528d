"""Files as other programs leave them: each read by what it is, or named in one line."""

import gzip
import itertools
import json
import os
import random
from pathlib import Path

import pytest
from prepared_text import all_documents, command, prepared, texts, write_jsonl
from random_inputs import check_damage, check_layouts

from muloco_runner.config import ConfigError, DataConfig
from muloco_runner.data.corpus import LoadedSplit, _load, load_corpus
from muloco_runner.data.prepared.manifest import read_manifest
from muloco_runner.data.prepared.tokenizer import open_tokenizer

pyarrow = pytest.importorskip("pyarrow")
parquet = pytest.importorskip("pyarrow.parquet")

SKIP = ("--bad-documents", "skip", "--validation-fraction", "0.2")


@pytest.mark.parametrize("seed", range(8))
def test_equal_documents_give_equal_tokens_whatever_the_files(seed: int, tmp_path: Path) -> None:
    check_layouts(random.Random(seed), tmp_path)


@pytest.mark.parametrize("seed", range(8))
def test_damage_is_named_by_its_file_and_may_be_skipped(seed: int, tmp_path: Path) -> None:
    check_damage(random.Random(seed), tmp_path)


def refusal(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], *words: object) -> str:
    assert command(monkeypatch, "prepare", *words) == 2
    message = capsys.readouterr().err
    assert len(message.splitlines()) == 1, message
    return message


def test_a_link_is_read_as_its_own_name_says(tmp_path: Path) -> None:
    contents = texts(100)
    plain = write_jsonl(tmp_path / "plain.jsonl", contents).read_bytes()
    cache = tmp_path / "cache"
    (cache / "snapshots" / "1f").mkdir(parents=True)
    (cache / "blobs").mkdir()
    (cache / "blobs" / "0a1b").write_bytes(gzip.compress(plain))
    (cache / "snapshots" / "1f" / "train.jsonl.gz").symlink_to("../../blobs/0a1b")
    out = prepared(cache / "snapshots" / "1f", tmp_path / "out", validation_fraction=0.2)
    assert sorted(all_documents(out)) == sorted(text.encode() for text in contents)
    with pytest.raises(ConfigError, match="snapshots/REVISION"):
        prepared(cache, tmp_path / "other")
    (cache / "snapshots" / "1f" / "gone.jsonl").symlink_to("../../blobs/none")
    with pytest.raises(ConfigError, match=r"gone\.jsonl: a link to nothing"):
        prepared(cache / "snapshots" / "1f", tmp_path / "other")


def test_linked_folders_are_entered_once(tmp_path: Path) -> None:
    (tmp_path / "in").mkdir()
    (tmp_path / "elsewhere").mkdir()
    for number, text in enumerate(texts(40)):
        (tmp_path / ("in" if number % 2 else "elsewhere") / f"{number}.txt").write_text(text)
    (tmp_path / "in" / "linked").symlink_to(tmp_path / "elsewhere")
    (tmp_path / "elsewhere" / "back").symlink_to(tmp_path / "in")
    out = prepared(tmp_path / "in", tmp_path / "out", validation_fraction=0.3)
    assert sorted(all_documents(out)) == sorted(text.encode() for text in texts(40))


@pytest.mark.parametrize("damage", ["cut", "row group"])
def test_damaged_parquet_is_named_by_row_group_and_skipped(
    damage: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    source, out = tmp_path / "in" / "table.parquet", tmp_path / "out"
    source.parent.mkdir()
    parquet.write_table(pyarrow.table({"text": texts(300)}), source, row_group_size=100, use_dictionary=False)
    write_jsonl(source.parent / "whole.jsonl", texts(100, seed=1))
    content = source.read_bytes()
    offset = parquet.ParquetFile(source).metadata.row_group(1).column(0).data_page_offset
    changed = content[:offset] + bytes(200) + content[offset + 200 :]
    source.write_bytes(content[:-100] if damage == "cut" else changed)
    message = refusal(monkeypatch, capsys, source.parent, "--out", out)
    assert "table.parquet" in message
    assert ("row group 1" in message) == (damage == "row group")
    assert command(monkeypatch, "prepare", source.parent, "--out", out, *SKIP) == 0
    assert "left out: table.parquet" in capsys.readouterr().err
    assert len(all_documents(out)) == (100 if damage == "cut" else 300)


def test_bad_utf8_in_a_column_is_named_by_its_row(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    source, out = tmp_path / "bad.parquet", tmp_path / "out"
    cells = pyarrow.array([text.encode() for text in texts(50)] + [b"caf\xe9"] + [b"last"])
    # As a writer in C++ leaves it: said to be text, and not looked at.
    column = pyarrow.StringArray.from_buffers(52, cells.buffers()[1], cells.buffers()[2])
    parquet.write_table(pyarrow.table({"text": column}), source, row_group_size=20)
    assert "bad.parquet, row group 2, row 10: not UTF-8" in refusal(monkeypatch, capsys, source, "--out", out)
    assert command(monkeypatch, "prepare", source, "--out", out, *SKIP) == 0
    assert len(all_documents(out)) == 51


@pytest.mark.parametrize(
    ("name", "content", "words"),
    [
        ("a.jsonl", b'{"text": null}\n', "'text' is null"),
        ("a.json", b'[{"text": "one"},\n{"text": "two"}]\n', "of an array make one object a line"),
        ("a.json", b'[{"text": "one"}, {"text": "two"}]\n', "a JSON array, not an object"),
        ("a.jsonl", b'{"text": 3}\n', "'text' is no text but a JSON int"),
        ("a.zip", b"PK\x03\x04 and so on", "a.zip: .zip is no kind"),
        ("a.weights", b"\0\1\2" * 100, "a.weights: it is not text"),
        ("a.txt", "naïve".encode("utf-16"), "a.txt: UTF-16 text"),
        ("a.csv", b"id,body\n1,one\n", "no column 'text' (there is: id, body)"),
        (
            "a.csv",
            b"text,text\none,two\n",
            "a.csv: 2 columns are named 'text': rename all but one, or give another with",
        ),
        ("a.csv", b'id,text\n1,"one\n', "a.csv, row 1: not csv"),
        ("a.csv", b"id,text\n1,one,more\n", "a.csv, row 1: 3 cells under a header of 2"),
        ("a.csv", b"id,text\n1,caf\xe9\n", "a.csv, row 1: not UTF-8"),
        ("a.arrow", b"ARROW1 and nothing", "a.arrow: damaged"),
        ("a.txt", b"", "no document is left: all that was given is empty"),
    ],
)
def test_what_cannot_be_read_is_one_line(
    name: str,
    content: bytes,
    words: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    (tmp_path / name).write_bytes(content)
    assert words in refusal(monkeypatch, capsys, tmp_path / name, "--out", tmp_path / "out")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("suffix", ["parquet", "arrow"])
def test_two_columns_of_one_name_are_refused(
    suffix: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    source = tmp_path / f"a.{suffix}"
    table = pyarrow.table([pyarrow.array(["one"]), pyarrow.array(["two"])], names=["text", "text"])
    if suffix == "parquet":
        parquet.write_table(table, source)
    else:
        with pyarrow.ipc.new_file(source, table.schema) as file:
            file.write_table(table)
    words = f"a.{suffix}: 2 columns are named 'text': rename all but one"
    assert words in refusal(monkeypatch, capsys, source, "--out", tmp_path / "out")


def test_empty_files_pass_as_empty_rows_do(tmp_path: Path) -> None:
    source = write_jsonl(tmp_path / "in.jsonl", texts(100)).rename(tmp_path / "data.jsonl").parent
    for suffix in ("txt", "jsonl", "csv", "parquet", "arrow", "jsonl.gz"):
        (source / f"empty.{suffix}").touch()
    assert len(all_documents(prepared(source, tmp_path / "out", validation_fraction=0.2))) == 100


def tokenizer_of(folder: Path, special: list[str], vocabulary: dict[str, int]) -> Path:
    library = pytest.importorskip("tokenizers")
    tokenizer = library.Tokenizer(library.models.WordLevel(vocabulary, unk_token="a"))
    tokenizer.pre_tokenizer = library.pre_tokenizers.WhitespaceSplit()
    tokenizer.add_special_tokens(special)
    tokenizer.save(str(folder / "words.json"))
    return folder / "words.json"


def test_documents_without_tokens_are_no_documents(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tokenizer_of(tmp_path, [], {"a": 0, "b": 1})
    source, out = write_jsonl(tmp_path / "in.jsonl", ["a b", " ", "\n", "b a", "  ", "a"] * 10), tmp_path / "out"
    words = [source, "--out", out, "--tokenizer", file, "--validation-fraction", "0.6"]
    assert "give --end-of-document TOKEN, or --end-of-document none" in refusal(monkeypatch, capsys, *words)
    assert command(monkeypatch, "prepare", *words, "--end-of-document", "none") == 0
    manifest = read_manifest(out)
    assert manifest.train.num_documents + manifest.validation.num_documents == 30
    assert command(monkeypatch, "inspect", out) == 0


def test_a_special_tokens_name_in_a_text_is_text(tokenizer_file: Path, tmp_path: Path) -> None:
    words = tokenizer_of(tmp_path, [], {"a": 0, "b": 1, "</s>": 2})
    spelled = b"a <|endoftext|> </s> b"
    for file, end in ((tokenizer_file, "<|endoftext|>"), (words, "</s>")):
        as_text = open_tokenizer(str(file), None)
        number = as_text.describe().end_of_document_id
        assert as_text.describe().end_of_document == end
        (tokens,) = as_text.encode([spelled])
        assert tokens.tolist().index(number) == len(tokens) - 1, "the end alone"
        (tokens,) = open_tokenizer(str(file), None, "token").encode([spelled])
        assert tokens.tolist().count(number) == 2
    bpe = open_tokenizer(str(tokenizer_file), None)
    assert bpe.decode(bpe.encode([spelled])[0][:-1]).encode() == spelled


def test_a_prepared_folder_knows_its_inputs_by_content(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    source, out = write_jsonl(tmp_path / "in.jsonl", texts(300)), tmp_path / "out"
    assert command(monkeypatch, "prepare", source, "--out", out) == 0
    before = source.stat()
    moved = source.rename(tmp_path / "renamed.jsonl")
    assert command(monkeypatch, "prepare", moved, "--out", out) == 0
    changed = moved.read_bytes().replace(b"outer", b"inner")
    moved.write_bytes(changed)
    os.utime(moved, ns=(before.st_atime_ns, before.st_mtime_ns))
    capsys.readouterr()
    message = refusal(monkeypatch, capsys, moved, "--out", out)
    assert "renamed.jsonl is another now" in message
    # Folders of earlier versions hold no hashes: names and sizes are all there is to go by.
    (out / "inputs.json").unlink()
    moved.rename(source)
    assert command(monkeypatch, "prepare", source, "--out", out) == 0


def documents(path: Path) -> list[bytes]:
    corpus = load_corpus(DataConfig("text", str(path), validation_fraction=0.3))
    found = []
    for split in (corpus.train, corpus.validation):
        assert isinstance(split, LoadedSplit)
        bounds = [*split.document_starts.tolist(), split.num_tokens]
        found += [split.tokens[a:b].tobytes() for a, b in itertools.pairwise(bounds)]
    return sorted(found)


def test_text_is_read_as_prepare_reads_it(tmp_path: Path) -> None:
    contents = texts(60)
    one = tmp_path / "one.txt"
    one.write_bytes(b"\xef\xbb\xbf" + "\r\n\r\n".join(contents).encode())
    assert documents(one) == sorted(text.encode() + b"\n\n" for text in contents)
    folder = tmp_path / "many"
    (folder / ".git").mkdir(parents=True)
    (folder / ".git" / "config").write_text("no document")
    (folder / ".hidden").write_text("no document")
    for number, text in enumerate(contents[:20]):
        (folder / f"{number:02d}.txt").write_text(text)
    (folder / "20.txt.gz").write_bytes(gzip.compress(contents[20].encode()))
    (folder / "rows.jsonl").write_text("".join(json.dumps({"text": text}) + "\n" for text in contents[21:]))
    assert documents(folder) == sorted(text.encode() for text in contents)
    out = prepared(folder, tmp_path / "out", validation_fraction=0.3)
    assert documents(folder) == sorted(all_documents(out))
    (folder / "bad.txt").write_bytes(b"caf\xe9")
    _load.cache_clear()
    with pytest.raises(ConfigError, match=r"bad\.txt: not UTF-8"):
        documents(folder)
