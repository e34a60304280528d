"""Preparing text and reading it back: what must be the same, and what must be refused in one line."""

import gzip
import json
import os
import random
import shutil
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from muloco_runner.__main__ import main as train_command
from muloco_runner.config import ConfigError, DataConfig, ExecutionConfig, RunConfig
from muloco_runner.corpus import LoadedSplit, _load, load_corpus
from muloco_runner.corpus_path import check_data, check_data_path
from muloco_runner.data import TrainingData
from muloco_runner.data_command import main
from muloco_runner.job import check_can_run, run_job
from muloco_runner.record import ExitCode, RunFolder
from muloco_runner.shards.inputs import Document, InputFile, documents_of, find_files, plan_units
from muloco_runner.shards.manifest import read_manifest
from muloco_runner.shards.prepare import prepare
from muloco_runner.shards.read import ShardedSplit
from muloco_runner.shards.unit import Options

WORDS = ["gradient", "anchor", "Nesterov", "naïve", "η", "outer", "step", "the", "of"]


def texts(count: int, seed: int = 0) -> list[str]:
    generator = random.Random(seed)
    return [" ".join(generator.choices(WORDS, k=generator.randrange(1, 60))) for _ in range(count)]


def write_jsonl(file: Path, contents: list[str]) -> Path:
    file.write_text("".join(json.dumps({"id": n, "text": text}) + "\n" for n, text in enumerate(contents)))
    return file


def prepared(inputs: Path, out: Path, processes: int = 1, **options: object) -> Path:
    prepare(find_files([inputs], None), out, Options(**options), processes, lambda done: None)  # type: ignore[arg-type]
    return out


def all_documents(folder: Path) -> list[bytes]:
    """Every document of both splits, as bytes of a byte corpus."""
    manifest = read_manifest(folder)
    found = []
    for part in (manifest.train, manifest.validation):
        split = ShardedSplit(folder, part, manifest.dtype)
        ranges = [split.document(number) for number in range(split.num_documents)]
        found += [split.read(start, end - start).tobytes() for start, end in ranges]
    return found


def command(monkeypatch: pytest.MonkeyPatch, *words: object) -> int:
    monkeypatch.setattr(sys, "argv", ["muloco-data", *map(str, words)])
    try:
        main()
    except SystemExit as ending:
        return int(ending.code or 0)
    return 0


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
    out = prepared(source, tmp_path / "out", by_file=kind == "folder", shard_bytes=5000)
    assert len(read_manifest(out).train.shards) > 1 or kind.endswith(("gz", "zst"))
    ending = b"\n\n" if kind == "txt" else b""
    assert sorted(all_documents(out)) == sorted(text.encode() + ending for text in contents)
    assert not [path for path in out.iterdir() if path.name.startswith(".") or path.name in ("parts", "plan.json")]


@given(st.lists(st.sampled_from(["a", "bb\ncc", "\n", "ddd\n\n\neee", "é"]), max_size=30), st.integers(1, 12))
@settings(max_examples=60, deadline=None)
def test_pieces_of_a_text_file_hold_each_paragraph_once(parts: list[str], unit_bytes: int) -> None:
    content = "\n\n".join(parts).encode()
    path = Path("/dev/shm" if os.path.isdir("/dev/shm") else "/tmp") / f"paragraphs-{os.getpid()}.txt"
    path.write_bytes(content)
    try:
        file = InputFile("p.txt", str(path), len(content), "text")

        def found(size: int) -> list[bytes]:
            documents: list[Document] = []
            for unit in plan_units([file], size, by_file=False):
                for piece in unit:
                    documents += documents_of(piece, "text", by_file=False)
            return [document.content for document in documents if document.content]

        whole = [p.strip("\n").encode() for p in content.decode().split("\n\n") if p.strip()]
        assert found(unit_bytes) == found(10**6) == [paragraph + b"\n\n" for paragraph in whole]
    finally:
        path.unlink()


def test_processes_and_shard_size_do_not_change_the_tokens(tmp_path: Path) -> None:
    source = write_jsonl(tmp_path / "input.jsonl", texts(400))
    one, two = prepared(source, tmp_path / "one", shard_bytes=4000), tmp_path / "two"
    prepared(source, two, processes=2, shard_bytes=4000)
    assert (one / "manifest.json").read_text() == (two / "manifest.json").read_text()
    large = prepared(source, tmp_path / "large")
    assert all_documents(large) == all_documents(one)


