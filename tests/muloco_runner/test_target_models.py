"""Models from outside the package, named by `_target_`: trained as any other, or refused before anything is queued."""

import json
import os
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from forked import JOB, ForkedProcess
from target_labs import lab_in, resumed_to_the_bit

from analysis.runs import load_study
from muloco_runner.compose import compose_app_config
from muloco_runner.config import ConfigError, DiLoCoConfig, MuonConfig, OuterMuonConfig, RunConfig, TargetModelConfig
from muloco_runner.config.plain import to_plain
from muloco_runner.diloco.error_feedback import choose_codecs
from muloco_runner.diloco.streaming import split_by_layers
from muloco_runner.inference.load import load_run
from muloco_runner.memory import Placement, estimate_memory
from muloco_runner.model.target_model import build_target_model
from muloco_runner.optimizers import parameter_kinds
from muloco_runner.record import RunFolder
from muloco_runner.targets import check_targets, facts_of, make_importable, record_code
from muloco_runner.targets.answers import _try
from muloco_runner.targets.questions import Question
from sweeps.cli.filters import select
from sweeps.training import model_names
from sweeps.training.model_names import model_name
from sweeps.training.sweep import read_sweep

LAB = """
import random

import torch
from torch import nn


class Mixer(nn.Module):
    def __init__(self, vocab_size, width=16, depth=2, std=0.02):
        super().__init__()
        self.embed = nn.Embedding(vocab_size, width)
        self.layers = nn.ModuleList(nn.Linear(width, width) for _ in range(depth))
        self.out = nn.Linear(width, vocab_size, bias=False)

    def mix(self, x):
        return x + x.cumsum(1) / torch.arange(1, x.shape[1] + 1)[:, None]

    def hidden(self, tokens):
        x = self.embed(tokens)
        for layer in self.layers:
            x = x + torch.tanh(layer(self.mix(x)))
        return x

    def forward(self, tokens):
        return self.out(self.hidden(tokens))


class Tied(Mixer):
    def __init__(self, vocab_size, width=16):
        super().__init__(vocab_size, width)
        del self.out

    def forward(self, tokens):
        return self.hidden(tokens)


class Wide(Mixer):
    def forward(self, tokens):
        return super().forward(tokens)[..., 1:]


class Nan(Mixer):
    def __init__(self, vocab_size):
        super().__init__(vocab_size)
        nn.init.constant_(self.out.weight, float("nan"))


class Future(Mixer):
    def __init__(self, vocab_size):
        super().__init__(vocab_size)
        nn.init.zeros_(self.out.weight)  # so that nothing shows at the start

    def mix(self, x):
        return x + 0.1 * x.mean(1, keepdim=True)


class Idle(Mixer):
    def __init__(self, vocab_size):
        super().__init__(vocab_size)
        self.idle = nn.Linear(4, 4)


class Muted(Mixer):
    def __init__(self, vocab_size):
        super().__init__(vocab_size)
        self.muted = nn.Parameter(torch.ones(16))

    def hidden(self, tokens):
        return super().hidden(tokens) + 0 * self.muted


class Small(Mixer):
    def __init__(self):
        super().__init__(10)


class Dropped(Mixer):
    def hidden(self, tokens):
        return nn.functional.dropout(super().hidden(tokens), 0.1, self.training)


class Counts(Mixer):
    def __init__(self, vocab_size):
        super().__init__(vocab_size)
        self.register_buffer("calls", torch.zeros(()))

    def hidden(self, tokens):
        self.calls += self.training
        return super().hidden(tokens)


class Remembers(Mixer):
    scale = 1.0

    def forward(self, tokens):
        if torch.is_grad_enabled():
            self.scale *= 1.01
        return super().forward(tokens) * self.scale


class Half(Mixer):
    def __init__(self, vocab_size):
        super().__init__(vocab_size)
        self.thin = nn.Parameter(torch.ones(16, dtype=torch.bfloat16))


class Converted(Mixer):
    def __init__(self, vocab_size):
        super().__init__(vocab_size)
        self.to(torch.float64)


class Blind(Mixer):
    def hidden(self, tokens):
        return super().hidden(tokens * 0)


class Batch(Mixer):
    def hidden(self, tokens):
        x = super().hidden(tokens)
        return x + x.mean(0, keepdim=True)


class Loose(Mixer):
    def __init__(self, vocab_size):
        super().__init__(vocab_size)
        with torch.no_grad():
            self.out.weight.mul_(random.Random().random())


class NoModel:
    pass
"""
TINY = ["data=text", "data.validation_tokens=256", "global_batch_tokens=128", "tokens_per_parameter=0.12"]
SIZES = ["model.vocab_size=256", "model.sequence_length=32"]
MIXER = {"_target_": "mixer_lab.Mixer", "vocab_size": 64, "sequence_length": 32}


