"""What differs between the jobs of one multirun: each has its own, or the command is refused."""

import contextlib
import dataclasses
from pathlib import Path
from typing import Any

import pytest

from hydra_plugins.sweeps.quota_launcher import QuotaLauncherConf
from muloco_runner.config import ConfigError
from sweeps.clusters.slurm.script import job_script
from sweeps.engine.cluster import JobRequest
from sweeps.engine.work import Attempt, Work
from sweeps.hydra_apps.launcher_settings import cluster_of, launcher_of_all, needs_of, without_effect

SLURM = {**dataclasses.asdict(QuotaLauncherConf()), "cluster": "slurm", "account": "lab", "setup": ["module load a"]}


def text_of(launchers: list[dict[str, Any]], number: int) -> str:
    """Return the script of one job."""
    needs = needs_of(launchers)
    cluster = cluster_of(launcher_of_all(launchers), needs)
    work = Work("w", "/w", "m:f", need=needs[number])
    request = JobRequest("tag", "slurm", (Attempt(work, 1),), 1, 0, 1, 60.0)
    return job_script(request, cluster.allocation("slurm"), cluster.setup, Path("/folder"))


def test_alike_jobs_take_the_allocations_settings() -> None:
    launchers = [{**SLURM, "partition": "gpu", "mem": "4G"}] * 2
    assert [need.options for need in needs_of(launchers)] == [{}, {}]
    text = text_of(launchers, 1)
    assert "--partition=gpu" in text
    assert "--mem=4G" in text
    assert text.count("module load a") == 1


def test_each_job_has_its_own_settings() -> None:
    own = [
        {"partition": "gpu", "mem": "4G"},
        {"partition": "cpu", "mem_gb": 2, "constraint": "avx", "setup": ["module load b"]},
        {"partition": "gpu", "mem": "4G", "additional_parameters": {"licenses": "x"}},
    ]
    launchers = [{**SLURM, **one} for one in own]
    assert launcher_of_all(launchers)["partition"] == ["gpu", "cpu"]
    first, second, third = (text_of(launchers, number) for number in range(3))
    assert "--partition=gpu" in first
    assert "--mem=4G" in first
    assert first.count("module load a") == 1
    assert "--partition=cpu" in second
    assert "--constraint=avx" in second
    assert "--mem=2048MB" in second or "--mem=2GB" in second
    assert "module load a" not in second
    assert second.count("module load b") == 1
    assert "--licenses=x" in third
    for text in (first, second, third):
        assert "--account=lab" in text


@pytest.mark.parametrize(
    ("other", "name"),
    [
        ({"quota": {**SLURM["quota"], "nodes": 2}}, "hydra.launcher.quota: "),
        ({"tick_seconds": 3.0}, "hydra.launcher.tick_seconds: 3.0 for job #1, None for job #0"),
        ({"allocations": {"a": {}}}, "hydra.launcher.allocations: "),
        ({"on_alike_failures": "hold"}, "hydra.launcher.on_alike_failures: "),
        ({"retries": 2}, "hydra.launcher.retries: 2 for job #1, 1 for job #0"),
        ({"slow_node_factor": 2.0}, "hydra.launcher.slow_node_factor: "),
        ({"cluster": "local"}, "hydra.launcher.cluster: "),
    ],
)
def test_what_holds_for_all_jobs_has_one_value(other: dict[str, Any], name: str) -> None:
    with pytest.raises(ConfigError, match="it holds for the whole multirun") as refused:
        needs_of([SLURM, {**SLURM, **other}])
    assert name in str(refused.value)


def test_several_allocations_and_jobs_that_differ_are_refused() -> None:
    both = {**SLURM, "allocations": {"a": {"partition": "gpu"}}}
    with pytest.raises(ConfigError, match=r"hydra\.launcher\.qos: differs between jobs"):
        needs_of([both, {**both, "qos": "high"}])


def test_settings_without_effect_are_named() -> None:
    assert without_effect(SLURM) == []
    local = {**SLURM, "cluster": "local", "mem_gb": 4}
    assert without_effect({**local, "slow_node_factor": 2.0})[-1] == "hydra.launcher.slow_node_factor"
    assert without_effect(local) == ["hydra.launcher.account", "hydra.launcher.mem_gb", "hydra.launcher.setup"]


@pytest.mark.parametrize(("nodes", "cpus", "is_refused"), [(2, 1, True), (2, 2, False), (1, 1, False)])
def test_each_task_over_several_nodes_has_a_cpu(nodes: int, cpus: int, is_refused: bool) -> None:
    resources = {**SLURM["resources"], "nodes": nodes, "tasks_per_node": 2, "cpus_per_node": cpus}
    with pytest.raises(ConfigError, match="set at least 2") if is_refused else contextlib.nullcontext():
        needs_of([{**SLURM, "resources": resources}])


def test_a_value_that_equals_nothing_is_no_difference_between_jobs() -> None:
    nan = float("nan")
    for launcher in ({**SLURM, "heartbeat_timeout_minutes": nan}, {**SLURM, "mem_gb": nan}):
        # As composed for each job by itself.
        needs = needs_of([launcher, {key: float("nan") if value is nan else value for key, value in launcher.items()}])
        assert needs[0].options == {}
    with pytest.raises(ConfigError, match="heartbeat_timeout_minutes=nan: must be a number above zero"):
        cluster_of({**SLURM, "heartbeat_timeout_minutes": nan}, needs)
