"""A cluster as its YAML file under conf/cluster/ describes it: allocations, each with its own quota.

What only one kind of cluster understands (`AllocationConfig.options`, `ClusterConfig.controller`) is kept as it was
given; `sweeps.clusters.read_cluster` has the kind's own code check it.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from muloco_runner.config import ConfigError
from sweeps.engine.minutes import read_minutes


@dataclass
class QuotaConfig:
    """The user's own limits on one allocation; None where there is none.

    They count all jobs of the user there, pending ones and those outside the sweep included.
    """

    nodes: int | None = None
    """A job counts every node that it asks for, whole. Two jobs that share a node count as two: where a pending job
    will be placed nobody knows, so the quota is kept however that turns out. Count by `gpus` where nodes are shared."""
    gpus: int | None = None
    jobs: int | None = None
    """Running at once."""
    submitted_jobs: int | None = None
    """Queued and running."""
    gpu_hours: float | None = None
    """GPU-hours of the whole sweep."""


@dataclass
class AllocationConfig:
    """One way into a cluster, and what a job gets there."""

    name: str
    gpus_per_node: int = 0
    """0 for nodes whose CPUs do the work."""
    gpu_gigabytes: float = 80.0
    """Memory of one GPU, in 10^9 bytes."""
    cpus_per_node: int = 1
    whole_nodes: bool = False
    """True where a job gets its nodes alone: small runs are then packed together."""
    max_wall_minutes: float = 24 * 60
    """Longest time to ask for; in a file also as SLURM writes times, in quotes: "1-00:00:00". Unquoted, YAML itself
    reads 1:00:00 as 3600."""
    memory_gigabytes: float | None = None
    """Main memory of each node that a job asks for, in GiB; None takes the cluster's default."""
    max_memory_gigabytes: float | None = None
    """After an attempt that ran out of main memory the next asks for twice as much, up to this; None for no more."""
    price_per_gpu_hour: float | dict[str, float] = 0.0
    """In any unit, the same for all allocations; of one in several partitions also by partition. Of allocations where a
    run would end at the same time the cheapest gets it (`sweeps.engine.decide`)."""
    quota: QuotaConfig = field(default_factory=QuotaConfig)
    options: dict[str, Any] = field(default_factory=dict)
    """Settings that only the cluster's kind knows; in the file they stand beside the others."""

    @property
    def highest_price(self) -> float:
        """What a GPU-hour costs wherever in the allocation a job may run."""
        price = self.price_per_gpu_hour
        return max(price.values(), default=0.0) if isinstance(price, dict) else price


_DEVICES = ("auto", "cpu", "cuda")


@dataclass
class ClusterConfig:
    """One cluster."""

    name: str
    kind: str
    """Which of `sweeps.clusters.BACKENDS`."""
    allocations: list[AllocationConfig]
    tick_seconds: float = 30.0
    """Between two looks at the cluster."""
    device: str = "auto"
    """cpu or cuda; auto takes GPUs where the allocation has them."""
    heartbeat_timeout_minutes: float | None = 30.0
    """A heartbeat older than this means that a run hangs; None for never."""
    submit_confirm_timeout_seconds: float = 120.0
    """A submitted job that the cluster does not list is given up after this; accepted ones show up much sooner."""
    tokens_per_second: float | None = None
    """Speed of one GPU, or one core, with a model of a million parameters: the first estimate of a run's time."""
    gpus_per_run: int | str = "auto"
    """GPUs that a training run gets; auto: as many as the published study gave it, or the fewest more that it fits."""
    successors: bool = True
    """Whether jobs are queued behind those whose nodes they take (`sweeps.engine.successors`), where the cluster can do
    so: a node is then idle for no longer than the scheduler takes, however long a tick is."""
    on_alike_failures: str = "hold"
    """Once three runs of a group have crashed with the same message: `hold` the others, or `go_on`."""
    retries: int = 1
    """A run that has crashed, or whose `setup` has failed, is tried again so many times, counted for each of the two
    since its newest checkpoint; then it is held."""
    max_timeouts: int = 2
    """A run that reaches its time limit so many times without a new checkpoint is held, as is one that so many times
    was asked to stop before it and saved none. Preemptions and failed nodes do not count."""
    stop_after_failures: int | None = None
    """Once so many runs are held for how they ended, none is submitted any more, until someone says `retry`: then
    failures are counted anew. What has been submitted goes on. None for never."""
    slow_node_factor: float | None = None
    """A node where a run is so many times slower than its like on other nodes is avoided by the attempts that come
    next (`sweeps.node_speeds`); what runs there goes on. None for never."""
    setup: list[str] = field(default_factory=list)
    """Lines of shell that a job runs first, such as `module load cuda`."""
    controller: dict[str, Any] = field(default_factory=dict)
    """The job that runs the sweep's controller, for a kind of cluster that can have one."""
    on_event: str | None = None
    """Told of held runs and of the end, where `launch --on-event` does not say otherwise: a command, which gets JSON on
    its input, or an http(s) address. It may hold a secret, so no sweep's folder keeps it."""

    def to_dict(self) -> dict[str, Any]:
        """The values that `from_dict` takes, but for the name, which is kept beside them."""
        values = dataclasses.asdict(self)
        del values["name"], values["on_event"]
        for allocation in values["allocations"]:
            allocation.update(allocation.pop("options"))
        return values

    @classmethod
    def from_dict(cls, name: str, values: Mapping[str, Any]) -> ClusterConfig:
        """A cluster that a sweep's definition holds: it was checked when the definition was written."""
        current = {RENAMED.get(key, key): value for key, value in values.items()}
        allocations = [_allocation(dict(entry)) for entry in current["allocations"]]
        return cls(**{**current, "name": name, "allocations": allocations})

    def allocation(self, name: str) -> AllocationConfig:
        return next(allocation for allocation in self.allocations if allocation.name == name)


