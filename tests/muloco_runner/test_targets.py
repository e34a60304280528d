"""Optimizers from outside the package, named by `_target_`: used as asked for, or refused before anything is queued."""

import importlib.util
import json
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from target_labs import lab_in, resumed_to_the_bit
from torch import nn

from muloco_runner.compose import compose_app_config
from muloco_runner.config import ConfigError, DiLoCoConfig, ModelConfig, RunConfig, TargetConfig
from muloco_runner.optimizers.target import evaluated_weights
from muloco_runner.paths import config_dir
from muloco_runner.targets import (
    Answer,
    check_targets,
    launch_check,
)
from muloco_runner.targets.answers import _cache_file, _try
from muloco_runner.targets.questions import Question, questions_of
from muloco_runner.targets.source_code import folders_of, sources_of
from muloco_runner.training import state
from sweeps.training.sweep import read_sweep

LAB = """
import atexit
import os

import torch

print("imported: what a target prints is no answer")
atexit.register(print, "and what it prints at its end is none")


class Lion(torch.optim.Optimizer):
    def __init__(self, params, lr, betas=(0.9, 0.99), weight_decay=0.0):
        super().__init__(params, dict(lr=lr, betas=betas, weight_decay=weight_decay))

    @torch.no_grad()
    def step(self, closure=None):
        for group in self.param_groups:
            for p in group["params"]:
                state = self.state[p]
                if not state:
                    state["m"] = torch.zeros_like(p)
                p.mul_(1 - group["lr"] * group["weight_decay"])
                p.add_(torch.sign(state["m"] * 0.9 + p.grad * 0.1), alpha=-group["lr"])
                state["m"].mul_(0.99).add_(p.grad, alpha=0.01)


class Forgets(Lion):
    count = 0

    def step(self, closure=None):
        self.count += 1
        for group in self.param_groups:
            group["weight_decay"] = 0.1 * self.count
        super().step()


class Skips(Lion):
    def step(self, closure=None):
        last = self.param_groups[0]["params"][-1]
        kept = last.detach().clone()
        super().step()
        with torch.no_grad():
            last.copy_(kept)


class Nan(Lion):
    def __init__(self, params, lr):
        super().__init__(list(params), lr)
        with torch.no_grad():
            self.param_groups[0]["params"][0].fill_(float("nan"))


class NoDTensor(Lion):
    @torch.no_grad()
    def step(self, closure=None):
        for group in self.param_groups:
            for p in group["params"]:
                p.view(-1).sub_(torch.from_numpy(p.grad.numpy()).view(-1), alpha=group["lr"])


class OwnRate(Lion):
    def __init__(self, params, lr):
        super().__init__(params, lr)
        self.lr = lr

    def step(self, closure=None):
        for group in self.param_groups:
            group["lr"] = self.lr
        super().step()


class TwoRates(Lion):
    def __init__(self, params, lr):
        first, *others = params
        super().__init__([{"params": [first], "lr": lr / 10}, {"params": others}], lr)


class Slow(Lion):
    def __init__(self, params, lr, weight_decay=0.0):
        params = list(params)
        if lr > 0.1 or weight_decay > 0.3 or any(p.numel() > 300 * 32 for p in params):
            raise ValueError("too much for me")
        super().__init__(params, lr, weight_decay=weight_decay)


class Fast(Lion):
    def __init__(self, params, lr):
        if lr < 0.01:
            raise ValueError("too little for me")
        super().__init__(params, lr)


class Looks(Lion):
    def __init__(self, params, lr):
        params = list(params)
        self.start = [float(p.detach().abs().max()) for p in params]
        super().__init__(params, lr)


class OfTheClass(Lion):
    first = None

    def step(self, closure=None):
        if OfTheClass.first is None:
            OfTheClass.first = float(self.param_groups[0]["params"][0].grad.norm())
        for group in self.param_groups:
            group["weight_decay"] = OfTheClass.first
        super().step()


class KeepsGradients(Lion):
    @torch.no_grad()
    def step(self, closure=None):
        for group in self.param_groups:
            for p in group["params"]:
                last = self.state[p].get("last", p.grad)
                self.state[p]["last"] = p.grad
                p.sub_(2 * p.grad - last, alpha=group["lr"])


class SetsRates(Lion):
    def step(self, closure=None):
        super().step()
        for group in self.param_groups:
            group["lr"] *= 0.5


class Another(Lion):
    def __new__(cls, params, lr):
        return torch.optim.AdamW(params, lr)


class Noisy(Lion):
    def step(self, closure=None):
        super().step()
        with torch.no_grad():
            for p in self.param_groups[0]["params"]:
                p.add_(torch.randn_like(p), alpha=self.param_groups[0]["lr"])


class Leaves(Lion):
    def step(self, closure=None):
        os._exit(3)


class NoOptimizer:
    pass
"""
TWO_LAYERS = ModelConfig(width=16, num_layers=2, head_width=8, vocab_size=256, sequence_length=32)
TINY = [
    *(f"model.{name}" for name in ("width=16", "num_layers=1", "head_width=8", "vocab_size=256", "sequence_length=32")),
    *("data=text", "data.validation_tokens=256", "global_batch_tokens=128", "tokens_per_parameter=0.12"),
]


