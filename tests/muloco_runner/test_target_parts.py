"""Schedules and parts of DiLoCo from outside the package: used as asked for, or refused before anything is queued."""

import json
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from target_labs import lab_in, trained_in_parts

from analysis.runs import load_study
from muloco_runner.compose import compose_app_config
from muloco_runner.config import (
    ConfigError,
    DiLoCoConfig,
    ExecutionConfig,
    OuterSgdConfig,
    RunConfig,
    TargetCompressionConfig,
    TargetDataConfig,
    TargetOuterConfig,
    TargetScheduleConfig,
)
from muloco_runner.config.plain import to_plain
from muloco_runner.data.corpus import load_corpus
from muloco_runner.data.epochs import describe_epochs
from muloco_runner.diloco.target_outer import TargetOuter
from muloco_runner.job import check_can_run, run_job
from muloco_runner.memory import Placement, estimate_memory
from muloco_runner.record import ExitCode, RunFolder
from muloco_runner.targets import record_code
from muloco_runner.targets.answers import _try
from muloco_runner.targets.questions import Question, questions_of
from muloco_runner.targets.source_code import sources_of
from muloco_runner.trials.__main__ import _TRIALS

LAB = """
import random

import torch

calls = []


def decay(step, warmup, total, power=1.0):
    return (1 - (step - warmup) / (total - warmup)) ** power


def flat(step):
    return 1.0


def stepless(total):
    return 1.0


def above(step):
    return 1.5


def nan_at_the_end(step, total):
    return float("nan") if step == total - 1 else 0.5


def counts(step):
    calls.append(step)
    return 1 / len(calls)


def crashes(step, warmup):
    return 1 / (step - warmup)


def words(step):
    return "fast"


class Decay:
    pass


class Signs(torch.optim.Optimizer):
    def __init__(self, params, lr, beta=0.9):
        super().__init__(params, {"lr": lr, "beta": beta})

    def scale(self, m):
        return 1.0

    @torch.no_grad()
    def step(self, closure=None):
        for group in self.param_groups:
            for p in group["params"]:
                state = self.state[p]
                m = state.setdefault("m", torch.zeros_like(p))
                m.lerp_(p.grad, 1 - group["beta"])
                p.grad.zero_()  # which the trainer must not notice
                state["count"] = state.get("count", 0) + 1
                p.sub_(m.sign(), alpha=group["lr"] * self.scale(m) / state["count"])


class Whole(Signs):
    def scale(self, m):
        return float(m.norm())


class Draws(Signs):
    def scale(self, m):
        return float(torch.rand(()))


class Forgets(Signs):
    steps = 0

    def scale(self, m):
        self.steps += 1
        return self.steps


class Rows(Signs):
    def step(self, closure=None):
        super().step()
        for p in self.param_groups[0]["params"]:
            self.state[p]["rows"] = torch.zeros(p.shape[0] + 1)


class Skips(Signs):
    def scale(self, m):
        return float(m.ndim > 1)


class Ternary:
    def __init__(self, threshold=0.0):
        self.threshold = threshold

    def part_bytes(self, rows, columns):
        return (4, rows * columns)

    def encode(self, values):
        scale = values.abs().mean()
        kept = torch.where(values.abs() > self.threshold * scale, values.sign(), 0)
        return [scale[None], kept.nan_to_num().to(torch.int8)]

    def decode(self, parts, rows, columns):
        return parts[1].view(torch.int8).view(rows, columns) * parts[0].view(torch.float32)


class ShortCodec(Ternary):
    def part_bytes(self, rows, columns):
        return (4, rows)


class Divides(Ternary):
    def encode(self, values):
        return super().encode(values / values.abs().max())


class Dithers(Ternary):
    def encode(self, values):
        return super().encode(values + 0.1 * torch.randn(values.shape) * values.abs().mean())


class Negates(Ternary):
    def decode(self, parts, rows, columns):
        return -super().decode(parts, rows, columns)


class Writes(Ternary):
    def encode(self, values):
        return super().encode(values.mul_(2))


class Flattens(Ternary):
    def decode(self, parts, rows, columns):
        return super().decode(parts, rows, columns).flatten()


def sums(count, base=10):
    for a in range(count):
        yield f"{a} plus {a % base} is {a + a % base}\\n" * 4


def drawn():
    return [str(random.random()) * 30 for _ in range(20)]


def tokens():
    return [[1, 2, 3]]


def one_text():
    return "not in a list"


class TwoSets(Signs):
    def train(self):
        pass

    eval = train
"""
TINY = [
    *(f"model.{name}" for name in ("width=16", "num_layers=2", "head_width=8", "vocab_size=256", "sequence_length=32")),
    *("data=text", "data.validation_tokens=256", "global_batch_tokens=128", "tokens_per_parameter=0.08"),
    *("method=diloco", "method.num_workers=2", "method.sync_interval=4", "schedule=falling"),
    *("method.streaming.num_fragments=2", "method/outer_optimizer=signs", "method/compression=ternary"),
]


