"""Exported folders come back to the bit; a run that starts from weights is named by them."""

import json
import os
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from forked import JOB, on_two_ranks

from muloco_runner.compose import compose_app_config, with_foreign_models
from muloco_runner.config import ConfigError, ExecutionConfig, ModelConfig, RunConfig
from muloco_runner.data.corpus import load_corpus
from muloco_runner.distributed.communicator import Communicator
from muloco_runner.distributed.topology import Topology
from muloco_runner.inference.command import main
from muloco_runner.inference.export import export_run
from muloco_runner.inference.load import load_run
from muloco_runner.job import run_job
from muloco_runner.model.foreign_config import foreign_config, read_model_config
from muloco_runner.model.huggingface import read_weights, weight_files
from muloco_runner.model.transformer import Transformer, build_model, empty_model
from muloco_runner.optimizers import build_inner_optimizer
from muloco_runner.record import ExitCode, RunFolder
from muloco_runner.training import replicas
from muloco_runner.training.loop import Trainer
from muloco_runner.training.session import Session
from muloco_runner.warm_start import named_by_weights, shapes_by_name
from sweeps.training.sweep import read_sweep

safetensors = pytest.importorskip("safetensors.torch")
MakeRun = Callable[..., RunConfig]
MakeFolder = Callable[..., RunFolder]
CPU = ExecutionConfig(device="cpu", log_interval_steps=1)
ALGORITHMS = [("data_parallel", "adamw"), ("data_parallel", "muon"), ("diloco", "adamw"), ("diloco", "muon")]


@pytest.fixture
def parent(tiny_run: MakeRun, new_folder: MakeFolder) -> RunFolder:
    run = tiny_run("diloco", "muon", num_workers=2)
    folder = new_folder(run, "parents")
    assert run_job(folder, CPU) is ExitCode.FINISHED
    return folder


def first_model(run: RunConfig, folder: RunFolder) -> Transformer:
    """The model that a run's first step begins with."""
    session = Session(
        folder, CPU, Communicator(Topology(run.num_workers)), torch.device("cpu"), should_stop=lambda: True
    )
    trainer = Trainer(run, load_corpus(run.data), session)
    if trainer._no_first_weights is not None:
        raise trainer._no_first_weights
    return trainer.state.workers[-1].model


def assert_equal(found: Transformer, expected: Transformer) -> None:
    for (name, one), (_, other) in zip(found.named_parameters(), expected.named_parameters(), strict=True):
        assert torch.equal(one, other), name


@pytest.mark.parametrize(("method", "optimizer"), ALGORITHMS)
def test_an_exported_model_comes_back_to_the_bit(
    method: str, optimizer: str, tiny_run: MakeRun, new_folder: MakeFolder, tmp_path: Path
) -> None:
    # 48 is no power of four: its square root rounds.
    model = ModelConfig(width=48, num_layers=2, head_width=16, vocab_size=256, sequence_length=32, rope_theta=1e4)
    run = tiny_run(method, optimizer, num_workers=2 if method == "diloco" else 1, model=model)
    folder = new_folder(run)
    assert run_job(folder, CPU) is ExitCode.FINISHED
    loaded = load_run(folder.path)
    with torch.no_grad():
        loaded.model.norm.gain[:3] = torch.tensor([1e-3, -0.3, 7.7])
    export_run(loaded, tmp_path / "hf", max_file_bytes=30_000)
    assert len(weight_files(tmp_path / "hf")) > 2
    assert (tmp_path / "hf" / "muloco" / "exact.safetensors").exists()
    assert read_model_config(tmp_path / "hf") == model
    weight = read_weights(tmp_path / "hf")
    for name, parameter in loaded.model.named_parameters():
        assert torch.equal(weight(name), parameter), name