@pytest.fixture(scope="module")
def lab(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A folder of work: a package beside conf/."""
    mixer = "_target_: mixer_lab.Mixer\nvocab_size: 256\nsequence_length: 32\nblocks: layers\nwidth: 16\n"
    files = {"mixer_lab.py": LAB, "conf/model/mixer.yaml": mixer}
    with lab_in(tmp_path_factory.mktemp("lab"), "mixer_lab", files) as folder:
        yield folder


@pytest.fixture(scope="module", autouse=True)
def cache(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_CACHE_HOME", str(tmp_path_factory.mktemp("cache")))
        yield


@pytest.fixture
def importable(lab: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(lab))


def model_of(target: str = "mixer_lab.Mixer", **values: Any) -> TargetModelConfig:
    return TargetModelConfig(**{**MIXER, "_target_": target, **values})


def test_a_file_of_few_lines_is_a_whole_model(lab: Path) -> None:
    run = compose_app_config(["model=mixer"]).run
    model = run.model
    assert isinstance(model, TargetModelConfig)
    assert (model.arguments, model.label, model.num_layers) == ({"width": 16}, "Mixer", 2)
    layers = 2 * (16 * 16 + 16)
    assert run.num_params == 2 * 256 * 16 + layers
    assert run.flops == 6 * run.num_params * run.num_tokens
    assert model.hardware_flops_per_token == 6 * (run.num_params - 256 * 16), "the embedding is looked up"
    assert model.num_hidden_params == 2 * 16 * 16
    assert RunConfig.from_dict(json.loads(json.dumps(run.to_dict()))) == run
    assert run.algorithm == "DDP-AdamW"


def test_tables_and_filters_call_a_model_by_its_name(lab: Path, text_dir: Path, tmp_path: Path) -> None:
    words = ["model=mixer,29k", "data=text", f"data.path={text_dir}", "data.validation_tokens=256", f"root={tmp_path}"]
    sweep = read_sweep(words)
    own, built_in = sweep.definition.works
    model_names._names.cache_clear()
    assert [model_name(run.num_params) for run in sweep.runs] == ["mixer", "29k"]
    assert own.labels["model"] == "Mixer"
    assert select([own, built_in], ["model=mixer"]) == [own]
    assert select([own, built_in], ["model=29k"]) == [built_in]
    assert select([own, built_in], ["model=mixer,29k"]) == [own, built_in]
    with pytest.raises(ConfigError, match=r"no such model; there are .*mixer"):
        select([own, built_in], ["model=other"])
    model_names._names.cache_clear()


def test_a_runs_name_holds_what_decides_its_result(lab: Path) -> None:
    facts = compose_app_config(["model=mixer"]).run.model.facts  # type: ignore[attr-defined]
    run = RunConfig(model=model_of(facts=facts))
    same = [
        {"label": "L"},
        {"flops_per_token": 5.0},
        {"activation_bytes_per_token": 3.0},
        {"trial_arguments": {"a": 1}},
    ]
    assert {RunConfig(model=model_of(facts=facts, **values)).run_id for values in same} == {run.run_id}
    other = [{"version": "2"}, {"arguments": {"width": 8}}, {"matrices": {"out.*": "hidden"}}, {"vocab_size": 65}]
    assert len({run.run_id, *(RunConfig(model=model_of(facts=facts, **values)).run_id for values in other)}) == 5


@pytest.mark.parametrize(
    ("values", "words"),
    [
        ({"_target_": "Mixer"}, "must be a name with its module"),
        ({"arguments": {"vocab_size": 4}}, "set model.vocab_size"),
        ({"returns": "loss"}, "must be one of logits, hidden"),
        ({"returns": "hidden"}, "model.head='': names the parameter"),
        ({"head": "out.weight"}, "names the parameter"),
        ({"matrices": {"*": "muon"}}, "must be one of hidden, embedding, head, other"),
        ({"flops_per_token": -1.0}, "must be positive, or 0"),
    ],
)
def test_a_mistake_in_a_models_file_is_one_clear_line(values: dict[str, Any], words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        TargetModelConfig(**{**MIXER, **values})


@pytest.mark.thorough
def test_a_model_that_lies_is_refused_in_words(lab: Path) -> None:
    expected: dict[str, tuple[TargetModelConfig, str]] = {
        "good": (model_of(), ""),
        "tied": (model_of("mixer_lab.Tied", returns="hidden", head="embed.weight"), ""),
        "argument": (model_of(arguments={"heads": 2}), "no argument heads; it takes vocab_size, width, depth, std"),
        "shape": (model_of("mixer_lab.Wide"), "returns (2, 32, 63) for tokens (2, 32): must be logits (2, 32, 64)"),
        "hidden": (model_of("mixer_lab.Tied"), "returns (2, 32, 16) for tokens (2, 32): must be logits"),
        "nan": (model_of("mixer_lab.Nan"), "out.weight is not finite after construction"),
        "future": (model_of("mixer_lab.Future"), "looks at the future"),
        "idle": (model_of("mixer_lab.Idle"), "idle.weight never gets a gradient"),
        "muted": (model_of("mixer_lab.Muted"), "muted never gets a gradient other than 0"),
        "vocabulary": (model_of("mixer_lab.Small"), "each below model.vocab_size=64, failed: IndexError"),
        "dropout": (model_of("mixer_lab.Dropped"), "draws random numbers"),
        "buffer": (model_of("mixer_lab.Counts"), "buffer calls changes while it trains"),
        "remembers": (model_of("mixer_lab.Remembers"), "does not resume"),
        "half": (model_of("mixer_lab.Half"), "must be float32"),
        "converted": (model_of("mixer_lab.Converted"), "conversions (.to) and values (.item) in its constructor fail"),
        "blind": (model_of("mixer_lab.Blind"), "does not look at its tokens"),
        "batch": (model_of("mixer_lab.Batch"), "mixes sequences"),
        "loose": (model_of("mixer_lab.Loose"), "begins with other values each time"),
        "other": (model_of("mixer_lab.NoModel"), "is no class of torch.nn.Module"),
        "nowhere": (model_of("mixer_lab.Mix"), "cannot be imported"),
        "blocks": (model_of(blocks="stack"), "has no such module; it has the lists layers"),
        "pattern": (model_of(matrices={"blocks.*": "hidden"}), "matches no parameter; there are embed.weight"),
        "vector": (model_of(matrices={"layers.*": "hidden"}), "layers.0.bias of shape (16,) is no matrix"),
        "head": (model_of("mixer_lab.Tied", returns="hidden", head="out"), "model.head=out is no parameter"),
        "large": (model_of(arguments={"width": 20_000}), "too many to be tried here"),
        "smaller": (model_of(arguments={"width": 20_000}, trial_arguments={"width": 8}), ""),
    }
    questions = {key: Question("model", "whole", to_plain(config)) for key, (config, _) in expected.items()}
    answers = _try(questions, [str(lab)])
    for key, (_, words) in expected.items():
        assert words in answers[key].problem, (key, answers[key].problem)
        assert bool(words) == bool(answers[key].problem), (key, answers[key].problem)
    for key in ("good", "tied", "smaller"):
        assert answers[key].takes_dtensors, answers[key].why_not
    facts = answers["smaller"].facts
    assert facts is not None
    assert facts["num_params"] == 2 * 64 * 20_000 + 2 * (20_000 * 20_000 + 20_000), "counted without its memory"
    tied = answers["tied"].facts
    assert tied is not None
    assert tied["lookup_params"] == 0
    with pytest.raises(ConfigError, match=r"model\._target_=mixer_lab\.Wide: returns"):
        facts_of("model", [to_plain(expected["shape"][0])])


def test_what_a_matrix_is_follows_the_rule_or_the_file(importable: None) -> None:
    kinds = parameter_kinds(build_target_model(model_of(), 0, torch.device("cpu")))
    assert kinds == {
        **{"embed.weight": "embedding", "out.weight": "head"},
        **{f"layers.{i}.{name}": kind for i in range(2) for name, kind in (("weight", "hidden"), ("bias", "other"))},
    }
    said = model_of(matrices={"out.weight": "hidden", "layers.0.weight": "head"})
    model = build_target_model(said, 0, torch.device("cpu"))
    assert parameter_kinds(model) == {**kinds, "out.weight": "hidden", "layers.0.weight": "head"}
    compression = compose_app_config(["method=diloco", "method/compression=linear"]).run.method.compression  # type: ignore[attr-defined]
    compression.exact_embeddings = True
    names = [name for name, _ in model.named_parameters()]
    exact = {
        name for name, c in zip(names, choose_codecs(compression, model), strict=True) if type(c).__name__ == "Exact"
    }
    assert "out.weight" not in exact


def test_fragments_are_whole_layers_of_the_named_list() -> None:
    names = ["embed.w", "layers.0.w", "layers.1.w", "layers.2.w", "layers.10.w", "norm.w", "out.w"]
    assert split_by_layers(names, 11, 2, "layers") == [[0, 1, 2, 3], [4, 5, 6]]
    assert split_by_layers(names, 1, 1, "") == [list(range(7))]
    tied_last = ["layers.0.w", "layers.1.w", "embed.w"]
    assert split_by_layers(tied_last, 2, 2, "layers") == [[0], [1, 2]]


LAYERS = [f"layers.{number}.{name}" for number in range(2) for name in ("weight", "bias")]
COMBINATIONS = {
    "DDP-AdamW": [],
    "DDP-Muon": ["inner_optimizer=muon"],
    "MuLoCo": [
        *("inner_optimizer=muon", "method=diloco", "method.sync_interval=3", "method.num_workers=2"),
        *("method.streaming.num_fragments=2", "method/compression=linear"),
    ],
}


@pytest.mark.parametrize("algorithm", COMBINATIONS)
def test_a_run_of_a_model_resumes_to_the_bit(algorithm: str, lab: Path, text_dir: Path, tmp_path: Path) -> None:
    run = compose_app_config(["model=mixer", *COMBINATIONS[algorithm], *TINY, f"data.path={text_dir}"]).run
    assert run.algorithm == algorithm
    folder, newest = resumed_to_the_bit(run, tmp_path)
    state = torch.load(newest / "worker-0.pt", weights_only=True)
    assert set(state["model"]) >= {"embed.weight", "layers.0.weight", "out.weight"}, "under its own names"
    (steps,) = [step for step in folder.read_steps() if step.step == 1]
    assert steps.update_rms is not None
    assert set(steps.update_rms) == {"embedding", "hidden", "head", "other"}
    loaded = load_run(folder.path).model
    assert {name for name, _ in loaded.named_parameters()} == {"embed.weight", "out.weight", *LAYERS}
    if run.num_workers == 1:
        assert torch.equal(loaded.get_parameter("out.weight"), state["model"]["out.weight"])
    row = load_study(tmp_path / "parts").runs.iloc[0]
    assert row["algorithm"] == algorithm


@pytest.mark.thorough
def test_replicas_of_a_model_train_as_one_rank_does(lab: Path, text_dir: Path, tmp_path: Path) -> None:
    """Copies (DDP) and rows (FSDP) on two ranks, against one."""
    run = compose_app_config(["model=mixer", "inner_optimizer=muon", *TINY, f"data.path={text_dir}"]).run
    losses = {}
    for name, num_ranks, sharding in (("one", 1, "none"), ("copies", 2, "none"), ("rows", 2, "full")):
        folder = RunFolder.of(tmp_path / name, run.run_id)
        folder.write_config(run.to_dict())
        record_code([run], tmp_path / name, snapshot=True)
        settings = json.dumps({"device": "cpu", "sharding": sharding})
        environment = {**os.environ, "SLURM_STEP_NUM_TASKS": str(num_ranks), "SLURM_JOB_ID": name}
        ranks = [
            ForkedProcess(
                JOB,
                [str(folder.path), "--execution", settings],
                {**environment, "SLURM_PROCID": str(rank), "SLURM_LOCALID": str(rank)},
            )
            for rank in range(num_ranks)
        ]
        assert [rank.wait() for rank in ranks] == [0] * num_ranks, "\n".join(rank.errors() for rank in ranks)
        result = folder.read_result()
        assert result is not None
        losses[name] = result.validation_loss
    assert losses["copies"] == pytest.approx(losses["one"], rel=1e-5)
    assert losses["rows"] == pytest.approx(losses["one"], rel=1e-5)


@pytest.mark.thorough
def test_the_memory_estimate_covers_what_a_model_keeps(lab: Path) -> None:
    run = compose_app_config(["model=mixer", "inner_optimizer=muon", "global_batch_tokens=128"]).run
    estimate = estimate_memory(run, Placement(1, device="cpu", micro_batch_sequences=2))
    assert estimate.parameters == 4 * run.num_params
    others = run.num_params - run.model.num_hidden_params
    assert estimate.inner_optimizer == 4 * run.model.num_hidden_params + 8 * others
    assert estimate.peak_phase == "forward and backward"
    kept = 2 * 32 * run.model.kept_bytes_per_token  # type: ignore[attr-defined]
    assert estimate.step >= kept + 4 * run.num_params
    declared = compose_app_config(
        ["model=mixer", "model.activation_bytes_per_token=1e6", "global_batch_tokens=128"]
    ).run
    assert estimate_memory(declared, Placement(1, device="cpu")).step > 32e6


def test_settings_that_a_model_cannot_follow_are_refused(lab: Path) -> None:
    model = compose_app_config(["model=mixer"]).run.model
    with pytest.raises(ConfigError, match=r"execution\.attention: has no effect on mixer_lab\.Mixer"):
        model.check_execution("sdpa", None)
    with pytest.raises(ConfigError, match=r"execution\.activation_checkpointing: has no effect"):
        model.check_execution("auto", True)
    model.check_execution("auto", False)
    with pytest.raises(ConfigError, match=r"model\.dept"):
        compose_app_config(["model=mixer", "model.dept=3"])


@pytest.mark.thorough
def test_a_sweep_builds_each_model_once(
    lab: Path, text_dir: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    words = ["model=mixer,42k", "inner_optimizer.lr=0.1,0.2", *TINY, f"data.path={text_dir}", f"root={tmp_path}"]
    words += ["model.version=1,2", "model.flops_per_token=77"]
    with pytest.raises(ConfigError, match=r"at model=42k.*model\.version"):
        read_sweep(words)
    (sweep_file := tmp_path / "mine.yaml").write_text(
        "grids:\n- product: {model: mixer, model.arguments.width: [12, 20], inner_optimizer.lr: [0.1, 0.2]}\n"
        "- product: {model: 42k}\n"
    )
    for tried in (1, 0):
        sweep = read_sweep([f"+sweep={sweep_file}", *TINY, f"data.path={text_dir}", f"root={tmp_path}"])
        assert len(sweep.runs) == 5
        assert capfd.readouterr().err.count("trying 2 target(s) from outside (model), once") == tried
    assert len({run.num_params for run in sweep.runs}) == 3


@pytest.mark.parametrize("setting", ["inner_optimizer", "method/outer_optimizer"])
def test_muon_without_a_hidden_matrix_is_refused(setting: str, tmp_path: Path) -> None:
    facts = {"num_params": 4096, "num_layers": 1, "shapes": [[64, 64, 1, False]]}
    model = TargetModelConfig(vocab_size=64, sequence_length=32, _target_="nowhere.Product", facts=facts)
    muon = {
        "inner_optimizer": {"inner_optimizer": MuonConfig()},
        "method/outer_optimizer": {"method": DiLoCoConfig(sync_interval=1, outer_optimizer=OuterMuonConfig())},
    }
    run = RunConfig(model=model, global_batch_tokens=32, **muon[setting])  # type: ignore[arg-type]
    with pytest.raises(ConfigError, match=f"^{setting}=muon: model._target_=nowhere.Product has no hidden matrix"):
        check_targets([run], tmp_path, same_code=True)
    with_one = replace(model, facts={**facts, "shapes": [[64, 64, 1, True]]})
    with pytest.raises(ConfigError, match="there is no package or module nowhere"):
        check_targets([replace(run, model=with_one)], tmp_path, same_code=True)


def test_other_parameters_under_the_same_version_stop(lab: Path, text_dir: Path, tmp_path: Path) -> None:
    run = compose_app_config(["model=mixer", *TINY, f"data.path={text_dir}"]).run
    RunFolder.of(tmp_path, run.run_id).write_config(run.to_dict())
    check_targets([run], tmp_path, same_code=True)
    assert isinstance(run.model, TargetModelConfig)
    run.model.facts = {**run.model.facts, "num_params": 9, "shapes": [[9, 1, 1, False]]}
    with pytest.raises(ConfigError, match=r"has 9 parameters now, run .* set another model\.version"):
        check_targets([run], tmp_path, same_code=True)
    make_importable(run, None)
    with pytest.raises(ConfigError, match="had 9 when they were counted"):
        build_target_model(run.model, 0, torch.device("cpu"))