def test_a_sharded_split_reads_as_one_in_memory(tmp_path: Path) -> None:
    out = prepared(write_jsonl(tmp_path / "input.jsonl", texts(300)), tmp_path / "out", shard_bytes=3000)
    manifest = read_manifest(out)
    split = ShardedSplit(out, manifest.train, manifest.dtype)
    starts = np.array([split.document(number)[0] for number in range(split.num_documents)])
    loaded = LoadedSplit(split.read(0, split.num_tokens), starts)
    places = np.random.default_rng(0).integers(0, split.num_tokens - 600, 200)
    for length in (1, 64, 599):
        split.will_need(places, length)
        for found, expected in zip(split.gather(places, length), loaded.gather(places, length), strict=True):
            assert np.array_equal(found, expected)


def test_a_preparation_killed_at_any_moment_goes_on(tmp_path: Path) -> None:
    source = write_jsonl(tmp_path / "input.jsonl", texts(3000))
    whole = prepared(source, tmp_path / "whole", shard_bytes=20_000)
    code = (
        "import sys; from pathlib import Path; from muloco_runner.shards.inputs import find_files; "
        "from muloco_runner.shards.prepare import prepare; from muloco_runner.shards.unit import Options; "
        "prepare(find_files([Path(sys.argv[1])], None), Path(sys.argv[2]), Options(shard_bytes=20_000), 1, print)"
    )
    generator, kills = random.Random(0), 0
    cut = tmp_path / "cut"
    for _ in range(8):
        process = subprocess.Popen([sys.executable, "-c", code, str(source), str(cut)], stdout=subprocess.DEVNULL)
        deadline, wanted = time.monotonic() + 60, generator.randrange(1, 5)
        before = len(list(cut.glob("parts/*.json")))
        while process.poll() is None and time.monotonic() < deadline:
            if len(list(cut.glob("parts/*.json"))) >= before + wanted:
                process.kill()
        kills += process.wait() != 0
        if (cut / "manifest.json").exists():
            break
    assert kills >= 2
    prepared(source, cut, shard_bytes=20_000)
    names = sorted(path.name for path in whole.iterdir())
    assert sorted(path.name for path in cut.iterdir()) == names
    for name in names:
        assert (cut / name).read_bytes() == (whole / name).read_bytes(), name


def test_copies_of_a_document_fall_on_the_same_side_and_validation_is_a_mixture(tmp_path: Path) -> None:
    contents = [*texts(200), *texts(200), *(f"late {number}" for number in range(200))]
    out = prepared(write_jsonl(tmp_path / "input.jsonl", contents), tmp_path / "out", validation_fraction=0.3)
    manifest = read_manifest(out)
    train, validation = (ShardedSplit(out, part, manifest.dtype) for part in (manifest.train, manifest.validation))
    sides = [
        {split.read(*(start, end - start)).tobytes() for start, end in map(split.document, range(split.num_documents))}
        for split in (train, validation)
    ]
    assert not sides[0] & sides[1]
    first = [validation.document(number) for number in range(30)]
    late = [validation.read(start, end - start).tobytes().startswith(b"late") for start, end in first]
    assert 0 < sum(late) < 30


