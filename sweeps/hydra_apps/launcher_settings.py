"""Translates the launcher's config for the engine: a cluster with its allocations, and what a job asks for."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

from muloco_runner.config import ConfigError
from muloco_runner.config.keys import known_keys, no_such_setting
from sweeps.clusters import BACKENDS, backend_of, read_cluster
from sweeps.engine.cluster_config import AllocationConfig, ClusterConfig, check_memory, checked_minutes
from sweeps.engine.work import Need
from sweeps.formatting import plural

_NAME = "hydra.launcher"
_ALLOCATION_KEYS = tuple(
    f.name for f in dataclasses.fields(AllocationConfig) if f.name not in ("name", "gpu_gigabytes", "options")
)
_OF_THE_CLUSTER = (
    "successors",
    "on_alike_failures",
    "retries",
    "max_timeouts",
    "stop_after_failures",
    "slow_node_factor",
    "heartbeat_timeout_minutes",
    "submit_confirm_timeout_seconds",
    "on_event",
)
"""Settings that hold for the whole cluster and are called alike in its file."""
_SHARE_EXPECTED = 0.5
"""A job is expected to take this share of the time it asks for, since nothing else is known."""


def check_names(launcher: Mapping[str, Any], schema: type) -> None:
    """Refuse keys that `schema`, the launcher's dataclass, has not: `+` adds any. Raises `ConfigError`."""
    known = known_keys(schema)
    given = [key for key in launcher if key not in known]
    given += [f"resources.{key}" for key in launcher["resources"] if f"resources.{key}" not in known]
    for kind in BACKENDS:
        backend_of(kind, f"{_NAME}.cluster").refuse(_NAME, given)
    if given:
        raise ConfigError(f"{_NAME}.{no_such_setting(given[0], schema)}")


def needs_of(launchers: Sequence[Mapping[str, Any]]) -> list[Need]:
    """Return what each job asks for, from its own `hydra.launcher`. Mistakes raise `ConfigError`.

    What a job asks for, and how the cluster is to treat it, may differ between jobs; where jobs go, and under which
    quota, may not.
    """
    first = launchers[0]
    option_keys = backend_of(first["cluster"], f"{_NAME}.cluster").option_keys
    for number, one in enumerate(launchers):
        for key in one:
            if key not in ("resources", *_all_option_keys()) and _differs(one[key], first[key]):
                raise ConfigError(
                    f"{_NAME}.{key}: {one[key]!r} for job #{number}, {first[key]!r} for job #0: it holds for the whole "
                    "multirun: give one value"
                )
    differing = _differing(launchers, option_keys)
    if differing and first["allocations"]:
        raise ConfigError(
            f"{_NAME}.{differing[0]}: differs between jobs, which several allocations do not allow: leave out "
            f"{_NAME}.allocations, or this"
        )
    return [
        need_of(one["resources"], _options_of(one, option_keys, "setup" in differing) if differing else {})
        for one in launchers
    ]


def launcher_of_all(launchers: Sequence[Mapping[str, Any]]) -> Mapping[str, Any]:
    """Return the settings that make the cluster of all the jobs: what the first one's are, in any job's partition."""
    option_keys = backend_of(launchers[0]["cluster"], f"{_NAME}.cluster").option_keys
    differing = _differing(launchers, option_keys)
    shared = {**launchers[0], **{key: [] if key == "setup" else None for key in differing}}
    if "partition" in differing:
        shared["partition"] = list(dict.fromkeys(one["partition"] for one in launchers if one["partition"]))
    return shared


def without_effect(launcher: Mapping[str, Any]) -> list[str]:
    """Return the settings that are given and that this kind of cluster does not know."""
    known = backend_of(launcher["cluster"], f"{_NAME}.cluster").option_keys
    found = [f"{_NAME}.{key}" for key in launcher if key in _all_option_keys() and key not in known and launcher[key]]
    memory = ("memory_gigabytes", "max_memory_gigabytes") if not known else ()
    if not known and launcher.get("slow_node_factor") is not None:
        found.append(f"{_NAME}.slow_node_factor")
    return [*found, *(f"{_NAME}.resources.{name}" for name in memory if launcher["resources"].get(name))]


