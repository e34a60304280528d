"""A model and a text small enough that a whole run takes a fraction of a second."""

import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from prepared_text import texts

from muloco_runner.config import (
    AdamWConfig,
    DataConfig,
    DataParallelConfig,
    DiLoCoConfig,
    ExecutionConfig,
    MethodConfig,
    ModelConfig,
    MuonConfig,
    OuterSgdConfig,
    PrimalAveragingConfig,
    RunConfig,
)
from muloco_runner.record import RunFolder

INNER_OPTIMIZERS = {"adamw": AdamWConfig, "muon": MuonConfig}
MakeRun = Callable[..., RunConfig]


@pytest.fixture(scope="session")
def text_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Forty short documents in which letters follow one another by chance, but not evenly."""
    folder = tmp_path_factory.mktemp("text")
    generator = random.Random(0)
    words = ["gradient", "anchor", "worker", "outer", "step", "the", "a", "of", "moves"]
    for number in range(40):
        sentences = (" ".join(generator.choices(words, k=9)) + ".\n" for _ in range(12))
        (folder / f"document-{number:02d}.txt").write_text("".join(sentences))
    return folder


@pytest.fixture(scope="session")
def tiny_run(text_dir: Path) -> MakeRun:
    """`tiny_run("diloco", "muon", num_workers=2, ...)`: further names are fields of `RunConfig`."""

    def make(method: str = "data_parallel", optimizer: str = "adamw", **changes: Any) -> RunConfig:
        sync_interval = changes.pop("sync_interval", 5)
        num_workers = changes.pop("num_workers", 1)
        outer = changes.pop("outer_optimizer", OuterSgdConfig())
        composed = {name: changes.pop(name) for name in ("compression", "streaming") if name in changes}
        over_workers: dict[str, Any] = {"num_workers": num_workers, "sync_interval": sync_interval, **composed}
        methods: dict[str, Callable[[], MethodConfig]] = {
            "data_parallel": DataParallelConfig,
            "diloco": lambda: DiLoCoConfig(outer_optimizer=outer, **over_workers),
            "gpa": lambda: PrimalAveragingConfig(**over_workers),
        }
        tiny = ModelConfig(
            width=16, num_layers=2, head_width=8, vocab_size=256, sequence_length=32, ffn_ratio=2.75, rope_theta=1e4
        )
        model = changes.pop("model", tiny)
        values: dict[str, Any] = {
            "model": model,
            "data": DataConfig(source="text", path=str(text_dir), validation_tokens=512, validation_fraction=0.2),
            "method": methods[method](),
            "inner_optimizer": INNER_OPTIMIZERS[optimizer](weight_decay=0.1, weight_decay_rule="constant"),
            "global_batch_tokens": 256,
        }
        values.update(changes)
        num_steps = values.pop("num_steps", 23)
        values["tokens_per_parameter"] = num_steps * values["global_batch_tokens"] / model.num_params
        run = RunConfig(**values)
        assert run.num_steps == num_steps
        return run

    return make


@pytest.fixture
def execution() -> ExecutionConfig:
    return ExecutionConfig(device="cpu", log_interval_steps=1)


@pytest.fixture
def new_folder(tmp_path: Path) -> Callable[..., RunFolder]:
    """`new_folder(run, "first")`: a prepared run folder under its own root."""

    def make(run: RunConfig, root: str = "root") -> RunFolder:
        folder = RunFolder.of(tmp_path / root, run.run_id)
        folder.write_config(run.to_dict())
        return folder

    return make


@pytest.fixture(scope="session")
def tokenizer_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A byte-level BPE of 290 tokens with an end-of-text token, trained on the words of `prepared_text`."""
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
