"""Mixtures of prepared folders: shares that hold at any moment, one order wherever a run is trained, and what is
refused."""

import dataclasses
import itertools
import json
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from prepared_text import command, prepared, texts, write_jsonl

from muloco_runner.compose import compose_app_config
from muloco_runner.config import ConfigError, DataConfig, ExecutionConfig, RunConfig
from muloco_runner.data.batches import TrainingData, validation_batch
from muloco_runner.data.check import check_data
from muloco_runner.data.corpus import load_corpus
from muloco_runner.data.epochs import describe_epochs, epochs_of_sweep
from muloco_runner.data.mixed_split import MixedSplit
from muloco_runner.job import run_job
from muloco_runner.record import ExitCode, RunFolder
from sweeps.training.sweep import read_sweep

CPU = torch.device("cpu")
LETTERS = "abc"


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Three texts, each of one letter, of different lengths."""
    base = tmp_path_factory.mktemp("mixed")
    found = {}
    for number, letter in enumerate(LETTERS):
        contents = [letter * 300 + str(n) for n in range(100 + 150 * number)]
        found[letter] = prepared(
            write_jsonl(base / f"{letter}.jsonl", contents), base / letter, validation_fraction=0.2
        )
    return found


def mixture(folders: dict[str, Path], **weights: float) -> DataConfig:
    return DataConfig("prepared", mixture={str(folders[k]): w for k, w in weights.items()}, validation_tokens=20 * 32)


def letters(tokens: Any) -> Counter[str]:
    """Sequences by the letter that most of them is."""
    rows = [bytes(row.tolist()).decode() for row in tokens.to(torch.uint8)]
    return Counter(max(LETTERS, key=row.count) for row in rows)


def test_each_part_has_its_share_at_any_moment(folders: dict[str, Path], tiny_run: Callable[..., RunConfig]) -> None:
    shares = {"a": 0.5, "b": 0.3, "c": 0.2}
    run = tiny_run(data=mixture(folders, **{k: 10 * v for k, v in shares.items()}))
    data = TrainingData(load_corpus(run.data), run, CPU)
    seen: Counter[str] = Counter()
    for step in range(200):
        seen += letters(data.worker_batch(step, 0).tokens_BT)
        for letter, share in shares.items():
            assert abs(seen[letter] - share * seen.total()) <= 2
    validation = letters(validation_batch(load_corpus(run.data), run, CPU).tokens_BT)
    assert {k: round(v / validation.total(), 1) for k, v in validation.items()} == shares


def test_no_sequence_comes_twice_in_an_epoch_of_its_part(
    folders: dict[str, Path], tiny_run: Callable[..., RunConfig]
) -> None:
    run = tiny_run(data=mixture(folders, a=1, c=3))
    data = TrainingData(load_corpus(run.data), run, CPU)
    starts = np.concatenate([data._starts(step, 0, 0, 1) for step in range(300)])
    own = starts[starts < data._first_token[1]]
    size = int(data._sizes[0])
    for epoch in range(len(own) // size):
        assert len(set(own[epoch * size : (epoch + 1) * size].tolist())) == size


def test_the_order_does_not_depend_on_where_a_run_is_trained(
    folders: dict[str, Path], tiny_run: Callable[..., RunConfig]
) -> None:
    values = mixture(folders, a=1, b=2)
    one, two = tiny_run(data=values), tiny_run("diloco", num_workers=2, data=values)
    whole, split = (TrainingData(load_corpus(values), run, CPU) for run in (one, two))
    for step in (0, 7, 3):  # any step by itself, in any order
        together = whole._starts(step, 0, 0, 1)
        apart = [split._starts(step, worker, replica, 2) for worker in (0, 1) for replica in (0, 1)]
        assert together.tolist() == np.concatenate(apart).tolist()


def test_a_mixture_has_one_order_however_it_is_written(
    folders: dict[str, Path], tiny_run: Callable[..., RunConfig]
) -> None:
    shares = {"a": 0.1, "b": 0.7, "c": 0.2}
    written = [
        {letter: scale * shares[letter] for letter in order}
        for order in itertools.permutations(LETTERS)
        for scale in (1, 3, 10)
    ]
    orders = []
    for weights in written:
        run = tiny_run(data=mixture(folders, **weights))
        data = TrainingData(load_corpus(run.data), run, CPU)
        orders.append(np.concatenate([data._starts(step, 0, 0, 1) for step in range(20)]).tolist())
    assert all(order == orders[0] for order in orders)


def test_a_mixture_reads_as_its_parts_do(folders: dict[str, Path]) -> None:
    split = load_corpus(mixture(folders, a=1, b=1, c=1)).train
    assert isinstance(split, MixedSplit)
    whole = split.read(0, split.num_tokens)
    assert whole.tolist() == [token for part in split.parts for token in part.read(0, part.num_tokens)]
    starts = np.array([5, split.first_token[1] + 3, split.first_token[2], 40])
    tokens, documents = split.gather(starts, 64)
    split.will_need(starts, 64)
    assert [row.tolist() for row in tokens] == [whole[start : start + 65].tolist() for start in starts]
    assert documents.shape == (4, 64)


def test_a_mixture_is_named_by_contents_and_shares(
    folders: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    for letter in "ab":
        (tmp_path / letter).symlink_to(folders[letter])

    def run_id(value: str) -> str:
        return compose_app_config(["data=prepared", f"data.mixture={value}", "root=/nowhere"]).run.run_id

    a, b = folders["a"], folders["b"]
    same = [f"{{{a}: 1, {b}: 3}}", f"{{{b}: 0.75, {a}: 0.25}}", "{a: 25, ./b: 75}"]
    assert len({run_id(value) for value in same}) == 1
    assert run_id("{a: 1, b: 2}") != run_id(same[0])
    (swept,) = read_sweep(["data=prepared", "data.mixture={a: 1, b: 3}", "root=/nowhere"]).runs
    assert swept.run_id == run_id(same[0])
    assert RunConfig.from_dict(json.loads(json.dumps(swept.to_dict()))).run_id == swept.run_id


def test_a_run_trains_on_a_mixture(
    folders: dict[str, Path],
    tiny_run: Callable[..., RunConfig],
    new_folder: Callable[..., RunFolder],
    execution: ExecutionConfig,
    capsys: pytest.CaptureFixture[str],
) -> None:
    run = tiny_run(data=mixture(folders, a=1, b=1))
    folder = new_folder(run)
    assert run_job(folder, execution) is ExitCode.FINISHED
    result = folder.read_result()
    assert result is not None
    assert result.corpus_hash == load_corpus(run.data).content_hash
    # a is the smaller part, and half of the sequences: it is the first to be seen twice.
    tokens = 2 * load_corpus(DataConfig("prepared", str(folders["a"]))).train.num_tokens
    assert f"{tokens:,} training tokens" in describe_epochs(run)
    assert describe_epochs(run) in capsys.readouterr().out


@pytest.mark.parametrize("weights", [{"a": 1}, {"a": 1, "b": 3}], ids=str)
def test_a_run_says_how_little_it_is_evaluated_on(
    weights: dict[str, float],
    folders: dict[str, Path],
    tiny_run: Callable[..., RunConfig],
    new_folder: Callable[..., RunFolder],
    execution: ExecutionConfig,
    capsys: pytest.CaptureFixture[str],
) -> None:
    data = dataclasses.replace(mixture(folders, **weights), validation_tokens=1_000_000)
    run, enough = tiny_run(data=data), tiny_run(data=mixture(folders, **weights))
    tokens = validation_batch(load_corpus(data), run, CPU).tokens_BT.numel()
    assert 0 < tokens < 1_000_000
    folder = new_folder(run)
    assert run_job(folder, execution) is ExitCode.FINISHED
    words = f"validation on {tokens:,} tokens: no more are held out for data.validation_tokens=1,000,000"
    assert words in capsys.readouterr().out
    result = folder.read_result()
    assert result is not None
    assert result.validation_tokens == tokens
    longer = dataclasses.replace(run, model=dataclasses.replace(run.model, sequence_length=256))
    (_, line) = epochs_of_sweep([run, longer])
    others = validation_batch(load_corpus(data), longer, CPU).tokens_BT.numel()
    taken = " to ".join(f"{each:,}" for each in sorted({tokens, others}))
    assert f"validation on {taken} tokens: no more" in line
    assert len(epochs_of_sweep([enough])) == 1


@pytest.mark.parametrize(
    ("values", "words"),
    [
        ({"mixture": {}}, "must be prepared folders and their weights"),
        ({"mixture": ["a", "b"]}, "must be prepared folders and their weights"),
        ({"mixture": {"a": "much"}}, "'much' is no weight"),
        ({"mixture": {"a": 0.0}}, "must be a positive number"),
        ({"mixture": {"a": 1.0}, "path": "b"}, "drop data.path"),
        ({"mixture": {"a": 1.0}, "source": "text"}, "use data=prepared"),
        ({}, "needs data.path"),
    ],
)
def test_a_mixture_that_means_nothing_is_one_line(values: dict[str, Any], words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        DataConfig(**{"source": "prepared", **values})


def test_parts_that_do_not_go_together_are_refused(
    folders: dict[str, Path],
    tokenizer_file: Path,
    tmp_path: Path,
    tiny_run: Callable[..., RunConfig],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    source = write_jsonl(tmp_path / "in.jsonl", texts(100))
    words = ["--tokenizer", tokenizer_file, "--validation-fraction", "0.2"]
    assert command(monkeypatch, "prepare", source, "--out", tmp_path / "bpe", *words) == 0
    others = {**folders, "bpe": tmp_path / "bpe", "none": tmp_path / "none"}
    for weights, expected in (
        ({"a": 1, "bpe": 1}, "another tokenizer"),
        ({"a": 1, "b": 1e-6}, "raise its weight"),
        ({"a": 1, "none": 1}, "no such folder"),
    ):
        with pytest.raises(ConfigError, match=expected):
            check_data(tiny_run(data=mixture(others, **weights)))