ALIKE_FAILURES = ("hold", "go_on")
RENAMED = {"hang_minutes": "heartbeat_timeout_minutes", "doubt_seconds": "submit_confirm_timeout_seconds"}
"""Names of settings before they had their present ones: frozen, so that old definitions and files are read."""
_ALLOCATION_KEYS = tuple(f.name for f in dataclasses.fields(AllocationConfig) if f.name != "options")


def _allocation(values: dict[str, Any]) -> AllocationConfig:
    known = {key: value for key, value in values.items() if key in _ALLOCATION_KEYS}
    options = {key: value for key, value in values.items() if key not in _ALLOCATION_KEYS}
    quota = QuotaConfig(**known.pop("quota", {}))
    return AllocationConfig(**known, quota=quota, options=options)


def parse_cluster(name: str, values: Mapping[str, Any], option_keys: Collection[str]) -> ClusterConfig:
    """The checked cluster of conf/cluster/`name`.yaml, but for what only its kind understands.

    An allocation may have settings named in `option_keys` besides the engine's. Mistakes raise `ConfigError`.
    """
    where = f"cluster={name}"
    fields = dict(values)
    allocations = fields.pop("allocations", None)
    if not isinstance(allocations, Sequence) or isinstance(allocations, str) or not allocations:
        raise ConfigError(f"{where}: allocations: give a list with at least one of them")
    built = [_read_allocation(f"{where}: allocations[{n}]", entry, option_keys) for n, entry in enumerate(allocations)]
    names = [allocation.name for allocation in built]
    if len(set(names)) < len(names):
        raise ConfigError(f"{where}: two allocations have the same name ({', '.join(names)}): give each its own")
    fields["controller"] = fields.get("controller") or {}
    if not isinstance(fields["controller"], Mapping):
        raise ConfigError(f"{where}: controller={fields['controller']!r}: give keys with their values")
    cluster: ClusterConfig = build(ClusterConfig, fields | {"name": name, "allocations": built}, where)
    if not isinstance(cluster.on_event, str | None):
        raise ConfigError(f"{where}: on_event={cluster.on_event!r}: give a command or an http(s) address")
    if cluster.device not in _DEVICES:
        raise ConfigError(f"{where}: device={cluster.device!r}: must be {', '.join(_DEVICES[:-1])} or {_DEVICES[-1]}")
    if cluster.on_alike_failures not in ALIKE_FAILURES:
        allowed = " or ".join(ALIKE_FAILURES)
        raise ConfigError(f"{where}: on_alike_failures={cluster.on_alike_failures!r}: must be {allowed}")
    check_whole_numbers(where, cluster, retries=0, max_timeouts=1)
    if cluster.stop_after_failures is not None:
        check_whole_numbers(where, cluster, stop_after_failures=1)
    factor = cluster.slow_node_factor
    if factor is not None and not (_is_number(factor) and factor > 1):
        raise ConfigError(f"{where}: slow_node_factor={factor!r}: must be a number above 1, or null for never")
    if not isinstance(cluster.successors, bool):
        raise ConfigError(f"{where}: successors={cluster.successors!r}: must be true or false")
    given = cluster.gpus_per_run
    if given != "auto" and not (_is_number(given) and float(given).is_integer() and float(given) >= 1):
        raise ConfigError(f"{where}: gpus_per_run={given!r}: must be a whole number, at least 1, or auto")
    for number_name in ("tick_seconds", *RENAMED.values()):
        value = getattr(cluster, number_name)
        is_off = value is None and number_name == "heartbeat_timeout_minutes"
        if not is_off and (not _is_number(value) or value <= 0):
            raise ConfigError(f"{where}: {number_name}={value}: must be a number above zero")
    return cluster


