"""`extend:` as it is written: what it spans, and what it refuses before anything is queued."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from muloco_runner.config import ConfigError, ExecutionConfig, RunConfig
from sweeps.cli.study_lines import most_added, plan_lines
from sweeps.clusters import read_cluster
from sweeps.engine.tuning.benchmark_rules import BenchmarkPair, BenchmarkTarget
from sweeps.engine.tuning.halving import HalveRule
from sweeps.engine.tuning.study import BATCH, Study, TuneRule
from sweeps.training.derive import derived_work
from sweeps.training.entry import prepare, works_of
from sweeps.training.expansion import expand
from sweeps.training.study_file import split_study
from sweeps.training.study_groups import study_of
from sweeps.training.sweep import read_sweep

LR, OUTER = "inner_optimizer.lr", "method.outer_optimizer.lr"
GRID = {"model": ["29k"], "algorithm": ["muloco"], BATCH: "pow2(10..12)", LR: "sqrt2(-14..-10 by 2)"}


def study(extend: Any, product: dict[str, Any] | None = None, overrides: dict[str, list[Any]] | None = None) -> Study:
    goes_on = (
        extend
        if isinstance(extend, dict) and extend.keys() & {"halve", "tune", "replicate", "decide"}
        else {"extend": extend}
    )
    sweep = {**goes_on, "fixed": {"tokens_per_parameter": 5}, "grids": [{"product": product or GRID}]}
    plain, rest, found = split_study(sweep, overrides or {})
    assert found is not None
    runs = expand(plain, rest)
    return study_of(found, {run.run_id: run for run in runs})


def test_values_go_on_by_their_own_ratio_to_the_last_bit() -> None:
    (group,) = study([LR, BATCH]).groups
    assert group.label == "MuLoCo at 29k"
    (rates,) = group.axes
    assert rates.values == tuple(2.0 ** (n / 2) for n in range(-34, 12, 2))
    assert (rates.first, rates.last) == (10, 12)
    # Neither shorter than a sequence nor so long that few steps are left.
    assert group.batches.values == (128, 256, 512, 1024, 2048, 4096)


def test_no_more_settings_get_seeds_than_there_are() -> None:
    given = study({"replicate": {"best": 100, "seeds": 3}}, {**GRID, BATCH: [1024], LR: [0.01, 0.02]})
    assert most_added(given) == 4


def test_lattices_end_where_any_of_their_settings_does() -> None:
    schedules = {"schedule": ["wsd"], "schedule.decay_steps": [10, 60]}
    (group,) = study([BATCH], {**GRID, BATCH: [512, 1024], **schedules}).groups
    assert group.batches.values[-1] == 2048
    assert "schedule.decay_steps=60 is longer than the run of 36 steps" in group.batches.above


def test_lattices_end_before_what_the_sweep_cannot_run(tmp_path: Path) -> None:
    file = tmp_path / "mine.yaml"
    grid = {**GRID, "algorithm": ["muloco"], BATCH: [1024, 2048], LR: [0.01, 0.02]}
    fixed = {"tokens_per_parameter": 5, "method.num_workers": 2}
    file.write_text(json.dumps({"extend": [BATCH], "fixed": fixed, "grids": [{"product": grid}]}))
    sweep = read_sweep([f"+sweep={file}", "cluster=h100", "cluster.gpus_per_run=4", "execution.keep=[50]"])
    assert sweep.definition.study is not None
    (batches,) = [group.batches for group in sweep.definition.study.groups]
    # Two workers on two GPUs each, and checkpoints at steps that a run of a larger batch does not come to.
    assert batches.values == (512, 1024, 2048)
    assert "does not split over so many" in batches.below
    assert batches.above.startswith("global_batch_tokens=4096: execution.keep=[50]: step 50 is beyond")
    assert batches.end_words(1) == f"the largest of which a run can be made ({batches.above})"
    (line,) = [line for line in plan_lines(sweep) if "within 512 to 2048" in line]
    assert batches.below in line
    assert batches.above in line


def test_a_common_difference_serves_where_there_is_no_ratio() -> None:
    momentum = "method.outer_optimizer.momentum"
    (group,) = study({"keys": {momentum: {"low": 0.4}}}, {**GRID, momentum: [0.6, 0.7, 0.8]}).groups
    # Up to what the config allows.
    assert group.axes[0].values == (0.4, 0.5, 0.6, 0.7, 0.8, 0.9)
    assert not group.batches.grows


def test_bounds_margin_and_runs_are_as_they_are_given() -> None:
    given = study({"keys": {LR: {"low": 0.001, "high": 0.0625}}, "margin": 2}, overrides={"extend.max_runs": [7]})
    assert given.extend is not None
    assert (given.extend.margin, given.extend.max_runs) == (2, 7)
    assert given.groups[0].axes[0].values == tuple(2.0 ** (n / 2) for n in range(-18, -6, 2))


def test_a_study_is_written_and_read_as_it_is() -> None:
    given = study([LR, BATCH])
    assert Study.from_dict(given.to_dict()) == given


def test_halve_is_read_from_a_file_and_a_command_line() -> None:
    assert study({"halve": True}).halve == HalveRule()
    product = {**GRID, LR: "sqrt2(-14..-6 by 2)"}
    assert study({"halve": True}, product, {"halve.eta": [3]}).halve == HalveRule(3)
    given = study({"halve": {"eta": 4}}, product)
    assert given.halve == HalveRule(4, 0.25)
    assert given.halve.rungs == ("0.25",)
    assert Study.from_dict(given.to_dict()) == given


def test_values_of_tune_are_the_same_for_every_series() -> None:
    product = {**GRID, "algorithm": ["ddp_muon", "muloco"], LR: [0.03125]}
    coordinates = {LR: "sqrt2(-14..-6 by 2)", OUTER: [0.5, 0.7, 0.9]}
    given = study({"tune": {"coordinates": coordinates, "threshold": 0.003}}, product, {"tune.max_runs": [30]})
    assert given.tune == TuneRule(0.003, 30)
    rates = [group.axes[0].values for group in given.groups]
    assert rates[0] == rates[1] == tuple(2.0 ** (n / 2) for n in range(-14, -5, 2))
    # What a series has not is no coordinate of its.
    assert [[axis.key for axis in group.axes] for group in given.groups] == [[LR], [LR, OUTER]]
    assert Study.from_dict(given.to_dict()) == given


def test_rules_of_the_benchmark_are_read_by_name() -> None:
    product = {**GRID, "algorithm": ["ddp_muon", "muloco"]}
    target = study({"decide": {"rule": "nanogpt_target", "series": ["muloco"], "target": 3.28}}, product)
    assert target.decide is not None
    assert target.decide.contests == ((target.groups[1].id,),)
    assert target.decide.rule == BenchmarkTarget(3.28)
    assert Study.from_dict(target.to_dict()) == target
    pair = study({"decide": {"rule": "nanogpt_pair", "pairs": [["muloco", "ddp_muon"]], "max_seeds": 8}}, product)
    assert pair.decide is not None
    assert (pair.decide.contests, pair.decide.rule) == (
        ((pair.groups[1].id, pair.groups[0].id),),
        BenchmarkPair(8),
    )


def test_steps_saved_pair_budgets_that_differ() -> None:
    grids = [
        {"product": {**GRID, "algorithm": [name], "tokens_per_parameter": [budget]}}
        for name, budget in (("muloco", 8), ("ddp_muon", 10))
    ]
    for rule, gap in (("nanogpt_pair", {}), ("sequential_t", {"gap": 0.004})):
        sweep = {"decide": {"rule": rule, "pairs": [["muloco", "ddp_muon"]], **gap}, "grids": grids}
        plain, rest, found = split_study(sweep, {})
        assert found is not None
        runs = {run.run_id: run for run in expand(plain, rest)}
        if gap:
            with pytest.raises(ConfigError, match="they share no size"):
                study_of(found, runs)
            continue
        budgets = [group.budget_tokens for group in study_of(found, runs).groups]
        assert budgets[0] / budgets[1] == 8 / 10
        assert study_of(found, runs).decide is not None


def test_series_and_sizes_are_groups_and_other_tuning_is_not() -> None:
    product = {**GRID, "algorithm": ["ddp_muon", "muloco"], "inner_optimizer.weight_decay": [0.0, 0.1]}
    given = study([LR], product)
    assert [group.label for group in given.groups] == ["DDP-Muon at 29k", "MuLoCo at 29k"]
    assert len({place.setting.others for place in given.places.values() if place.group == given.groups[0].id}) == 2


def test_local_sgd_is_no_group_with_diloco() -> None:
    momentum = "method.outer_optimizer.momentum"
    product = {**GRID, "algorithm": ["diloco", "local_sgd"]}
    given = study({"decide": {"pairs": [["diloco", "localsgd_adamw"]], "gap": 0.01}}, product)
    assert [group.label for group in given.groups] == ["DiLoCo at 29k", "LocalSGD-AdamW at 29k"]
    product = {**GRID, "algorithm": ["diloco"], OUTER: [1.0]}
    (group,) = study([momentum], {**product, momentum: [0.2, 0.4, 0.6]}).groups
    assert min(group.axes[0].values) == 0.2, "without momentum it would be no DiLoCo"
    with pytest.raises(
        ConfigError, match=r"0 makes no run of DiLoCo at 29k: .*momentum=0: a run of LocalSGD-AdamW, which"
    ):
        study({"tune": {"coordinates": {momentum: [0, 0.8]}, "threshold": 0.01}}, product)


@pytest.mark.parametrize(
    ("extend", "product", "words"),
    [
        ({"keys": [LR], "marign": 2}, {}, "extend.marign: no such key; known here: keys, margin, max_runs"),
        ({"keys": [LR], "margin": 0}, {}, "extend.margin=0: give a whole number of one or more"),
        (
            {"keys": {LR: {"lowest": 1}}},
            {},
            "extend.keys.inner_optimizer.lr.lowest: no such key; known here: low, high",
        ),
        ({"keys": {LR: {"low": "1e-5"}}}, {}, "extend.keys.inner_optimizer.lr.low=1e-5: give a number"),
        ({"keys": []}, {}, "extend.keys: name the keys"),
        ("yes", {}, "extend='yes': give keys with their values"),
        ([LR], {LR: [0.01]}, "has one value (0.01) for MuLoCo at 29k"),
        ([LR], {LR: [0.01, 0.02, 0.05]}, "without a common ratio or difference (0.01, 0.02, 0.05)"),
        ({"keys": {LR: {"low": 0.01}}}, {}, "extend.keys.inner_optimizer.lr.low=0.01 lies inside the grid"),
        ({"keys": {BATCH: {"high": 2048}}}, {}, "high=2048 lies inside the grid"),
        (["inner_optimizer.rate"], {}, "extend.keys: inner_optimizer.rate: no run of this sweep has such a setting"),
        (["seed"], {"seed": [0, 1]}, "extend.keys: seed: seeds are no hyper-parameter: `replicate`"),
        ({"tune": {"coordinates": {"seed": [0, 1]}, "threshold": 0}}, {}, "coordinates: seed: seeds are no hyper-para"),
        (["tokens_per_parameter"], {}, "extend.keys: tokens_per_parameter: the key is no hyper-parameter but tells"),
        ({"replicate": {"best": 0}}, {}, "replicate.best=0: give a whole number of one or more"),
        ({"replicate": {"seed": 3}}, {}, "replicate.seed: no such key; known here: best, seeds, each_batch"),
        ({"decide": {"pairs": [["muloco", "ddp_muon"]]}}, {}, "decide.gap=None: say within which difference"),
        ({"decide": {"pairs": ["muloco"], "gap": 0.01}}, {}, "decide.pairs=['muloco']: give pairs of series"),
        ({"decide": {"pairs": [["muloco", "lion"]], "gap": 0.01}}, {}, "no series lion in this sweep; it has muloco"),
        ({"decide": {"pairs": [["muloco", "muloco"]], "gap": 0.01}}, {}, "they share no size, or are the same"),
        (
            {"decide": {"pairs": [["a", "b"]], "gap": 0.01, "max_seeds": 2}},
            {},
            "decide.max_seeds=2: give a whole number",
        ),
        ({"decide": {"rule": "welch", "pairs": [["a", "b"]]}}, {}, "decide.rule=welch: no such rule; known here: seq"),
        (
            {"decide": {"rule": "nanogpt_pair", "pairs": [["a", "b"]], "gap": 0.01}},
            {},
            "decide.gap: the rule nanogpt_pair has no such key; it has pairs, max_seeds",
        ),
        ({"decide": {"rule": "nanogpt_target", "series": ["muloco"]}}, {}, "decide.target=None: give the loss"),
        ({"decide": {"rule": "nanogpt_target", "target": 3.28}}, {}, "decide.series=None: give a list of series"),
        ({"tune": "coordinates"}, {}, "tune='coordinates': say which keys may take which values: tune: {coordinates:"),
        ({"tune": {"coordinates": {LR: [1, 2]}}}, {}, "tune.threshold=None: say from which improvement"),
        ({"tune": {"coordinates": {LR: [0.1]}, "threshold": 0}}, {}, "lr has the values 0.1: give two or more"),
        ({"tune": {"coordinates": {LR: ["a", "b"]}, "threshold": 0}}, {}, "lr: 'a' is no number"),
        (
            {"tune": {"coordinates": {LR: [0.1, 0.2]}, "threshold": 0}},
            {},
            "the file's runs of MuLoCo at 29k begin at 0.0078125, which is not among the values (0.1, 0.2)",
        ),
        (
            {"tune": {"coordinates": {BATCH: [1000, 1024, 2048, 4096]}, "threshold": 0}},
            {},
            "tune.coordinates.global_batch_tokens: 1000 makes no run of MuLoCo at 29k",
        ),
        (
            {"tune": {"coordinates": {"schedule.warmup_steps": [0, 0.5, 1000]}, "threshold": 0}},
            {},
            "0.5 makes no run of MuLoCo at 29k: schedule.warmup_steps=0.5: it takes whole numbers",
        ),
        (
            {"tune": {"coordinates": {"method.sync_interval": [20, 30]}, "threshold": 0}},
            {},
            "the key is no hyper-parameter but tells series and sizes apart: vary it in the grids",
        ),
        (
            {"extend": [LR], "tune": {"coordinates": {LR: [0.1, 0.2]}, "threshold": 0}},
            {},
            "extend and tune: a sweep looks for its best settings by one rule",
        ),
        (
            {"tune": {"coordinates": {BATCH: [1024, 2048, 4096, 16384]}, "threshold": 0}},
            {},
            "16384 makes no run of MuLoCo at 29k: global_batch_tokens=16384: method.sync_interval=30 is longer than",
        ),
        (
            {"tune": {"coordinates": {BATCH: [1024, 2048, 4096, 16384]}, "threshold": 0}},
            {"algorithm": ["ddp_muon"]},
            "16384 makes no run of DDP-Muon at 29k: global_batch_tokens=16384: a run of 9 steps, fewer than 10",
        ),
        (
            {"tune": {"coordinates": {BATCH: [512, 4096], "schedule.decay_steps": [10, 60]}, "threshold": 0}},
            {BATCH: [512], "schedule": ["wsd"], "schedule.decay_steps": [10]},
            "may come to schedule.decay_steps=60 with global_batch_tokens=4096, of which no run can be made: schedule.",
        ),
        ({"halve": {"eta": 200}}, {}, "halve.eta=200: give a whole number from two to 100"),
        ({"replicate": 3}, {}, "replicate=3: give keys with their values, such as {best: 1, seeds: 3}"),
        ({"decide": {"rule": ["a"]}}, {}, "decide.rule=['a']: no such rule"),
        (
            {"decide": {"rule": "nanogpt_target", "series": ["muloco", "MuLoCo"], "target": 3}},
            {},
            "decide.series: MuLoCo stands there twice",
        ),
        ({"decide": {"pairs": [["a", "b"], ["b", "a"]], "gap": 0}}, {}, "decide.pairs: b against a stands there twice"),
        ({"halve": True}, {LR: [0.01, 0.02]}, "halve has no effect: a run stops beside 2 others that have finished"),
        ({"replicate": {"seeds": 2}}, {"seed": [0, 1]}, "replicate.seeds=2 has no effect: all settings have 2 seeds"),
        ({"replicate": {"each_batch": 2}}, {"seed": [0, 1, 2]}, "replicate.each_batch=2 have no effect: all settings"),
        ({"replicate": {"each_batch": 2}}, {"seed": [0, 1]}, "replicate.each_batch=2 has no effect: the best setting"),
        ({"replicate": {"each_batch": 3}}, {"global_batch_tokens": [1024]}, "each batch has 3 seeds without it"),
        ({"replicate": {"each_batch": 0}}, {}, "replicate.each_batch=0: give a whole number of one or more"),
        ({"halve": {"eta": 1}}, {}, "halve.eta=1: give a whole number of two or more"),
        ({"halve": {"first_share": 0.6}}, {}, "halve.first_share=0.6: give the share of a run's tokens before which"),
        ({"halve": {"gain_factor": 0.5}}, {}, "halve.gain_factor=0.5: give how many times the gain"),
        ({"halve": {"rungs": 3}}, {}, "halve.rungs: no such key; known here: eta, first_share, gain_factor"),
        ({"halve": "yes"}, {}, "halve='yes': give keys with their values"),
        ([OUTER], {"algorithm": ["ddp_muon"]}, "no run of this sweep has such a setting"),
    ],
)
def test_bad_values_are_refused_in_one_line(extend: Any, product: dict[str, Any], words: str) -> None:
    with pytest.raises(ConfigError) as refusal:
        study(extend, {**GRID, **product})
    assert words in str(refusal.value)
    assert "\n" not in str(refusal.value)


@pytest.mark.parametrize(
    "tied",
    [
        {"when": [{"if": {BATCH: 1024}, "fixed": {"seed": 1}}]},
        {"exclude": [{BATCH: 1024}]},
        {"zip": {BATCH: [1024, 2048], "seed": [0, 1]}},
    ],
)
def test_what_ties_settings_to_a_value_is_refused(tied: dict[str, Any]) -> None:
    with pytest.raises(ConfigError, match="says nothing of the values that are added"):
        split_study({"extend": [BATCH], "grids": [{"product": GRID, **tied}]}, {})


def test_a_derived_run_is_the_run_that_a_wider_grid_has(tmp_path: Path) -> None:
    cluster = read_cluster("local", {"kind": "local", "allocations": [{"name": "here"}]})
    execution = ExecutionConfig()
    narrow, wide = (
        expand({"grids": [{"product": {**GRID, BATCH: batches}}], "fixed": {"tokens_per_parameter": 5}}, {})
        for batches in ([1024], [2048])
    )
    like = works_of(narrow[:1], tmp_path, execution, cluster)[0]
    prepare(narrow[:1], tmp_path)
    keeps = {**like.arguments, "execution": {**like.arguments["execution"], "keep": [100]}}
    with pytest.raises(ConfigError, match=r"a run of \d+ steps, with global_batch_tokens=2048, is to be added: .*keep"):
        derived_work(replace(like, arguments=keeps), {BATCH: 2048.0}, cluster)
    made = derived_work(like.expecting(3 * like.need.expected_minutes), {BATCH: 2048.0}, cluster)
    expected = works_of(wide[:1], tmp_path, execution, cluster)[0]
    assert (made.name, made.labels, made.arguments) == (expected.name, expected.labels, expected.arguments)
    assert (tmp_path / "runs" / made.name / "config.yaml").exists()
    # What the other is known to take longer than a first guess, this is expected to take longer too.
    assert made.need.expected_minutes == pytest.approx(3 * expected.need.expected_minutes)


def test_a_setting_that_a_run_has_not_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"method\.outer_optimizer\.lr: DDP-AdamW has no such setting"):
        RunConfig().with_values({OUTER: 0.7})


def test_the_demo_goes_on_until_its_rates_are_interior() -> None:
    sweep = read_sweep(["+sweep=study", "cluster=local"])
    found = sweep.definition.study
    assert found is not None
    assert found.extend is not None
    assert found.replicate is not None
    assert len(found.groups) == 12
    assert len(sweep.runs) == 48
    # Batches of one sequence would take most of its minutes.
    assert {group.batches.values[0] for group in found.groups} == {64}
