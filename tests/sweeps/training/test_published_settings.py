"""The sweeps `paper_*` against the settings that were published with arXiv 2505.23725, value by value."""

import hashlib
import math
from functools import cache
from typing import Any

import pytest
import yaml

from muloco_runner.config import DiLoCoConfig, MuonConfig, RunConfig
from muloco_runner.config.compression import LossyCompressionConfig, QuantisationConfig, TopKConfig
from muloco_runner.paths import config_dir
from sweeps.training.expansion import expand

SEQUENCE = 2048
# model: smallest and largest batch in sequences, steps at 512 sequences, tokens per parameter that follow
SIZES = {
    "150m": (32, 4096, 2880, 20.05),
    "416m": (32, 4096, 8160, 20.53),
    "914m": (64, 4096, 17520, 20.09),
    "1.76b": (64, 8192, 33600, 20.03),
    "3.1b": (64, 8192, 58560, 20.03),
    "15b": (32, 65536, 290640, 20.01),
}
PARAMETERS = {
    "150m": 150_616_064,
    "416m": 416_862_208,
    "914m": 914_343_936,
    "1.76b": 1_758_666_752,
    "3.1b": 3_065_436_160,
    "15b": 15_229_089_792,
}
TOP_K = [0.005, 0.01, 0.02, 0.025, 0.05, 0.1, 0.25, 0.5]
SWEEPS = sorted(path.stem for path in (config_dir() / "sweep").glob("paper_*.yaml"))


@cache
def runs_of(name: str) -> list[RunConfig]:
    sweep = yaml.safe_load((config_dir() / "sweep" / f"{name}.yaml").read_text())
    return expand(sweep, {})


def values(runs: list[RunConfig], key: str) -> list[Any]:
    found = set()
    for run in runs:
        value: Any = run
        for name in key.split("."):
            value = getattr(value, name)
        found.add(value)
    return sorted(found, key=str)


def diloco(run: RunConfig) -> DiLoCoConfig:
    assert isinstance(run.method, DiLoCoConfig)
    return run.method


@pytest.mark.parametrize("name", SWEEPS)
def test_what_all_published_runs_share(name: str) -> None:
    for run in runs_of(name):
        assert (run.seed, run.precision, run.model.sequence_length) == (42, "bfloat16", SEQUENCE)
        assert run.data.validation_tokens == 2**21 == 1024 * SEQUENCE
        assert run.warmup_steps == min(300 if name == "paper_streaming" else 500, run.num_steps)
        assert run.schedule.final_lr_fraction == 0.1


@pytest.mark.parametrize("model", SIZES)
def test_batches_steps_and_budgets_of_each_size(model: str) -> None:
    smallest, largest, steps, budget = SIZES[model]
    name = "paper_15b" if model == "15b" else "paper_k1"
    runs = [run for run in runs_of(name) if run.num_params == PARAMETERS[model]]
    assert {run.algorithm for run in runs} == {"DDP-AdamW", "DDP-Muon", "DiLoCo", "MuLoCo"}
    for algorithm in {run.algorithm for run in runs}:
        own = [run for run in runs if run.algorithm == algorithm]
        exponents = range(int(math.log2(smallest)), int(math.log2(largest)) + 1)
        assert {run.global_batch_sequences for run in own} == {2**exponent for exponent in exponents}
        rates = sorted({2 * math.log2(run.inner_optimizer.lr) for run in own})
        assert rates == pytest.approx(range(round(rates[0]), round(rates[-1]) + 1)), "steps of sqrt 2"
    for run in runs:
        assert round(run.tokens_per_parameter, 2) == budget
        if run.global_batch_sequences == 512:
            assert run.num_steps == steps
        if model == "150m" and run.global_batch_sequences == 2048:
            assert (run.num_steps, run.warmup_steps) == (720, 500)


def is_inside(runs: list[RunConfig], rate: float) -> bool:
    rates = sorted({run.inner_optimizer.lr for run in runs})
    return any(math.isclose(one, rate, rel_tol=1e-3) for one in rates[1:-1])