def _all_option_keys() -> set[str]:
    """Settings that some kind of cluster understands: on another one they have no effect."""
    return {key for kind in BACKENDS for key in backend_of(kind, f"{_NAME}.cluster").option_keys}


def _differing(launchers: Sequence[Mapping[str, Any]], option_keys: Sequence[str]) -> list[str]:
    first = launchers[0]
    return [key for key in option_keys if any(_differs(one.get(key), first.get(key)) for one in launchers)]


def _differs(value: object, other: object) -> bool:
    """Whether two jobs' values of a setting are two. NaN, which equals nothing, is one: its own check refuses it."""
    return value != other and repr(value) != repr(other)


def _options_of(launcher: Mapping[str, Any], option_keys: Sequence[str], with_setup: bool) -> dict[str, Any]:
    """Return all that is given; lines of `setup` that all jobs have are the cluster's."""
    keys = [key for key in option_keys if key != "setup" or with_setup]
    return {key: launcher[key] for key in keys if launcher.get(key) not in (None, [], {})}


def need_of(resources: Mapping[str, Any], options: Mapping[str, Any] | None = None) -> Need:
    """Return what one job asks for, from its `hydra.launcher.resources`. Mistakes raise `ConfigError`."""
    for name, least in (("nodes", 1), ("gpus_per_node", 0), ("cpus_per_node", 1), ("tasks_per_node", 1)):
        if resources[name] < least:
            raise ConfigError(f"{_NAME}.resources.{name}={resources[name]}: must be at least {least}")
    cpus, tasks = resources["cpus_per_node"], resources["tasks_per_node"]
    if resources["nodes"] > 1 and cpus < tasks:
        raise ConfigError(
            f"{_NAME}.resources.cpus_per_node={cpus}: too few for tasks_per_node={tasks}, since over several nodes "
            f"each task has a CPU of its own: set at least {tasks}"
        )
    minutes = checked_minutes(f"{_NAME}.resources.wall_minutes", resources["wall_minutes"])
    if not minutes > 0:
        raise ConfigError(f"{_NAME}.resources.wall_minutes={resources['wall_minutes']}: must be above zero")
    check_memory(f"{_NAME}.resources", resources.get("memory_gigabytes"), resources.get("max_memory_gigabytes"))
    asked = {**resources, "wall_minutes": minutes}
    return Need(**asked, expected_minutes=_SHARE_EXPECTED * minutes, options=options or {})


def cluster_of(launcher: Mapping[str, Any], needs: Sequence[Need]) -> ClusterConfig:
    """Return the checked cluster for jobs of these needs. Mistakes raise `ConfigError`."""
    kind = launcher["cluster"]
    backend = backend_of(kind, f"{_NAME}.cluster")
    wide = max(need.nodes for need in needs)
    if backend.num_nodes is not None and wide > backend.num_nodes:
        others = " or ".join(other for other in BACKENDS if other != kind)
        raise ConfigError(
            f"{_NAME}.resources.nodes={wide}: {backend.title} is {plural(backend.num_nodes, 'node')}: "
            f"set {_NAME}.cluster={others}"
        )
    known = (*_ALLOCATION_KEYS, *backend.option_keys)
    # The lines of `setup` are the cluster's, whose own come first.
    shared = {key: launcher[key] for key in known if launcher.get(key) is not None and key != "setup"}
    allocations = []
    for name, own in (launcher["allocations"] or {kind: {}}).items():
        if not isinstance(own, Mapping):
            raise ConfigError(f"{_NAME}.allocations.{name}={own!r}: give keys with their values")
        backend.refuse(f"{_NAME}.allocations.{name}", own)
        for key in own:
            if key not in known:
                raise ConfigError(f"{_NAME}.allocations.{name}.{key}: no such setting; known here: {', '.join(known)}")
        quota = {**shared["quota"], **own.get("quota", {})}
        allocations.append(backend.fill_allocation({**shared, **own, "name": name, "quota": quota}, needs))
    values: dict[str, Any] = {"kind": kind, "allocations": allocations, "setup": launcher["setup"]}
    values |= {name: launcher[name] for name in _OF_THE_CLUSTER}
    values["tick_seconds"] = launcher["tick_seconds"] or backend.tick_seconds
    values["device"] = "auto" if any(need.gpus_per_node for need in needs) else "cpu"
    return read_cluster(_NAME, values)