def test_shards_and_whole_models_are_exported_alike(tiny_run: MakeRun, new_folder: MakeFolder, tmp_path: Path) -> None:
    run = tiny_run("diloco", "muon")
    whole, sharded = new_folder(run), new_folder(run, "sharded")
    assert run_job(whole, CPU) is ExitCode.FINISHED
    on_two_ranks(JOB, [str(sharded.path), "--execution", json.dumps({"device": "cpu", "sharding": "full"})])
    weights = []
    for folder, out in ((whole, tmp_path / "whole_hf"), (sharded, tmp_path / "sharded_hf")):
        export_run(load_run(folder.path), out)
        weights.append(read_weights(out))
    for name, parameter in load_run(sharded.path).model.named_parameters():
        assert torch.equal(weights[1](name), parameter), name
        # Two ranks sum gradients in another order.
        torch.testing.assert_close(weights[1](name), weights[0](name), rtol=0, atol=1e-4)


def test_a_folder_that_others_have_changed_is_read_as_it_is(parent: RunFolder, tmp_path: Path) -> None:
    export_run(load_run(parent.path), tmp_path / "hf")
    (file,) = weight_files(tmp_path / "hf")
    state = safetensors.load_file(file)
    state["model.embed_tokens.weight"] = torch.full_like(state["model.embed_tokens.weight"], 0.5)
    safetensors.save_file(state, file)
    found = read_weights(tmp_path / "hf")("embedding.weight")
    assert torch.equal(found, torch.full_like(found, 0.5 * 16**0.5))


@pytest.mark.parametrize("where", ["run", "checkpoint", "folder"])
def test_every_worker_starts_from_the_weights(
    where: str, parent: RunFolder, tiny_run: MakeRun, new_folder: MakeFolder, tmp_path: Path
) -> None:
    source = {"run": parent.path, "checkpoint": parent.checkpoint_at(23), "folder": tmp_path / "hf"}[where]
    if where == "folder":
        export_run(load_run(parent.path), source)
    (run,) = named_by_weights([tiny_run("diloco", num_workers=2, init_from=str(source), init_exclude=["head.*"])])
    found, expected = first_model(run, new_folder(run)), load_run(parent.path).model
    fresh = build_model(run.model, run.seed, torch.device("cpu"))
    with torch.no_grad():
        expected.head.weight.copy_(fresh.head.weight)
    assert_equal(found, expected)