def test_best_rates_of_the_largest_size_lie_inside_the_grid() -> None:
    runs = [run for run in runs_of("paper_k1") if run.num_params == PARAMETERS["3.1b"]]
    assert is_inside([run for run in runs if run.algorithm == "DDP-AdamW"], 2 ** (-19 / 2))
    for rate in (0.0221, 0.0442):
        assert is_inside([run for run in runs if run.algorithm == "DDP-Muon"], rate)


def test_best_settings_of_sixteen_workers_lie_inside_the_grid() -> None:
    runs = runs_of("paper_k16")
    assert values(runs, "num_workers") == [16]
    assert {(diloco(run).outer_optimizer.lr, diloco(run).outer_optimizer.momentum) for run in runs} == {(1.0, 0.9)}  # type: ignore[attr-defined]
    for algorithm, rate in (("MuLoCo", 0.015625), ("DiLoCo", 0.000691)):
        for size in SIZES.keys() - {"15b"}:
            own = [run for run in runs if run.algorithm == algorithm and run.num_params == PARAMETERS[size]]
            assert is_inside(own, rate)


def test_best_settings_of_eight_workers_lie_inside_the_grid() -> None:
    runs = [run for run in runs_of("paper_workers") if run.num_workers == 8]
    for algorithm, rate, outer in (("MuLoCo", 0.0625, (0.9, 0.8)), ("DiLoCo", 0.00390625, (0.9, 0.9))):
        own = [run for run in runs if run.algorithm == algorithm]
        assert {(diloco(run).outer_optimizer.lr, diloco(run).outer_optimizer.momentum) for run in own} == {outer}  # type: ignore[attr-defined]
        assert is_inside(own, rate)
    assert values(runs_of("paper_workers"), "num_workers") == [1, 16, 2, 4, 8]


def test_compression_is_by_rows_and_requantised() -> None:
    shares: dict[str, set[float]] = {}
    for run in runs_of("paper_compression"):
        assert (run.num_workers, run.num_params) == (8, PARAMETERS["416m"])
        compression = diloco(run).compression
        if isinstance(compression, QuantisationConfig):
            assert (compression.granularity, compression.exchange) == ("row", "reduce_scatter")
        if isinstance(compression, TopKConfig):
            assert compression.values == "exact"
            shares.setdefault(run.algorithm, set()).add(compression.fraction)
    assert shares == {"DiLoCo": set(TOP_K), "MuLoCo": set(TOP_K)}
    kinds = {diloco(run).compression.name for run in runs_of("paper_compression")}
    assert kinds == {"none", "statistical", "linear", "top_k"}


def test_streaming_sends_fragments_at_the_published_intervals() -> None:
    rates = {"DiLoCo": {0.003, 0.00169, 0.00095}, "MuLoCo": {0.0473, 0.0224, 0.0106}}
    runs = runs_of("paper_streaming")
    for run in runs:
        method = diloco(run)
        assert method.streaming.num_fragments == 3
        assert method.sync_interval == {"DiLoCo": 15, "MuLoCo": 30}[run.algorithm]
        assert isinstance(method.compression, LossyCompressionConfig)
        assert (method.compression.name, method.compression.exact_embeddings) == ("statistical", True)
        assert method.compression.sends_rows_apart
        assert (method.outer_optimizer.lr, method.outer_optimizer.momentum) == (0.9, 0.8)  # type: ignore[attr-defined]
        assert run.num_steps == 7953
        if isinstance(run.inner_optimizer, MuonConfig):
            assert run.inner_optimizer.coefficients == "polar_express"
    for algorithm, expected in rates.items():
        assert {run.inner_optimizer.lr for run in runs if run.algorithm == algorithm} == expected


@pytest.mark.parametrize(
    ("name", "number", "digest"),
    [("compression", 46, "0a23b8b75d5a"), ("demo", 112, "e2fa9aa6cf96"), ("sync_interval", 72, "54b168157515")],
)
def test_sweeps_that_are_not_the_papers_keep_their_runs(name: str, number: int, digest: str) -> None:
    runs = runs_of(name)
    assert len(runs) == number
    assert hashlib.sha256("".join(sorted(run.run_id for run in runs)).encode()).hexdigest()[:12] == digest
