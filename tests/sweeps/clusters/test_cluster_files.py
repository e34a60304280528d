"""A cluster's file: what it may say, and one line for each mistake."""

import dataclasses
import re
import sys
from pathlib import Path
from types import ModuleType
from typing import Any, cast

import pytest
import yaml

from hydra_plugins.sweeps.quota_launcher import QuotaLauncherConf
from muloco_runner.config import ConfigError
from muloco_runner.paths import config_dir
from sweeps.clusters import BACKENDS, backend_of, make_cluster, read_cluster
from sweeps.clusters.backend import Backend
from sweeps.clusters.slurm.slurm_settings import controller_of
from sweeps.engine.cluster_config import ClusterConfig
from sweeps.engine.work import Need
from sweeps.hydra_apps.launcher_settings import cluster_of, need_of

GOOD: dict[str, Any] = {"kind": "slurm", "allocations": [{"name": "a", "gpus_per_node": 8, "quota": {"nodes": 3}}]}


def changed(**values: Any) -> dict[str, Any]:
    return {**GOOD, "allocations": [{**GOOD["allocations"][0], **values}]}


def test_a_good_one_is_read() -> None:
    cluster = read_cluster("c", GOOD)
    assert cluster.allocation("a").quota.nodes == 3
    assert cluster.allocation("a").quota.gpu_hours is None


@pytest.mark.parametrize(
    ("values", "words"),
    [
        (None, "conf/cluster"),
        ({"kind": "slurm"}, "allocations"),
        ({**GOOD, "allocations": []}, "allocations"),
        ({**GOOD, "allocations": ["a"]}, "allocations[0]"),
        ({**GOOD, "kind": "pbs"}, "one of local, slurm"),
        ({**GOOD, "nodes": 3}, "cluster=c.nodes"),
        ({**GOOD, "tick_seconds": 0}, "tick_seconds"),
        (changed(partion="gpu"), "partion"),
        (changed(quota={"node": 3}), "quota.node"),
        (changed(quota={"nodes": -1}), "quota.nodes=-1"),
        (changed(quota={"jobs": 1.5}), "quota.jobs=1.5: must be a whole number"),
        (changed(quota={"gpu_hours": float("nan")}), "gpu_hours"),
        (changed(quota={"jobs": "three"}), "jobs"),
        (changed(quota=3), "quota"),
        (changed(gpus_per_node=-1), "gpus_per_node"),
        (changed(max_wall_minutes=0), "max_wall_minutes"),
        (changed(price_per_gpu_hour="cheap"), "price_per_gpu_hour=cheap: give a number"),
        (changed(price_per_gpu_hour=-1), "price_per_gpu_hour=-1"),
        (changed(partition="a,b", price_per_gpu_hour={"a": 1}), "one for each of partition=a,b"),
        (changed(max_wall_minutes="a day"), "max_wall_minutes=a day: give minutes, or a time as SLURM writes it"),
        ({**GOOD, "controller": {"wall_minutes": "1-"}}, "controller.wall_minutes=1-: give minutes"),
        ({**GOOD, "allocations": [{"gpus_per_node": 8}]}, "name must be given"),
        ({**GOOD, "allocations": GOOD["allocations"] * 2}, "the same name"),
        ({**GOOD, "tick_seconds": "fast"}, "tick_seconds"),
        ({**GOOD, "on_event": 3}, "on_event"),
        ({**GOOD, "heartbeat_timeout_minutes": 0}, "heartbeat_timeout_minutes=0: must be a number above zero"),
        ({**GOOD, "submit_confirm_timeout_seconds": None}, "submit_confirm_timeout_seconds=None"),
        ({**GOOD, "retries": -1}, "cluster=c: retries=-1: must be a whole number, at least 0"),
        ({**GOOD, "retries": True}, "retries=True"),
        ({**GOOD, "max_timeouts": 0}, "max_timeouts=0: must be a whole number, at least 1"),
        ({**GOOD, "max_timeouts": 1.5}, "max_timeouts=1.5"),
        ({**GOOD, "stop_after_failures": 0}, "stop_after_failures=0: must be a whole number, at least 1"),
        ({**GOOD, "stop_after_failures": "3"}, "stop_after_failures='3'"),
        ({**GOOD, "device": "nonsense"}, "device='nonsense': must be auto, cpu or cuda"),
        ({**GOOD, "slow_node_factor": 1}, "slow_node_factor=1: must be a number above 1, or null for never"),
        ({**GOOD, "slow_node_factor": "2"}, "slow_node_factor='2'"),
        ({**GOOD, "slow_node_factor": True}, "slow_node_factor=True"),
        ({**GOOD, "controller": {"memory": 3}}, "controller.memory"),
        ({**GOOD, "controller": {"wall_minutes": 0}}, "wall_minutes=0"),
        ({**GOOD, "kind": "local", "allocations": [{"name": "a", "partition": "gpu"}]}, "partition: no such setting"),
        ({"kind": "local", "allocations": [{"name": "a"}], "controller": {"qos": "low"}}, "no effect"),
    ],
)
def test_a_mistake_is_one_line(values: Any, words: str) -> None:
    with pytest.raises(ConfigError, match=re.escape(words)) as caught:
        read_cluster("c", values)
    assert "\n" not in str(caught.value)