@pytest.fixture(scope="module")
def tokenizer_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A byte-level BPE of 290 tokens with an end-of-text token, trained on the words above."""
    library = pytest.importorskip("tokenizers")
    tokenizer = library.Tokenizer(library.models.BPE())
    tokenizer.pre_tokenizer = library.pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = library.decoders.ByteLevel()
    alphabet = library.pre_tokenizers.ByteLevel.alphabet()
    trainer = library.trainers.BpeTrainer(
        vocab_size=290, special_tokens=["<|endoftext|>"], initial_alphabet=alphabet, show_progress=False
    )
    tokenizer.train_from_iterator(texts(200, seed=9), trainer)
    tokenizer.enable_truncation(8)
    tokenizer.enable_padding(length=8)
    file = tmp_path_factory.mktemp("tokenizer") / "tokenizer.json"
    tokenizer.save(str(file))
    return file


def test_a_tokenizer_keeps_the_text_and_ends_each_document(
    tokenizer_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    contents = texts(300)
    monkeypatch.setattr("muloco_runner.shards.tokenizer._LONGEST_PIECE", 100)
    source, out = write_jsonl(tmp_path / "input.jsonl", contents), tmp_path / "out"
    assert command(monkeypatch, "prepare", source, "--out", out, "--tokenizer", tokenizer_file) == 0
    manifest = read_manifest(out)
    assert (manifest.vocab_size, manifest.dtype) == (290, "uint16")
    assert manifest.tokenizer.end_of_document == "<|endoftext|>"
    library = pytest.importorskip("tokenizers")
    tokenizer = library.Tokenizer.from_file(str(out / "tokenizer.json"))
    found = []
    for part in (manifest.train, manifest.validation):
        split = ShardedSplit(out, part, manifest.dtype)
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
        (b'{"text": "ok"}\n', ["--validation-fraction", "1.5"], "between 0 and 1"),
        (b'{"text": "ok"}\n', ["--processes", "0"], "at least 1"),
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
            prepare(find_files([source], None), out, Options(), 1, lambda done: None)
        refused.append(str(error.value))

    prepare(find_files([source], None), out, Options(), 1, again)
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
    data = DataConfig("shards", str(tmp_path / "cut"))
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


def test_a_run_trains_on_shards_and_refuses_others_and_small_vocabularies(
    tmp_path: Path,
    tokenizer_file: Path,
    tiny_run: Callable[..., RunConfig],
    new_folder: Callable[..., RunFolder],
    execution: ExecutionConfig,
    capsys: pytest.CaptureFixture[str],
) -> None:
    source = write_jsonl(tmp_path / "input.jsonl", texts(300))
    out = prepared(source, tmp_path / "out", shard_bytes=4000, validation_fraction=0.2)
    run = tiny_run("diloco", "muon", num_workers=2, data=DataConfig("shards", str(out), validation_tokens=512))
    folder = new_folder(run)
    assert run_job(folder, execution) is ExitCode.FINISHED
    header, result = folder.read_header(), folder.read_result()
    assert header is not None
    assert result is not None
    assert header.corpus_hash == read_manifest(out).content_hash
    assert header.baselines["bigram"] < header.baselines["unigram"]
    # Workers share the one stream: nothing is seen twice in an epoch.
    data = TrainingData(load_corpus(run.data), run, torch.device("cpu"))
    steps = data.num_sequences // run.global_batch_sequences
    numbers = np.concatenate(
        [data._starts(step, worker, replica, 2) for step in range(steps) for worker in (0, 1) for replica in (0, 1)]
    )
    assert len(set(numbers.tolist())) == len(numbers)
    # A larger vocabulary than the model's.
    prepared(source, tmp_path / "bpe", tokenizer=str(tokenizer_file), validation_fraction=0.2)
    with pytest.raises(ConfigError, match=r"model.vocab_size=256 is smaller than the corpus's 290"):
        check_can_run(tiny_run(data=DataConfig("shards", str(tmp_path / "bpe"), validation_tokens=512)))
    with pytest.raises(ConfigError, match="290"):
        check_data(tiny_run(data=DataConfig("shards", str(tmp_path / "bpe"))))


def test_other_data_than_a_run_was_begun_on_is_one_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    out = prepared(write_jsonl(tmp_path / "input.jsonl", texts(300)), tmp_path / "out")
    words = ["model=29k", "model.sequence_length=32", "global_batch_tokens=256", "tokens_per_parameter=0.1"]
    words += ["data=shards", f"data.path={out}", "data.validation_tokens=256", f"root={tmp_path / 'root'}"]
    monkeypatch.setattr(sys, "argv", ["muloco-train", *words])
    endings = []
    for seed in (0, 1):
        with pytest.raises(SystemExit) as ending:
            train_command()
        endings.append(ending.value.code)
        shutil.rmtree(out)
        prepared(write_jsonl(tmp_path / "input.jsonl", texts(300, seed=seed + 1)), out)
        _load.cache_clear()
    assert endings == [0, 2]
    message = capsys.readouterr().err
    assert len(message.splitlines()) == 1, message
    assert "was begun on data" in message


def test_numbers_fixed_by_the_manifest_are_not_given_again() -> None:
    with pytest.raises(ConfigError, match="no effect"):
        DataConfig("shards", "somewhere", validation_fraction=0.2)


def test_the_trainer_needs_no_package_of_the_preparation() -> None:
    code = "import sys, muloco_runner.corpus; assert not {'pyarrow', 'tokenizers'} & set(sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True)
