"""Preparing text and reading it back: what must be the same."""

import gzip
import os
import random
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from prepared_text import all_documents, command, prepared, texts, write_jsonl

from muloco_runner.data.corpus import LoadedSplit
from muloco_runner.data.prepared.inputs import Document, InputFile, documents_of, plan_chunks
from muloco_runner.data.prepared.manifest import read_manifest
from muloco_runner.data.prepared.read import PreparedSplit


@pytest.mark.parametrize("kind", ["jsonl", "jsonl.gz", "jsonl.zst", "parquet", "txt", "folder"])
def test_every_document_comes_back_once(kind: str, tmp_path: Path) -> None:
    contents = texts(300)
    source = tmp_path / f"input.{kind}"
    if kind.startswith("jsonl"):
        plain = write_jsonl(tmp_path / "plain", contents).read_bytes()
        if kind == "jsonl.gz":
            plain = gzip.compress(plain)
        elif kind == "jsonl.zst":
            pyarrow = pytest.importorskip("pyarrow")
            plain = pyarrow.compress(plain, "zstd", asbytes=True)
        source.write_bytes(plain)
    elif kind == "parquet":
        pyarrow = pytest.importorskip("pyarrow")
        table = pyarrow.table({"text": contents, "other": list(range(300))})
        pytest.importorskip("pyarrow.parquet").write_table(table, source, row_group_size=70)
    elif kind == "txt":
        source.write_text("\n\n".join(contents))
    else:
        source.mkdir()
        for number, text in enumerate(contents):
            (source / f"{number:03d}.md").write_text(text)
    out = prepared(source, tmp_path / "out", by_file=kind == "folder", chunk_bytes=5000)
    assert len(read_manifest(out).train.files) > 1 or kind.endswith(("gz", "zst"))
    ending = b"\n\n" if kind == "txt" else b""
    assert sorted(all_documents(out)) == sorted(text.encode() + ending for text in contents)
    assert not [path for path in out.iterdir() if path.name.startswith(".") or path.name in ("parts", "plan.json")]


@given(st.lists(st.sampled_from(["a", "bb\ncc", "\n", "ddd\n\n\neee", "é"]), max_size=30), st.integers(1, 12))
@settings(max_examples=60, deadline=None)
def test_pieces_of_a_text_file_hold_each_paragraph_once(parts: list[str], chunk_bytes: int) -> None:
    content = "\n\n".join(parts).encode()
    path = Path("/dev/shm" if os.path.isdir("/dev/shm") else "/tmp") / f"paragraphs-{os.getpid()}.txt"
    path.write_bytes(content)
    try:
        file = InputFile("p.txt", str(path), len(content), "text")

        def found(size: int) -> list[bytes]:
            documents: list[Document] = []
            for chunk in plan_chunks([file], size, by_file=False):
                for piece in chunk:
                    documents += documents_of(piece, "text", by_file=False)
            return [document.content for document in documents if document.content]

        whole = [p.strip("\n").encode() for p in content.decode().split("\n\n") if p.strip()]
        assert found(chunk_bytes) == found(10**6) == [paragraph + b"\n\n" for paragraph in whole]
    finally:
        path.unlink()


def test_processes_and_chunk_size_do_not_change_the_tokens(tmp_path: Path) -> None:
    source = write_jsonl(tmp_path / "input.jsonl", texts(400))
    one, two = prepared(source, tmp_path / "one", chunk_bytes=4000), tmp_path / "two"
    prepared(source, two, processes=2, chunk_bytes=4000)
    assert (one / "manifest.json").read_text() == (two / "manifest.json").read_text()
    large = prepared(source, tmp_path / "large")
    assert all_documents(large) == all_documents(one)


def test_a_prepared_split_reads_as_one_in_memory(tmp_path: Path) -> None:
    out = prepared(write_jsonl(tmp_path / "input.jsonl", texts(300)), tmp_path / "out", chunk_bytes=3000)
    manifest = read_manifest(out)
    split = PreparedSplit(out, manifest.train, manifest.dtype)
    starts = np.array([split.document(number)[0] for number in range(split.num_documents)])
    loaded = LoadedSplit(split.read(0, split.num_tokens), starts)
    places = np.random.default_rng(0).integers(0, split.num_tokens - 600, 200)
    for length in (1, 64, 599):
        split.will_need(places, length)
        for found, expected in zip(split.gather(places, length), loaded.gather(places, length), strict=True):
            assert np.array_equal(found, expected)