def test_optimizers_are_built_on_the_weights_they_start_from(
    parent: RunFolder, tiny_run: MakeRun, new_folder: MakeFolder, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[torch.Tensor] = []

    def build(model: Transformer, *given: Any) -> torch.optim.Optimizer:
        seen.append(model.norm.gain.detach().clone())
        return build_inner_optimizer(model, *given)

    monkeypatch.setattr(replicas, "build_inner_optimizer", build)
    run = tiny_run(init_from=str(parent.path), seed=1)
    trained = first_model(run, new_folder(run, "children")).norm.gain
    assert not torch.equal(trained, torch.ones_like(trained))
    assert [torch.equal(gain, trained) for gain in seen] == [True]


def test_a_run_is_named_by_its_weights_not_by_their_path(
    parent: RunFolder, tiny_run: MakeRun, new_folder: MakeFolder, tmp_path: Path
) -> None:
    plain = tiny_run()
    (warm,) = named_by_weights([tiny_run(init_from=str(parent.path))])
    os.symlink(parent.path, tmp_path / "elsewhere")
    (moved,) = named_by_weights([tiny_run(init_from=str(tmp_path / "elsewhere"))])
    assert plain.run_id != warm.run_id == moved.run_id
    assert "init_from" not in plain.to_dict()
    assert RunConfig.from_dict(warm.to_dict()) == warm
    (other,) = named_by_weights([tiny_run(init_from=str(parent.path), init_exclude=["head.*"])])
    assert other.run_id != warm.run_id
    assert run_job(new_folder(warm), CPU) is ExitCode.FINISHED
    with pytest.raises(ConfigError, match=r"holds weights .* now, this run starts from 0000"):
        first_model(replace(warm, init_hash="0" * 16), new_folder(plain))


def test_a_begun_run_goes_on_without_the_weights(
    parent: RunFolder, tiny_run: MakeRun, new_folder: MakeFolder, capfd: pytest.CaptureFixture[str]
) -> None:
    (run,) = named_by_weights([tiny_run(init_from=str(parent.path))])
    begun, new = new_folder(run, "begun"), new_folder(run, "new")
    assert run_job(begun, CPU) is ExitCode.FINISHED
    begun.result_file.unlink()
    parent.path.rename(parent.path.with_name("away"))
    assert run_job(begun, CPU, 2) is ExitCode.FINISHED
    assert run_job(new, CPU) is ExitCode.CONFIG_CANNOT_RUN
    assert "neither a run's folder nor a Hugging Face folder" in capfd.readouterr().err


def test_weights_that_do_not_fit_are_refused(
    parent: RunFolder, tiny_run: MakeRun, new_folder: MakeFolder, tmp_path: Path
) -> None:
    wide = ModelConfig(width=32, num_layers=2, head_width=8, vocab_size=256, sequence_length=32)
    source = str(parent.path)
    with pytest.raises(ConfigError, match=r"embedding.weight is \(256, 16\) there and \(256, 32\) here"):
        first_model(run := tiny_run(model=wide, init_from=source), new_folder(run))
    with pytest.raises(ConfigError, match="'tail' matches no parameter"):
        first_model(run := tiny_run(init_from=source, init_exclude=["tail"]), new_folder(run))
    with pytest.raises(ConfigError, match="no effect without init_from"):
        tiny_run(init_exclude=["head.*"])
    with pytest.raises(ConfigError, match="neither a run's folder nor"):
        named_by_weights([tiny_run(init_from=str(tmp_path))])


def test_weights_that_compute_something_else_are_refused(parent: RunFolder, tiny_run: MakeRun) -> None:
    model, source = RunConfig.from_dict(parent.read_config()).model, str(parent.path)
    assert isinstance(model, ModelConfig)

    def named(exclude: list[str], **changes: Any) -> RunConfig:
        run = tiny_run(model=replace(model, **changes), init_from=source, init_exclude=exclude)
        return named_by_weights([run])[0]

    norms = ["*.q_norm.gain", "*.k_norm.gain"]
    others: list[tuple[list[str], str, float]] = [([], "rope_theta", 100.0), ([], "norm_eps", 1e-5)]
    for exclude, key, value in [*others, (norms, "head_width", 4), ([], "num_layers", 1)]:
        with pytest.raises(ConfigError, match=rf"or add model.{key} to init_exclude"):
            named(exclude, **{key: value})
        assert named([*exclude, f"model.{key}"], **{key: value}).init_hash is not None
    with pytest.raises(ConfigError, match=r"embedding.weight is \(256, 16\) there and \(256, 32\) here"):
        named([], width=32)
    with pytest.raises(ConfigError, match=r"holds no blocks\.2"):
        named([], num_layers=3)
    assert named(["blocks.2.*"], num_layers=3).init_hash is not None


def test_shapes_are_told_without_building_the_model() -> None:
    model = ModelConfig(width=48, num_layers=2, head_width=16, vocab_size=256, ffn_ratio=2.75)
    built = {name: tuple(parameter.shape) for name, parameter in empty_model(model).named_parameters()}
    assert shapes_by_name(model) == built


SCALED = {"rope_type": "linear", "factor": 8.0}


@pytest.mark.parametrize(
    "changes",
    [
        {"rope_parameters": None, "rope_scaling": SCALED},
        {"rope_parameters": {**SCALED, "rope_theta": 1e4}},
        {"rope_parameters": {"rope_type": "default", "rope_theta": 1e4, "partial_rotary_factor": 0.5}},
        {"rope_theta": 100.0},
        {"use_bidirectional_attention": True},
        {"query_pre_attn_scalar": None},
        {"hidden_activation": None},
        {"num_experts": 4},
        {"quantization_config": {"bits": 4}},
    ],
    ids=str,
)
def test_models_that_compute_something_else_are_refused(changes: dict[str, Any], tmp_path: Path) -> None:
    values = foreign_config(ModelConfig(width=48, num_layers=2, head_width=16, vocab_size=256, rope_theta=1e4))
    (tmp_path / "config.json").write_text(json.dumps({**values, **changes}))
    with pytest.raises(ConfigError, match=rf"config.json: .*{'said twice' if 'rope_theta' in changes else 'only a'}"):
        read_model_config(tmp_path)


@pytest.mark.parametrize("plain", ["neither", "flat", "legacy"])
def test_what_a_config_does_not_say_is_their_default(plain: str, tmp_path: Path) -> None:
    model = ModelConfig(width=48, num_layers=2, head_width=16, vocab_size=256, rope_theta=1e4)
    values = {**foreign_config(model), "transformers_version": "5.0.0", "use_bidirectional_attention": None}
    for key in ("attention_bias", "attn_logit_softcapping", "final_logit_softcapping", "rms_norm_eps"):
        del values[key]
    ropes = {"neither": None, "flat": {"rope_type": "default", "rope_theta": 1e4}, "legacy": None}
    values |= {"rope_parameters": ropes[plain], "rope_scaling": {"type": "default"} if plain == "legacy" else None}
    (tmp_path / "config.json").write_text(json.dumps(values))
    assert read_model_config(tmp_path) == model


def test_folders_may_have_spaces_and_quotes(tmp_path: Path) -> None:
    folder = tmp_path / "a b" / "it's (here), {so}"
    folder.mkdir(parents=True)
    values = foreign_config(ModelConfig(width=48, num_layers=2, head_width=16, vocab_size=256))
    (folder / "config.json").write_text(json.dumps(values))
    safetensors.save_file({"norm.weight": torch.zeros(1)}, folder / "model.safetensors")
    for word in (f"model=hf:{folder}", f"init_from={folder}"):
        assert compose_app_config([word]).init_from == str(folder)
    runs = read_sweep([f"model=hf:{folder}", "global_batch_tokens=2048", f"root={tmp_path}"]).runs
    assert [run.init_from for run in runs] == [str(folder)]


def test_one_model_beside_a_hugging_face_folder(tmp_path: Path) -> None:
    for words in (["model=hf:a", "model=42k"], ["+model=42k", "model=hf:a"], ["model=hf:a", "model=hf:a"]):
        with pytest.raises(ConfigError, match="one model at a time"):
            with_foreign_models(words)
        with pytest.raises(ConfigError, match="one model at a time"):
            read_sweep([*words, f"root={tmp_path}"])


def test_a_hugging_face_folder_is_a_model_on_the_command_line(parent: RunFolder, tmp_path: Path) -> None:
    export_run(load_run(parent.path), tmp_path / "hf")
    run = compose_app_config([f"model=hf:{tmp_path / 'hf'}", "global_batch_tokens=256"]).run
    assert run.model == RunConfig.from_dict(parent.read_config()).model
    assert run.init_from == str(tmp_path / "hf")
    assert run.init_hash is not None
    config = tmp_path / "hf" / "config.json"
    config.write_text(json.dumps({**json.loads(config.read_text()), "hidden_activation": "gelu_pytorch_tanh"}))
    with pytest.raises(ConfigError, match="hidden_activation is 'gelu_pytorch_tanh'"):
        compose_app_config([f"model=hf:{tmp_path / 'hf'}"])


def test_the_command_exports_once(
    parent: RunFolder, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def say() -> tuple[object, str]:
        monkeypatch.setattr(sys, "argv", ["muloco-model", "export", str(parent.path), "--out", str(tmp_path / "hf")])
        with pytest.raises(SystemExit) as ended:
            main()
        return ended.value.code, "".join(capsys.readouterr())

    assert say()[0] == 0
    names = {path.name for path in (tmp_path / "hf").iterdir()}
    assert names >= {"config.json", "model.safetensors", "tokenizer.json", "generation_config.json", "README.md"}
    assert "nats per token" in (tmp_path / "hf" / "README.md").read_text()
    code, said = say()
    assert code == 2
    assert "there is something already" in said
    assert not list(tmp_path.glob(".hf-*"))


def test_naming_runs_by_weights_needs_no_torch() -> None:
    check = (
        "import sys, muloco_runner.warm_start, muloco_runner.model.foreign_config; assert 'torch' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", check], check=True)