def test_times_may_be_written_as_slurm_writes_them() -> None:
    cluster = read_cluster("c", {**changed(max_wall_minutes="1-00:00:00"), "controller": {"wall_minutes": "7-0"}})
    assert cluster.allocation("a").max_wall_minutes == 1440
    assert controller_of(cluster).wall_minutes == 7 * 1440
    assert (
        need_of(
            {"nodes": 1, "gpus_per_node": 0, "cpus_per_node": 1, "wall_minutes": "01:30:00", "tasks_per_node": 1}
        ).wall_minutes
        == 90
    )


@pytest.mark.parametrize("path", sorted((config_dir() / "cluster").glob("*.yaml")), ids=lambda path: path.stem)
def test_every_cluster_file_is_good(path: Any) -> None:
    values = yaml.safe_load(path.read_text())
    assert read_cluster(path.stem, values).allocations


@pytest.mark.parametrize("kind", BACKENDS)
def test_every_kind_of_cluster_has_a_backend(kind: str) -> None:
    assert backend_of(kind, "kind").title


def test_old_names_warn_in_files_and_are_silent_in_definitions(
    capsys: pytest.CaptureFixture[str],
) -> None:
    old = {**GOOD, "hang_minutes": 5.0, "doubt_seconds": 7.0}
    read = read_cluster("c", old)
    assert (read.heartbeat_timeout_minutes, read.submit_confirm_timeout_seconds) == (5.0, 7.0)
    assert len(capsys.readouterr().err.splitlines()) == 2
    stored = ClusterConfig.from_dict("c", old)
    assert stored == read
    assert ClusterConfig.from_dict("c", stored.to_dict()) == stored
    assert not capsys.readouterr().err


def test_a_kind_in_the_table_serves_cluster_files_and_multirun(monkeypatch: pytest.MonkeyPatch) -> None:
    module = ModuleType("pbs_backend")
    make = cast(Any, lambda config, folder: f"cluster {config.name}")
    setattr(module, "BACKEND", Backend("PBS", make, lambda config: config, 5.0, ("queue",)))  # noqa: B010
    monkeypatch.setitem(sys.modules, module.__name__, module)
    monkeypatch.setitem(BACKENDS, "pbs", module.__name__)
    read = read_cluster("c", {"kind": "pbs", "allocations": [{"name": "a", "queue": "long"}]})
    assert read.allocation("a").options == {"queue": "long"}
    assert make_cluster(read, Path()) == "cluster c"
    launcher = {"cluster": "pbs", "allocations": {"a": {"queue": "long"}}, "quota": {"nodes": 2}, "setup": []}
    settings = {**dataclasses.asdict(QuotaLauncherConf()), **launcher}
    cluster = cluster_of(settings, [Need(nodes=2, gpus_per_node=4)])
    assert (cluster.kind, cluster.tick_seconds) == ("pbs", 5.0)
    assert (cluster.allocation("a").options, cluster.allocation("a").gpus_per_node) == ({"queue": "long"}, 4)
