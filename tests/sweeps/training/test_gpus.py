"""GPUs of a run by the memory it takes: chosen where left open, checked where given, before anything is queued."""

import re
from typing import Any

import pytest

from muloco_runner.compose import compose_app_config
from muloco_runner.config import ConfigError, ExecutionConfig, RunConfig
from muloco_runner.memory import usable_bytes
from sweeps.__main__ import main
from sweeps.engine.cluster_config import AllocationConfig, ClusterConfig
from sweeps.training.gpus import Gpus


def run_of(size: str, *overrides: str) -> RunConfig:
    return compose_app_config([f"model={size}", "precision=bfloat16", "global_batch_tokens=1048576", *overrides]).run


def gpus(given: int | str = "auto", gigabytes: float = 80.0, **execution: Any) -> Gpus:
    allocations = [AllocationConfig("a", gpus_per_node=8, gpu_gigabytes=gigabytes), AllocationConfig("cpus")]
    return Gpus(ClusterConfig("c", "slurm", allocations, gpus_per_run=given), ExecutionConfig(**execution))


def test_a_run_gets_the_studys_number_or_the_fewest_that_fit() -> None:
    run = run_of("3.1b", "algorithm=muloco")
    assert gpus().number_of(run) == 8
    sharded = gpus(gigabytes=10)
    number = sharded.number_of(run)
    assert number > 8
    assert sharded.fit(run, number).fits
    assert not sharded.fit(run, number // 2).fits
    with pytest.raises(ConfigError, match="no number up to 512 fits"):
        gpus(gigabytes=10, sharding="none").number_of(run)  # of copies, more do not help


def test_a_given_number_is_taken_or_the_smallest_fit_is_named() -> None:
    run = run_of("3.1b", "algorithm=diloco")
    assert gpus(16).number_of(run) == 16
    with pytest.raises(ConfigError) as caught:
        gpus(1).number_of(run)
    words = re.search(r"it needs (\S+) GB on each; .* cluster.gpus_per_run=(\d+)$", str(caught.value))
    assert words is not None
    needed, smallest = float(words[1]), int(words[2])
    assert needed * 1e9 > usable_bytes(80 * 10**9)
    assert gpus(smallest).number_of(run) == smallest
    assert not gpus().fit(run, smallest // 2).fits


def test_the_smallest_memory_of_the_cluster_s_gpus_counts() -> None:
    allocations = [AllocationConfig(str(size), gpus_per_node=8, gpu_gigabytes=size) for size in (80, 40)]
    mixed = Gpus(ClusterConfig("c", "slurm", allocations), ExecutionConfig())
    assert mixed.fit(run_of("150m"), 1).gpu_bytes == 40 * 10**9


@pytest.mark.parametrize(
    ("overrides", "words"),
    [
        (["cluster.gpus_per_run=3"], "use 1, 2, 4, 8, 16, 32, 64, 128 or auto"),
        (["cluster.gpus_per_run=12"], "nodes of 8"),
        (["cluster.gpus_per_run=some"], "a whole number, at least 1, or auto"),
        (["cluster.gpus_per_run=1"], "the smallest number that fits is cluster.gpus_per_run=2"),
        (["cluster=local", "+cluster.gpus_per_run=1"], "have no GPUs"),
    ],
)
@pytest.mark.parametrize("command", ["plan", "launch"])
def test_what_cannot_fit_is_one_line_before_the_queue(
    command: str, overrides: list[str], words: str, tmp_path: Any, capsys: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    sweep = [
        "+sweep=paper_k1",
        "model=3.1b",
        "algorithm=diloco",
        "inner_optimizer.lr=0.001",
        "global_batch_tokens=262144",
    ]
    root = tmp_path / "results"
    arguments = ["muloco-sweep", command, *sweep, f"root={root}", "cluster=h100", *overrides]
    monkeypatch.setattr("sys.argv", arguments)
    with pytest.raises(SystemExit) as leaving:
        main()
    assert leaving.value.code == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert words in line
    assert not root.exists()