def test_a_preparation_killed_at_any_moment_goes_on(tmp_path: Path) -> None:
    source = write_jsonl(tmp_path / "input.jsonl", texts(3000))
    whole = prepared(source, tmp_path / "whole", chunk_bytes=20_000)
    # It sees to its end itself: whoever watches from outside may be late.
    code = (
        "import itertools, signal, sys; from pathlib import Path; "
        "from muloco_runner.data.prepared.inputs import find_files; "
        "from muloco_runner.data.prepared.prepare import prepare; "
        "from muloco_runner.data.prepared.input_chunk import PrepareOptions; "
        "options, parts = PrepareOptions(chunk_bytes=20_000), itertools.count(1); "
        "die = lambda: signal.setitimer(signal.ITIMER_REAL, float(sys.argv[4])); "
        "on_bytes = lambda done: die() if next(parts) == int(sys.argv[3]) else None; "
        "prepare(find_files([Path(sys.argv[1])], None), Path(sys.argv[2]), options, 1, on_bytes)"
    )
    generator, kills = random.Random(0), 0
    cut = tmp_path / "cut"
    for _ in range(8):
        words = [str(source), str(cut), str(generator.randrange(1, 5)), str(generator.uniform(0.0001, 0.01))]
        kills += subprocess.run([sys.executable, "-c", code, *words], check=False).returncode == -signal.SIGALRM
        if (cut / "manifest.json").exists():
            break
    assert kills >= 2
    prepared(source, cut, chunk_bytes=20_000)
    names = sorted(path.name for path in whole.iterdir())
    assert sorted(path.name for path in cut.iterdir()) == names
    for name in names:
        assert (cut / name).read_bytes() == (whole / name).read_bytes(), name


def test_copies_of_a_document_fall_on_the_same_side(tmp_path: Path) -> None:
    contents = [*texts(200), *texts(200), *(f"late {number}" for number in range(200))]
    out = prepared(write_jsonl(tmp_path / "input.jsonl", contents), tmp_path / "out", validation_fraction=0.3)
    manifest = read_manifest(out)
    train, validation = (PreparedSplit(out, part, manifest.dtype) for part in (manifest.train, manifest.validation))
    sides = [
        {split.read(*(start, end - start)).tobytes() for start, end in map(split.document, range(split.num_documents))}
        for split in (train, validation)
    ]
    assert not sides[0] & sides[1]
    first = [validation.document(number) for number in range(30)]
    late = [validation.read(start, end - start).tobytes().startswith(b"late") for start, end in first]
    assert 0 < sum(late) < 30


def test_a_tokenizer_keeps_the_text_and_ends_each_document(
    tokenizer_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    contents = texts(300)
    monkeypatch.setattr("muloco_runner.data.prepared.tokenizer._LONGEST_PIECE", 100)
    source, out = write_jsonl(tmp_path / "input.jsonl", contents), tmp_path / "out"
    assert command(monkeypatch, "prepare", source, "--out", out, "--tokenizer", tokenizer_file) == 0
    manifest = read_manifest(out)
    assert (manifest.vocab_size, manifest.dtype) == (290, "uint16")
    assert manifest.tokenizer.end_of_document == "<|endoftext|>"
    library = pytest.importorskip("tokenizers")
    tokenizer = library.Tokenizer.from_file(str(out / "tokenizer.json"))
    found = []
    for part in (manifest.train, manifest.validation):
        split = PreparedSplit(out, part, manifest.dtype)
        for start, end in map(split.document, range(split.num_documents)):
            tokens = split.read(start, end - start)
            assert tokens[-1] == manifest.tokenizer.end_of_document_id
            found.append(tokenizer.decode(tokens[:-1].tolist(), skip_special_tokens=False))
    assert sorted(found) == sorted(contents)
    assert command(monkeypatch, "inspect", out, "--verify") == 0
    shown = capsys.readouterr().out
    assert manifest.content_hash in shown
    assert "every file is as it was written" in shown
    assert found[0][:20] in shown


def test_the_trainer_needs_no_package_of_the_preparation() -> None:
    code = "import sys, muloco_runner.data.corpus; assert not {'pyarrow', 'tokenizers'} & set(sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True)
