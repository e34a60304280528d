"""Exported folders under transformers itself: the same logits, tokens and weights. `make test-extras` has it."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from forked import JOB, on_two_ranks
from prepared_text import texts

from muloco_runner.config import DataConfig, ExecutionConfig, ModelConfig, RunConfig
from muloco_runner.data.prepared.input_chunk import PrepareOptions
from muloco_runner.data.prepared.inputs import find_files
from muloco_runner.data.prepared.prepare import prepare
from muloco_runner.inference.evaluation import validation
from muloco_runner.inference.export import export_run
from muloco_runner.inference.load import LoadedRun, load_run
from muloco_runner.job import run_job
from muloco_runner.record import ExitCode, RunFolder

transformers = pytest.importorskip("transformers")
MakeRun = Callable[..., RunConfig]
MakeFolder = Callable[..., RunFolder]
SHAPE = {"width": 48, "num_layers": 3, "head_width": 16, "sequence_length": 32, "rope_theta": 1e4}
ALGORITHMS = [("data_parallel", "adamw"), ("data_parallel", "muon"), ("diloco", "adamw"), ("diloco", "muon")]


@pytest.fixture(scope="module")
def pieces(tokenizer_file: Path, tmp_path_factory: pytest.TempPathFactory) -> DataConfig:
    """Text prepared with a byte-level BPE."""
    folder = tmp_path_factory.mktemp("pieces")
    for number, text in enumerate(texts(60, seed=1)):
        (folder / f"{number}.txt").write_text(text)
    out = tmp_path_factory.mktemp("prepared") / "out"
    prepare(
        find_files([folder], None),
        out,
        PrepareOptions(str(tokenizer_file), validation_fraction=0.2),
        1,
        lambda done: None,
    )
    return DataConfig(source="prepared", path=str(out), validation_tokens=256)


def trained(run: RunConfig, folder: RunFolder) -> LoadedRun:
    assert run_job(folder, ExecutionConfig(device="cpu")) is ExitCode.FINISHED
    return load_run(folder.path)


def logits_of(model: Any, tokens_BT: torch.Tensor) -> torch.Tensor:
    with torch.no_grad():
        found: torch.Tensor = model(tokens_BT).logits
    return found.float()


@pytest.mark.parametrize("tokenizer", ["bytes", "pieces"])
@pytest.mark.parametrize(("method", "optimizer"), ALGORITHMS)
def test_transformers_computes_the_same_logits(
    method: str,
    optimizer: str,
    tokenizer: str,
    tiny_run: MakeRun,
    new_folder: MakeFolder,
    tmp_path: Path,
    request: pytest.FixtureRequest,
) -> None:
    """Of a checkpoint of whole models, and of one of shards (FSDP2) on two ranks."""
    changes: dict[str, Any] = {"model": ModelConfig(vocab_size=256, **SHAPE)}
    if tokenizer == "pieces":
        changes = {"model": ModelConfig(vocab_size=290, **SHAPE), "data": request.getfixturevalue("pieces")}
    run = tiny_run(method, optimizer, num_workers=2 if method == "diloco" else 1, **changes)
    whole = trained(run, new_folder(run))
    assert_same_under_transformers(whole, tmp_path / "hf")
    on_one_worker = tiny_run(method, optimizer, **changes)
    sharded = new_folder(on_one_worker, "sharded")
    on_two_ranks(JOB, [str(sharded.path), "--execution", json.dumps({"device": "cpu", "sharding": "full"})])
    loaded = load_run(sharded.path)
    assert loaded.result is not None
    assert loaded.result.num_ranks == 2
    assert validation(loaded)["validation_loss"] == pytest.approx(loaded.result.validation_loss, rel=1e-6)
    assert_same_under_transformers(loaded, tmp_path / "sharded_hf")


def assert_same_under_transformers(loaded: LoadedRun, out: Path) -> None:
    export_run(loaded, out)
    theirs, said = transformers.AutoModelForCausalLM.from_pretrained(out, output_loading_info=True)
    assert not any(said.values()), said
    assert type(theirs).__name__ == "Gemma3ForCausalLM"
    text = "The anchor moves: ünïcode\n\t and  spaces."
    their_tokenizer = transformers.AutoTokenizer.from_pretrained(out)
    tokens = loaded.encode(text)
    assert their_tokenizer(text)["input_ids"] == tokens
    assert their_tokenizer.decode(tokens) == loaded.decode(tokens) == text
    generator = torch.Generator().manual_seed(0)
    tokens_BT = torch.randint(loaded.config.model.vocab_size, (4, 32), generator=generator)
    with torch.no_grad():
        ours_BTV = loaded.model(tokens_BT)
    difference = float((logits_of(theirs, tokens_BT) - ours_BTV).abs().max())
    print(f"largest difference of logits: {difference:.2g}")
    assert difference < 1e-5
    theirs.save_pretrained(out / "again")
    assert (out / "again" / "config.json").exists()


def test_bfloat16_is_our_own_cast_and_files_may_be_cut(
    tiny_run: MakeRun, new_folder: MakeFolder, tmp_path: Path
) -> None:
    run = tiny_run(model=ModelConfig(vocab_size=256, **{**SHAPE, "width": 64}))
    loaded = trained(run, new_folder(run))
    export_run(loaded, tmp_path / "hf", "bfloat16", max_file_bytes=50_000)
    assert len(list((tmp_path / "hf").glob("model-*-of-*.safetensors"))) > 2
    theirs = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "hf", dtype=torch.bfloat16)
    state = theirs.state_dict()
    assert torch.equal(state["lm_head.weight"], loaded.model.head.weight.bfloat16())
    assert torch.equal(state["model.embed_tokens.weight"], (loaded.model.embedding.weight / 8).bfloat16())