@pytest.fixture(scope="module")
def lab(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A folder of work: a package beside conf/."""
    lion = "_target_: my_lab.Lion\nlr: 0.002\nbetas: [0.9, 0.98]\napplies_to: matrices\n"
    files = {"my_lab/__init__.py": LAB, "conf/inner_optimizer/lion.yaml": lion}
    with lab_in(tmp_path_factory.mktemp("lab"), "my_lab", files) as folder:
        yield folder


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))


def answers_of(runs: dict[str, RunConfig]) -> dict[str, Answer]:
    questions = {key: Question("inner_optimizer", "whole", run.to_dict()) for key, run in runs.items()}
    return _try(questions, folders_of(sources_of(runs.values())))


def run_of(target: str, **values: Any) -> RunConfig:
    return RunConfig(inner_optimizer=TargetConfig(_target_=target, **values))


def test_a_file_of_few_lines_is_a_whole_optimizer(lab: Path) -> None:
    run = compose_app_config(["inner_optimizer=lion"]).run
    inner = run.inner_optimizer
    assert isinstance(inner, TargetConfig)
    assert (inner.arguments, inner.applies_to) == ({"betas": [0.9, 0.98]}, "matrices")
    assert run.algorithm == "DDP-Lion"
    assert compose_app_config(["inner_optimizer=lion", "method=diloco"]).run.algorithm == "DiLoCo-Lion"
    assert RunConfig.from_dict(json.loads(json.dumps(run.to_dict()))) == run


def test_a_runs_name_holds_what_decides_its_result() -> None:
    name = run_of("my_lab.Lion").run_id
    assert name == run_of("my_lab.Lion", label="L", state_bytes_per_parameter=4.0).run_id
    others: list[dict[str, Any]] = [{"version": "2"}, {"arguments": {"betas": [0.8, 0.9]}}, {"applies_to": "matrices"}]
    assert len({name, run_of("my_lab.Tiger").run_id, *(run_of("my_lab.Lion", **v).run_id for v in others)}) == 5


@pytest.mark.parametrize(
    ("values", "words"),
    [
        ({"_target_": "Lion"}, "must be a name with its module"),
        ({"applies_to": "some"}, "must be all, matrices"),
        ({"applies_to": {"blocks.*": "mine"}}, "target or rest"),
        ({"arguments": {"lr": 1}}, "set inner_optimizer.lr"),
        ({"rest": {"_target_": "a.B"}}, "leaves nothing to inner_optimizer.rest"),
        ({"eps": 1e-6}, "without effect"),
        ({"label": "Muon"}, "is a built-in one's"),
        ({"state_bytes_per_parameter": 0}, "positive"),
    ],
)
def test_a_mistake_is_one_clear_line(values: dict[str, Any], words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        TargetConfig(**{"_target_": "my_lab.Lion", **values})
    assert TargetConfig(_target_="torch.optim.Muon").label == "torch-Muon", "or DiLoCo with it would be called MuLoCo"


def test_a_target_that_lies_is_refused_in_words(lab: Path) -> None:
    expected = {
        "good": (run_of("my_lab.Lion", applies_to="matrices"), ""),
        "signature": (run_of("my_lab.Lion", arguments={"momentum": 0.9}), "no argument momentum; it takes lr, betas"),
        "decay": (run_of("my_lab.Nan", weight_decay=0.1), "takes no weight_decay"),
        "state": (run_of("my_lab.Forgets"), "does not resume"),
        "skips": (run_of("my_lab.Skips"), "never moves"),
        "nan": (run_of("my_lab.Nan"), "not finite after construction"),
        "other": (run_of("my_lab.NoOptimizer"), "no class of torch.optim.Optimizer"),
        "nowhere": (run_of("my_lab.Tiger"), "cannot be imported"),
        "pattern": (run_of("my_lab.Lion", applies_to={"layers.*": "target"}), "matches no parameter"),
        "local": (run_of("my_lab.NoDTensor"), ""),
        "rate": (run_of("my_lab.OwnRate"), "does not follow group['lr']"),
        "rates": (run_of("my_lab.TwoRates"), "makes a group with lr=0.0001 of inner_optimizer.lr=0.001"),
        "fast": (run_of("my_lab.Fast", lr=0.02), ""),
        "of its class": (run_of("my_lab.OfTheClass"), "does not resume"),
        "gradients": (run_of("my_lab.KeepsGradients"), "keeps gradients from step to step"),
        "sets rates": (run_of("my_lab.SetsRates"), "its step sets group['lr']"),
        "another": (run_of("my_lab.Another"), "makes a torch.optim.adamw.AdamW, which is none of its class"),
        "noisy": (replace(run_of("my_lab.Noisy"), method=DiLoCoConfig(num_workers=2)), "2 workers draw would depend"),
        "noisy alone": (run_of("my_lab.Noisy"), ""),
        "leaves": (run_of("my_lab.Leaves"), "ended its process (exit code 3)"),
        "at its peak": (run_of("my_lab.Lion", lr=1e38), ""),
        "layers": (replace(run_of("my_lab.Lion", applies_to={"blocks.1.*": "target"}), model=TWO_LAYERS), ""),
    }
    answers = answers_of({key: run for key, (run, _) in expected.items()})
    for key, (_, words) in expected.items():
        assert words in answers[key].problem, key
        assert bool(words) == bool(answers[key].problem), answers[key].problem
    assert answers["good"].takes_dtensors, answers["good"].why_not
    assert "sharded parameters" in answers["local"].why_not


def test_values_at_which_a_class_cannot_be_built_are_named(lab: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    wide = replace(TWO_LAYERS, width=64)
    rates = [run_of("my_lab.Slow", lr=lr) for lr in (0.5, 0.05, 0.2)]
    decays = [run_of("my_lab.Slow", weight_decay=decay) for decay in (0.5, 0.2)]
    sizes = [replace(run_of("my_lab.Slow"), model=model) for model in (wide, TWO_LAYERS)]
    layer = replace(run_of("my_lab.Slow", applies_to={"blocks.1.*": "target"}), model=wide)
    # Of a model that is smaller it would be too short for an outer step.
    looks = replace(run_of("my_lab.Looks"), model=wide, method=DiLoCoConfig(), tokens_per_parameter=300.0)
    sources = sources_of([*rates, looks])
    asked = [questions_of(run, sources) for run in (*rates, *decays, *sizes, layer, looks)]
    answers = _try({key: one for each in asked for key, one in each.items() if one.trial != "whole"}, [str(lab)])
    monkeypatch.setattr(launch_check, "answers_to", lambda asked, sources: {key: Answer() for key in asked} | answers)
    built, others = r"my_lab\.Slow cannot be built with lr=", r"values that were asked for \("
    for runs, words in (
        (rates, rf"{built}0\.5, .*so it is with 2 of the 3 {others}inner_optimizer\.lr=0\.5, .*=0\.2\), .*others can"),
        (decays, rf"weight_decay=0\.5: .*1 of the 2 {others}.*lr=0\.001 with a weight decay of 0\.5\)"),
        (sizes, rf"{built}.*1 of the 2 {others}a model of {sizes[0].num_params:,} parameters\)"),
        ([layer], rf"{built}.*: ValueError: too much for me$"),
        (rates[:1], rf"{built}0\.5, weight_decay=0\.0: ValueError: too much for me$"),
    ):
        with pytest.raises(ConfigError, match=words):
            check_targets(runs, lab, same_code=False)
    good = [sizes[1], replace(rates[1], model=TWO_LAYERS), replace(decays[1], model=TWO_LAYERS), looks]
    assert len(check_targets(good, lab, same_code=False)) == 4, "and what reads its parameters' values is no worse"


def test_what_was_tried_is_not_tried_again(lab: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tried: list[list[str]] = []

    def answer(questions: dict[str, Question], *folders: list[str]) -> dict[str, Answer]:
        tried.append(sorted(question.trial for question in questions.values()))
        for key in questions:
            _cache_file(key).parent.mkdir(parents=True, exist_ok=True)
            _cache_file(key).write_text("{}")
        return {key: Answer() for key in questions}

    monkeypatch.setattr("muloco_runner.targets.answers._try", answer)
    words = ["inner_optimizer=lion,adamw", "inner_optimizer.lr=0.1,0.2", *TINY, f"data.path={lab}", f"root={tmp_path}"]
    words += ["data.validation_fraction=0.4"]
    (lab / "more.txt").write_text("to be " * 2000)
    for _ in range(2):
        assert len(read_sweep(words).runs) == 4
    assert tried == [["rates", "rates", "size", "whole"]], "rates make no difference to steps"


def test_two_classes_of_one_name_are_not_one_series(lab: Path, tmp_path: Path) -> None:
    runs = [run_of("my_lab.Lion"), run_of("their_lab.Lion")]
    with pytest.raises(
        ConfigError, match=r"are called Lion, my_lab\.Lion and their_lab\.Lion: .*inner_optimizer\.label="
    ):
        check_targets(runs, tmp_path, same_code=False)


def test_a_key_is_given_once(lab: Path) -> None:
    file = lab / "conf" / "inner_optimizer" / "twice.yaml"
    file.write_text("_target_: my_lab.Lion\nbetas: [0.9, 0.99]\narguments: {betas: [0.8, 0.9]}\n")
    with pytest.raises(ConfigError, match="betas: is given twice"):
        compose_app_config(["inner_optimizer=twice"])


@pytest.mark.parametrize("arguments", ["", "{}", "[1]"])
def test_a_files_arguments_are_keys_or_none(arguments: str, lab: Path) -> None:
    file = lab / "conf" / "inner_optimizer" / "bare.yaml"
    file.write_text(f"_target_: my_lab.Lion\narguments: {arguments}\n")
    if arguments == "[1]":
        with pytest.raises(ConfigError, match=r"bare\.yaml: arguments: \[1\]: must be keys"):
            compose_app_config(["inner_optimizer=bare"])
        return
    inner = compose_app_config(["inner_optimizer=bare"]).run.inner_optimizer
    assert isinstance(inner, TargetConfig)
    assert inner.arguments == {}


@pytest.mark.parametrize("method", ["data_parallel", "diloco"])
def test_an_interrupted_run_ends_as_an_uninterrupted_one(
    method: str, lab: Path, text_dir: Path, tmp_path: Path
) -> None:
    more = ["method.sync_interval=2", "method.num_workers=2"] if method == "diloco" else []
    words = [f"method={method}", "inner_optimizer=lion", *more, *TINY, f"data.path={text_dir}"]
    run = compose_app_config(words).run
    folder, _ = resumed_to_the_bit(run, tmp_path)
    header = folder.read_header()
    assert header is not None
    assert header.algorithm == ("DDP-Lion" if method == "data_parallel" else "DiLoCo-Lion")
    assert header.config["inner_optimizer"]["label"] == "Lion"


OTHERS = [path.stem for path in (config_dir() / "inner_optimizer").glob("*.yaml") if "_target_" in path.read_text()]


def test_built_in_files_of_torch_itself_take_part() -> None:
    assert {"adafactor", "torch_muon"} <= set(OTHERS)
    assert compose_app_config(["inner_optimizer=torch_muon"]).run.algorithm == "DDP-torch-Muon"


@pytest.mark.parametrize(
    "name",
    [
        pytest.param(name, marks=pytest.mark.thorough if name in ("adafactor", "lion") else [])
        for name in sorted(OTHERS)
    ],
)
def test_a_built_in_file_of_another_class_is_what_it_says(name: str) -> None:
    run = compose_app_config([f"inner_optimizer={name}"]).run
    package = run.targets["inner_optimizer"][0].partition(".")[0]
    if importlib.util.find_spec(package) is None:
        pytest.skip(f"{package} is not installed: it is in the extra `optimizers`")
    assert answers_of({name: run})[name].problem == ""


def test_state_in_lists_is_copied_from_the_checkpoint() -> None:
    """A checkpoint's tensors are views of a file that will be removed."""
    parameter, saved = torch.zeros(2, 3), [torch.ones(3, 3), [torch.ones(2, 3)], []]
    loaded = state._local_copy(saved, parameter)
    assert [type(item) for item in loaded] == [torch.Tensor, list, list]
    assert loaded[0].data_ptr() != saved[0].data_ptr()
    assert torch.equal(loaded[1][0], saved[1][0])


class TwoSets(torch.optim.SGD):
    """Trains other weights than it evaluates, as schedule-free optimizers do."""

    def _move(self, by: float) -> None:
        with torch.no_grad():
            for parameter in self.param_groups[0]["params"]:
                parameter.mul_(by)

    def train(self) -> None:
        self._move(1 / 0.3)

    def eval(self) -> None:
        self._move(0.3)


def test_evaluation_leaves_the_trained_weights_to_the_bit() -> None:
    model = nn.Linear(7, 5)
    before = model.weight.detach().clone()
    with evaluated_weights(TwoSets(model.parameters(), 0.1)):
        assert torch.equal(model.weight.detach(), before * 0.3)
    assert torch.equal(model.weight.detach(), before)