@pytest.fixture(scope="module")
def lab(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A folder of work: a module beside conf/."""
    ternary = "_target_: parts_lab.Ternary\nbits_per_value: 8\nthreshold: 0.5\nerror_feedback: 0.9\n"
    files = {
        "parts_lab.py": LAB,
        "conf/data/sums.yaml": "_target_: parts_lab.sums\ncount: 80\nvalidation_tokens: 64\n",
        "conf/schedule/falling.yaml": "_target_: parts_lab.decay\nwarmup_steps: 2\npower: 1.0\n",
        "conf/method/compression/ternary.yaml": ternary,
        "conf/method/outer_optimizer/signs.yaml": "_target_: parts_lab.Signs\nlr: 0.01\nbeta: 0.8\n",
    }
    with lab_in(tmp_path_factory.mktemp("lab"), "parts_lab", files) as folder:
        sys.path.insert(0, str(folder))
        yield folder


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))


def schedule_of(name: str, **values: Any) -> RunConfig:
    return RunConfig(schedule=TargetScheduleConfig(_target_=f"parts_lab.{name}", **values))


def outer_of(name: str, **values: Any) -> RunConfig:
    return RunConfig(method=DiLoCoConfig(outer_optimizer=TargetOuterConfig(_target_=f"parts_lab.{name}", **values)))


def codec_of(name: str, **values: Any) -> RunConfig:
    values = {"bits_per_value": 8.0, **values}
    return RunConfig(method=DiLoCoConfig(compression=TargetCompressionConfig(_target_=f"parts_lab.{name}", **values)))


def data_of(name: str, **values: Any) -> RunConfig:
    return RunConfig(data=TargetDataConfig(_target_=f"parts_lab.{name}", **values))


def test_files_of_few_lines_are_whole_parts_of_a_run(lab: Path, text_dir: Path) -> None:
    run = compose_app_config([*TINY, f"data.path={text_dir}"]).run
    assert isinstance(run.method, DiLoCoConfig)
    outer = run.method.outer_optimizer
    assert isinstance(outer, TargetOuterConfig)
    assert (outer.arguments, outer.lr, outer.label) == ({"beta": 0.8}, 0.01, "Signs")
    assert run.method.choices == {"outer_optimizer": "Signs"}
    assert [run.schedule.decay(step, 2, 12) for step in (2, 7)] == [1.0, 0.5]
    assert run.method.bits_per_value == 8
    assert run.targets == {
        "schedule": ["parts_lab.decay"],
        "method.outer_optimizer": ["parts_lab.Signs"],
        "method.compression": ["parts_lab.Ternary"],
    }
    assert RunConfig.from_dict(json.loads(json.dumps(run.to_dict()))) == run
    plain = compose_app_config([*TINY, f"data.path={text_dir}", "method/outer_optimizer=diloco"]).run
    memory, without = (estimate_memory(one, Placement(2, device="cpu")) for one in (run, plain))
    assert memory.method - without.method == 4 * run.num_params


def test_the_names_of_runs_hold_target_arguments_and_version() -> None:
    for of, first, other in (
        (schedule_of, "decay", "flat"),
        (outer_of, "Signs", "Whole"),
        (codec_of, "Ternary", "Divides"),
        (data_of, "sums", "drawn"),
    ):
        name = of(first).run_id
        assert name == of(first, label="L").run_id
        assert len({name, of(other).run_id, of(first, version="2").run_id, of(first, arguments={"a": 1}).run_id}) == 4
    assert outer_of("Signs").run_id == outer_of("Signs", state_bytes_per_parameter=3).run_id


@pytest.mark.parametrize(
    ("cls", "values", "words"),
    [
        (TargetScheduleConfig, {"_target_": "decay"}, "must be a name with its module"),
        (TargetScheduleConfig, {"arguments": {"warmup": 1}}, "given by the trainer: set schedule.warmup_steps"),
        (TargetScheduleConfig, {"arguments": {"step": 1}}, "given by the trainer: drop it"),
        (TargetOuterConfig, {"arguments": {"lr": 1}}, "set method.outer_optimizer.lr"),
        (TargetCompressionConfig, {}, "bits_per_value=0.0: must be a positive number"),
        (TargetCompressionConfig, {"bits_per_value": 1.0, "exchange": "ring"}, "all_gather, reduce_scatter"),
        (TargetOuterConfig, {"label": "SGD"}, "is a built-in one's"),
        (TargetOuterConfig, {"state_bytes_per_parameter": -1}, "zero or positive"),
    ],
)
def test_a_mistake_in_a_parts_file_is_one_clear_line(cls: type, values: dict[str, Any], words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        cls(**{"_target_": "parts_lab.Signs", **values})
    assert TargetOuterConfig(_target_="torch.optim.SGD").label == "torch-SGD"


@pytest.mark.thorough
def test_a_part_that_lies_is_refused_in_words(lab: Path) -> None:
    expected = {
        "decay": (schedule_of("decay", arguments={"power": 2.0}), ""),
        "flat": (schedule_of("flat"), ""),
        "argument": (schedule_of("decay", arguments={"gamma": 2}), "no argument gamma; it takes step, warmup, total"),
        "stepless": (schedule_of("stepless"), "has no argument step"),
        "above": (schedule_of("above"), "returns 1.5 for step"),
        "nan": (schedule_of("nan_at_the_end"), "returns nan for step"),
        "counts": (schedule_of("counts"), "another value for the same step"),
        "crashes": (schedule_of("crashes"), "ZeroDivisionError"),
        "words": (schedule_of("words"), "ValueError: could not convert"),
        "class": (schedule_of("Decay"), "is no function"),
        "nowhere": (schedule_of("lost"), "cannot be imported"),
        "signs": (outer_of("Signs", arguments={"beta": 0.5}), ""),
        "torch": (RunConfig(method=DiLoCoConfig(outer_optimizer=TargetOuterConfig(_target_="torch.optim.Adam"))), ""),
        "whole": (outer_of("Whole"), ""),
        "beta": (outer_of("Signs", arguments={"betas": 0.5}), "has no argument betas; it takes lr, beta"),
        "draws": (outer_of("Draws"), "its steps differ from time to time"),
        "forgets": (outer_of("Forgets"), "does not resume"),
        "rows": (outer_of("Rows"), "its state rows is (7,) for a tensor of shape (6, 4)"),
        "bytes": (outer_of("Signs", state_bytes_per_parameter=2), "keeps 4 bytes of state for a parameter: set"),
        "skips": (outer_of("Skips"), "it never moves a tensor of shape (5,)"),
        "sets": (outer_of("TwoSets"), "trains other weights than it evaluates"),
        "kind": (outer_of("Decay"), "no class of torch.optim.Optimizer"),
        "ternary": (codec_of("Ternary", arguments={"threshold": 0.1}), ""),
        "level": (codec_of("Ternary", arguments={"level": 0.1}), "has no argument level; it takes threshold"),
        "bits": (codec_of("Ternary", bits_per_value=2.0), "it sends 8 bits for a value"),
        "rows apart": (codec_of("Ternary", rows_apart=True), "where it was written alone: set"),
        "short": (codec_of("ShortCodec"), "part_bytes promises (4, 1)"),
        "divides": (codec_of("Divides"), "of zeros (1, 1) it reads back values that are not finite"),
        "dithers": (codec_of("Dithers"), "is written otherwise the second time"),
        "negates": (codec_of("Negates"), "points away from what was sent"),
        "writes": (codec_of("Writes"), "encode changes a random matrix"),
        "flattens": (codec_of("Flattens"), "reads back a tensor of shape (1,)"),
        "sums": (data_of("sums", arguments={"count": 60}), ""),
        "terms": (data_of("sums", arguments={"terms": 60}), "has no argument terms; it takes count, base"),
        "few": (data_of("sums", arguments={"count": 2}), "leaves no document for validation"),
        "missing": (data_of("sums"), "missing 1 required positional argument: 'count'"),
        "drawn": (data_of("drawn"), "yields other documents the second time"),
        "tokens": (data_of("tokens"), "document 0 is a list: must be str or bytes"),
        "one": (data_of("one_text"), "returns a str: must yield documents"),
        "codec": (codec_of("Decay"), "is no codec: a class with part_bytes, encode, decode"),
    }
    questions = {}
    for name, (run, _) in expected.items():
        ((part, config),) = run.from_outside.items()
        questions[name] = Question(part, "whole", run.to_dict() if part == "schedule" else to_plain(config))
    answers = _try(questions, [str(lab)])
    for name, (_, words) in expected.items():
        assert words in answers[name].problem, (name, answers[name].problem)
        assert bool(words) == bool(answers[name].problem), (name, answers[name].problem)
    assert answers["signs"].takes_dtensors
    assert "it makes something else than of all" in answers["whole"].why_not


def test_each_part_that_a_run_names_can_be_tried(lab: Path, text_dir: Path) -> None:
    run = compose_app_config([*TINY, f"data.path={text_dir}"]).run
    asked = questions_of(run, sources_of([run]))
    assert {question.part for question in asked.values()} == set(run.from_outside)
    assert {(question.part, question.trial) for question in asked.values()} <= set(_TRIALS)
    longer = compose_app_config([*TINY, f"data.path={text_dir}", "tokens_per_parameter=1"]).run
    again = questions_of(longer, sources_of([longer]))
    assert len(asked.keys() & again.keys()) == 3, "a schedule is tried for each length of a run"


def test_own_documents_are_a_runs_data(lab: Path, tmp_path: Path) -> None:
    words = [*TINY[:5], "data=sums", "global_batch_tokens=128", "tokens_per_parameter=0.02"]
    app = compose_app_config([*words, f"root={tmp_path}"])
    run = app.run
    assert isinstance(run.data, TargetDataConfig)
    corpus = load_corpus(run.data)
    assert run.data.content_hash == corpus.content_hash
    assert run.data.facts["train_tokens"] == corpus.train.num_tokens
    assert describe_epochs(run).startswith(f"data sums: {corpus.train.num_tokens:,} training tokens")
    other = compose_app_config([*words, "data.arguments.count=81"]).run
    assert other.run_id != run.run_id
    folder = RunFolder.of(tmp_path, run.run_id)
    folder.write_config(run.to_dict())
    record_code([run], tmp_path, snapshot=True)
    assert run_job(folder, ExecutionConfig(device="cpu")) is ExitCode.FINISHED
    header = folder.read_header()
    assert header is not None
    assert (header.corpus_hash, set(header.baselines)) == (corpus.content_hash, {"unigram", "bigram"})
    changed = replace(run.data, facts={**run.data.facts, "content_hash": "0" * 16})
    with pytest.raises(ConfigError, match=r"data\._target_=parts_lab\.sums holds data .* now, this run is on 0000"):
        check_can_run(replace(run, data=changed), folder)


def test_an_outer_step_equals_the_built_in_one() -> None:
    """SGD of torch on the mean pseudogradient is the built-in one, through any number of steps."""
    config = OuterSgdConfig(lr=0.3, momentum=0.9)
    arguments = {"momentum": 0.9, "nesterov": True}
    target = TargetOuterConfig(_target_="torch.optim.SGD", lr=0.3, arguments=arguments)
    tensors = [torch.ones(3, 2), torch.ones(4)]
    optimizer, anchor = TargetOuter(target, tensors), torch.ones(10)
    expected, velocity = torch.ones(10), torch.zeros(10)
    for number in range(1, 4):
        delta = torch.randn(10, generator=torch.Generator().manual_seed(number))
        kept = delta.clone()
        optimizer.step(anchor, delta, number)
        assert torch.equal(delta, kept)
        velocity = config.momentum * velocity + config.lr * delta
        expected -= config.momentum * velocity + config.lr * delta
    torch.testing.assert_close(anchor, expected)


def test_an_interrupted_run_of_own_parts_ends_as_another(lab: Path, text_dir: Path, tmp_path: Path) -> None:
    run = compose_app_config([*TINY, f"data.path={text_dir}"]).run
    ends = []
    for name, stops in (("whole", 0), ("parts", 3)):
        _, newest = trained_in_parts(run, tmp_path / name, stops)
        shared = torch.load(newest / "shared.pt", weights_only=True)
        assert shared["outer_numbers"][0][0] == {"count": shared["outer_steps"][0]}
        ends.append([*shared["method"]["anchor"], *shared["method"]["outer_m"]])
    assert all(torch.equal(one, other) for one, other in zip(*ends, strict=True))
    row = load_study(tmp_path / "parts").runs.iloc[0]
    assert row["bits_per_value"] == 8
    assert {"schedule._target_=parts_lab.decay", "outer_optimizer.name=target"} <= set(row["setting"].split())
