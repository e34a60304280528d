from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from muloco_runner.config import ConfigError, DataConfig, RunConfig
from muloco_runner.data.batches import TrainingData, permute, validation_batch
from muloco_runner.data.corpus import baselines, load_corpus

CPU = torch.device("cpu")


@given(st.integers(1, 3000), st.integers(0, 2**40))
def test_the_shuffle_is_a_permutation(size: int, key: int) -> None:
    places = np.arange(size, dtype=np.int64)
    assert np.array_equal(np.sort(permute(places, size, key)), places)


def test_shuffles_of_two_keys_differ_and_leave_little_in_place() -> None:
    places = np.arange(1000, dtype=np.int64)
    first, second = permute(places, 1000, 1), permute(places, 1000, 2)
    assert (first == second).sum() < 20
    assert (first == places).sum() < 20


@pytest.mark.parametrize("num_workers", [2, 4])
def test_workers_get_slices_of_the_one_global_batch(tiny_run: Callable[..., RunConfig], num_workers: int) -> None:
    whole_run, split_run = tiny_run(), tiny_run("diloco", num_workers=num_workers)
    corpus = load_corpus(whole_run.data)
    whole, split = TrainingData(corpus, whole_run, CPU), TrainingData(corpus, split_run, CPU)
    for step in (0, 7, 100):
        parts = [split.worker_batch(step, worker).tokens_BT for worker in range(num_workers)]
        assert torch.equal(torch.cat(parts), whole.worker_batch(step, 0).tokens_BT)


def test_an_epoch_shows_each_sequence_once_in_its_own_order(tiny_run: Callable[..., RunConfig]) -> None:
    run = tiny_run()
    data = TrainingData(load_corpus(run.data), run, CPU)
    first, second = (data.sequence_numbers(epoch * data.num_sequences, data.num_sequences) for epoch in (0, 1))
    assert sorted(first) == sorted(second) == list(range(data.num_sequences))
    assert not np.array_equal(first, second)


def test_targets_are_the_next_tokens_and_documents_are_told_apart(tiny_run: Callable[..., RunConfig]) -> None:
    run = tiny_run()
    run.data.validation_tokens = 1024
    corpus = load_corpus(run.data)
    batch = validation_batch(corpus, run, CPU)
    assert torch.equal(batch.tokens_BT[:, 1:], batch.targets_BT[:, :-1])
    assert batch.tokens_BT.numel() == run.data.validation_tokens
    starts = corpus.validation.document_starts
    assert batch.documents_BT.flatten()[starts[1]] == batch.documents_BT.flatten()[starts[1] - 1] + 1


def test_files_are_split_whole_and_alike_each_time(text_dir: Path) -> None:
    data = DataConfig(source="text", path=str(text_dir), validation_fraction=0.2)
    corpus = load_corpus(data)
    texts = {path.read_bytes() for path in text_dir.iterdir()}
    for split in (corpus.train, corpus.validation):
        ends = [*split.document_starts[1:], split.num_tokens]
        for start, end in zip(split.document_starts, ends, strict=True):
            texts.remove(split.tokens[start:end].tobytes())
    assert not texts


def test_the_hash_follows_the_content(tmp_path: Path) -> None:
    def write(folder: str, last: str) -> DataConfig:
        (tmp_path / folder).mkdir()
        for number in range(30):
            (tmp_path / folder / str(number)).write_text(f"text {number if number < 29 else last}")
        return DataConfig(source="text", path=str(tmp_path / folder), validation_fraction=0.3)

    hashes = [load_corpus(write(*names)).content_hash for names in (("a", "x"), ("b", "x"), ("c", "y"))]
    assert hashes[0] == hashes[1] != hashes[2]


def test_one_file_is_split_by_paragraph(tmp_path: Path) -> None:
    file = tmp_path / "book.txt"
    file.write_text("\n\n".join(f"Paragraph {number}." for number in range(50)))
    corpus = load_corpus(DataConfig(source="text", path=str(file), validation_fraction=0.2))
    assert len(corpus.train.document_starts) + len(corpus.validation.document_starts) == 50


def test_too_little_text_is_refused_in_one_line(tmp_path: Path) -> None:
    (tmp_path / "only.txt").write_text("one paragraph")
    with pytest.raises(ConfigError, match="leaves no document for"):
        load_corpus(DataConfig(source="text", path=str(tmp_path)))


def test_the_bigram_model_knows_more_than_the_unigram_model(text_dir: Path) -> None:
    losses = baselines(DataConfig(source="text", path=str(text_dir), validation_fraction=0.2))
    assert 0 < losses["bigram"] < losses["unigram"] < np.log(256)