def _read_allocation(at: str, entry: Any, option_keys: Collection[str]) -> AllocationConfig:
    if not isinstance(entry, Mapping):
        raise ConfigError(f"{at}={entry!r}: give keys with their values")
    quota = build(QuotaConfig, entry.get("quota") or {}, f"{at}.quota")
    for name, value in vars(quota).items():
        if value is not None and not (_is_number(value) and value >= 0):
            raise ConfigError(f"{at}.quota.{name}={value}: must be a number, zero or more, or left out")
        if value is not None and name != "gpu_hours" and value != int(value):
            raise ConfigError(f"{at}.quota.{name}={value}: must be a whole number: only gpu_hours takes part of one")
    for key in entry:
        if key not in (*_ALLOCATION_KEYS, *option_keys):
            known = ", ".join([*_ALLOCATION_KEYS, *option_keys])
            raise ConfigError(f"{at}.{key}: no such setting; known here: {known}")
    if "name" not in entry:
        raise ConfigError(f"{at}: name must be given")
    longest = entry.get("max_wall_minutes", 24 * 60)
    minutes = checked_minutes(f"{at}.max_wall_minutes", longest)
    price = entry.get("price_per_gpu_hour", 0.0)
    for one in price.values() if isinstance(price, Mapping) else [price]:
        if not _is_number(one) or one < 0:
            raise ConfigError(f"{at}.price_per_gpu_hour={price}: give a number, zero or more, or one by partition")
    allocation = _allocation({**entry, "quota": vars(quota), "max_wall_minutes": minutes})
    least, most = allocation.memory_gigabytes, allocation.max_memory_gigabytes
    check_memory(at, least, most)
    check_numbers(at, allocation, gpus_per_node=0, gpu_gigabytes=1, cpus_per_node=1, max_wall_minutes=1)
    return allocation


def checked_minutes(at: str, value: object) -> float:
    """Return the minutes of a setting. Anything that is no time raises `ConfigError`."""
    minutes = read_minutes(value)
    if minutes is None:
        raise ConfigError(f'{at}={value}: give minutes, or a time as SLURM writes it, in quotes, such as "1-00:00:00"')
    return minutes


def check_memory(at: str, gigabytes: Any, most: Any) -> None:
    """Raise `ConfigError` for an impossible pair of memory_gigabytes and max_memory_gigabytes."""
    for name, value in (("memory_gigabytes", gigabytes), ("max_memory_gigabytes", most)):
        if value is not None and not (_is_number(value) and value > 0):
            raise ConfigError(f"{at}.{name}={value}: must be a number of GiB above zero, or left out")
    if most is not None and gigabytes is None:
        raise ConfigError(f"{at}.max_memory_gigabytes={most}: has no effect without memory_gigabytes: give that too")
    if most is not None and most < gigabytes:
        raise ConfigError(f"{at}.max_memory_gigabytes={most}: less than memory_gigabytes={gigabytes}: raise it")


def check_numbers(at: str, config: object, **least: float) -> None:
    for name, bound in least.items():
        value = getattr(config, name)
        if not _is_number(value) or value < bound:
            raise ConfigError(f"{at}.{name}={value}: must be a number, at least {bound}")


def check_whole_numbers(at: str, config: object, **least: int) -> None:
    for name, bound in least.items():
        value = getattr(config, name)
        if not isinstance(value, int) or isinstance(value, bool) or value < bound:
            raise ConfigError(f"{at}: {name}={value!r}: must be a whole number, at least {bound}")


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


def build(cls: type, values: Any, where: str) -> Any:
    """`cls(**values)`; a key that is unknown or missing raises `ConfigError`."""
    if not isinstance(values, Mapping):
        raise ConfigError(f"{where}={values!r}: give keys with their values")
    known = {f.name: f for f in dataclasses.fields(cls)}
    for key in values:
        if key not in known:
            raise ConfigError(f"{where}.{key}: no such setting; known here: {', '.join(known)}")
    missing = [
        name
        for name, f in known.items()
        if name not in values and f.default is dataclasses.MISSING and f.default_factory is dataclasses.MISSING
    ]
    if missing:
        raise ConfigError(f"{where}: {', '.join(missing)} must be given")
    return cls(**values)
