"""Named validation sets: losses beside the main one's, which they do not move; their names, and what is refused."""

import dataclasses
import math
from collections.abc import Callable
from pathlib import Path

import pytest
from prepared_text import prepared, texts, write_jsonl

from muloco_runner.config import ConfigError, DataConfig, ExecutionConfig, ModelConfig, RunConfig
from muloco_runner.data.epochs import describe_epochs
from muloco_runner.data.identity import named_by_content
from muloco_runner.data.validation_sets import check_validation_sets
from muloco_runner.inference.evaluation import validation
from muloco_runner.inference.load import load_run
from muloco_runner.job import run_job
from muloco_runner.record import ExitCode, RunFolder
from muloco_runner.train_run import last_line
from sweeps.training.best import best_results

MakeRun = Callable[..., RunConfig]
MakeFolder = Callable[..., RunFolder]
SHAPE = {"width": 16, "num_layers": 1, "head_width": 8, "sequence_length": 32, "rope_theta": 1e4}


@pytest.fixture(scope="module")
def sets(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """A prepared folder, and a folder of text."""
    base = tmp_path_factory.mktemp("sets")
    code = prepared(write_jsonl(base / "code.jsonl", texts(60, seed=3)), base / "code", validation_fraction=0.3)
    (base / "books").mkdir()
    for number, text in enumerate(texts(12, seed=4)):
        (base / "books" / f"{number}.txt").write_text(text)
    return {"code": str(code), "books": str(base / "books")}


def with_sets(run: RunConfig, sets: dict[str, str] | None) -> RunConfig:
    return dataclasses.replace(run, data=dataclasses.replace(run.data, validation=sets))


def test_each_set_has_a_loss_and_the_main_one_stays(
    sets: dict[str, str], tiny_run: MakeRun, new_folder: MakeFolder, tmp_path: Path
) -> None:
    plain = tiny_run("diloco", "muon", num_workers=2)
    (named,) = named_by_content([with_sets(plain, sets)], tmp_path)
    results = {}
    for run in (plain, named):
        folder = new_folder(run)
        assert run_job(folder, ExecutionConfig(device="cpu", evaluate_interval_steps=10)) is ExitCode.FINISHED
        results[run.run_id] = folder.read_result()
    before, after = results[plain.run_id], results[named.run_id]
    assert before is not None
    assert after is not None
    assert after.validation_loss == before.validation_loss
    assert before.named_validation is None
    assert before.bits_per_byte == pytest.approx(before.validation_loss / math.log(2))
    assert after.named_validation is not None
    assert list(after.named_validation) == ["books", "code"]
    found = {name: values["validation_loss"] for name, values in after.named_validation.items()}
    assert len({after.validation_loss, *found.values()}) == 3
    assert [step.named_validation_losses for step in folder.read_steps()][-1] == found
    assert [step.step for step in folder.read_steps() if step.named_validation_losses] == [10, 20, 23]
    assert f"bits per byte; books {found['books']:.4f}; code {found['code']:.4f}" in last_line(folder, after)
    assert f"books {found['books']:.4f}" in best_results([named], tmp_path / "root")[0]
    assert "books on" in describe_epochs(named)
    # As an evaluation after training computes them.
    assert validation(load_run(folder.path))["named"] == after.named_validation


def test_sets_name_a_run_by_content(sets: dict[str, str], tiny_run: MakeRun, tmp_path: Path) -> None:
    run = tiny_run()
    (first,) = named_by_content([with_sets(run, sets)], tmp_path)
    assert first.data.validation_hash is not None
    assert first.run_id != named_by_content([run], tmp_path)[0].run_id
    reordered = dict(reversed(sets.items()))
    assert named_by_content([with_sets(run, reordered)], tmp_path)[0].run_id == first.run_id
    moved = dict(sets, books=str(tmp_path / "moved"))
    Path(sets["books"]).rename(tmp_path / "moved")
    try:
        (second,) = named_by_content([with_sets(run, moved)], tmp_path)
        assert second.run_id == first.run_id
        folder = RunFolder.of(tmp_path, first.run_id)
        folder.write_config(first.to_dict())
        folder.write_config(second.to_dict())
        assert RunConfig.from_dict(folder.read_config()).data.validation == moved
        (tmp_path / "moved" / "0.txt").write_text("other text")
        with pytest.raises(ConfigError, match="this run is named by"):
            check_validation_sets(second)
        assert named_by_content([with_sets(run, moved)], tmp_path)[0].run_id != first.run_id
    finally:
        (tmp_path / "moved").rename(sets["books"])


def test_a_run_like_another_on_other_text_is_another(sets: dict[str, str], tiny_run: MakeRun, tmp_path: Path) -> None:
    (plain, run) = named_by_content([tiny_run(), with_sets(tiny_run(), sets)], tmp_path)
    assert named_by_content([plain.with_values({"data.validation": sets})], tmp_path) == [run]
    (fewer,) = named_by_content([run.with_values({"data.validation": {"books": sets["books"]}})], tmp_path)
    assert fewer.data.validation_hash not in (None, run.data.validation_hash)
    (other,) = named_by_content([plain.with_values({"data.path": sets["books"]})], tmp_path)
    assert other.data.content_hash not in (None, plain.data.content_hash)
    assert len({plain.run_id, run.run_id, fewer.run_id, other.run_id}) == 4
    with pytest.raises(ConfigError, match="has no such setting"):
        plain.with_values({"data.valid": sets})


@pytest.mark.parametrize(
    ("written", "refusal"),
    [
        ({}, "must be names and folders"),
        ("books", "must be names and folders"),
        ({"a/b": "x"}, "'a/b' is no name of a set"),
        ({"a": None}, "None is no path"),
        ({"a": "nowhere"}, "a: nowhere: no such file or folder"),
        ({"a": "TEXT"}, "hold the same files"),
        ({"a": "SMALL"}, "6 tokens in .*SMALL hold no sequence of model.sequence_length=32"),
    ],
)
def test_a_set_that_cannot_be_evaluated_is_refused(
    written: object, refusal: str, tiny_run: MakeRun, text_dir: Path, tmp_path: Path
) -> None:
    (tmp_path / "SMALL").write_text("text")
    if isinstance(written, dict) and written.get("a") in ("TEXT", "SMALL"):
        written = {"a": str(text_dir / "document-01.txt" if written["a"] == "TEXT" else tmp_path / "SMALL")}
    with pytest.raises(ConfigError, match=refusal):
        check_validation_sets(with_sets(tiny_run(), written))  # type: ignore[arg-type]


def test_a_set_has_the_tokens_of_the_training_data(
    sets: dict[str, str], tokenizer_file: Path, tiny_run: MakeRun, tmp_path: Path
) -> None:
    pieces = prepared(
        write_jsonl(tmp_path / "pieces.jsonl", texts(60)),
        tmp_path / "pieces",
        tokenizer=str(tokenizer_file),
        validation_fraction=0.3,
    )
    with pytest.raises(ConfigError, match=r"another tokenizer \(huggingface\) than the training data \(bytes\)"):
        check_validation_sets(with_sets(tiny_run(), {"a": str(pieces)}))
    on_pieces = tiny_run(data=DataConfig("prepared", str(pieces)), model=ModelConfig(vocab_size=290, **SHAPE))
    with pytest.raises(ConfigError, match="the training data has a tokenizer: make it with"):
        check_validation_sets(with_sets(on_pieces, {"a": sets["books"]}))
    assert check_validation_sets(with_sets(on_pieces, {"a": str(pieces)}))["a"].bytes_per_token > 1
