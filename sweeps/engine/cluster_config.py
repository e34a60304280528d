"""A cluster as its YAML file under conf/cluster/ describes it: allocations, each with its own quota."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from muloco_runner.config import ConfigError

KINDS = ("local", "slurm")


@dataclass
class QuotaConfig:
    """The user's own limits on one allocation; None where there is none."""

    nodes: int | None = None
    gpus: int | None = None
    jobs: int | None = None
    """Running at once."""
    submitted_jobs: int | None = None
    """Queued and running."""
    gpu_hours: float | None = None
    """Of the whole sweep."""


@dataclass
class AllocationConfig:
    """One way into a cluster: partition, account and QOS, and what a job gets there."""

    name: str
    partition: str | None = None
    account: str | None = None
    qos: str | None = None
    gpus_per_node: int = 0
    """0 for nodes whose CPUs do the work."""
    gpu_gigabytes: float = 80.0
    """Memory of one GPU, in 10^9 bytes."""
    cpus_per_node: int = 1
    whole_nodes: bool = False
    """True where a job gets its nodes alone: small runs are then packed together."""
    max_wall_minutes: float = 24 * 60
    """Longest time to ask for."""
    quota: QuotaConfig = field(default_factory=QuotaConfig)
    sbatch: dict[str, Any] = field(default_factory=dict)
    """Further options of sbatch, by their long names."""


@dataclass
class ControllerConfig:
    """Where `launch --controller slurm` runs the sweep's controller: one core, no GPU. None takes the first
    allocation's, which is for clusters that share their nodes."""

    partition: str | None = None
    account: str | None = None
    qos: str | None = None
    wall_minutes: float = 24 * 60
    """Its successor, queued from the start, goes on after it."""
    memory_gigabytes: float = 2.0
    sbatch: dict[str, Any] = field(default_factory=dict)
    """Further options of sbatch, by their long names."""


@dataclass
class ClusterConfig:
    """One cluster."""

    name: str
    kind: str
    allocations: list[AllocationConfig]
    tick_seconds: float = 30.0
    """Between two looks at the cluster."""
    device: str = "auto"
    """cpu or cuda; auto takes GPUs where the allocation has them."""
    hang_minutes: float = 30.0
    """A heartbeat older than this means that a run hangs."""
    doubt_seconds: float = 120.0
    """A job that was sent for and that the cluster does not know of is given up after this; accepted ones show up much
    sooner."""
    tokens_per_second: float | None = None
    """Of one GPU, or one core, at a model of a million parameters: the first guess at a run's time."""
    gpus_per_run: int | str = "auto"
    """GPUs that a training run gets; auto: as many as the published study gave it, or the fewest more that it fits."""
    setup: list[str] = field(default_factory=list)
    """Lines of shell that a job runs first, such as `module load cuda`."""
    controller: ControllerConfig = field(default_factory=ControllerConfig)
    on_event: str | None = None
    """Told of held runs and of the end, where `launch --on-event` does not say otherwise: a command, which gets JSON on
    its input, or an http(s) address. It may hold a secret, so no sweep's folder keeps it."""

    def to_dict(self) -> dict[str, Any]:
        """As a sweep's definition keeps it, beside the name."""
        values = dataclasses.asdict(self)
        del values["name"], values["on_event"]
        return values

    def allocation(self, name: str) -> AllocationConfig:
        return next(allocation for allocation in self.allocations if allocation.name == name)


def read_cluster(name: str, values: Any) -> ClusterConfig:
    """The checked cluster of conf/cluster/`name`.yaml. Mistakes raise `ConfigError`."""
    where = f"cluster={name}"
    if not isinstance(values, Mapping):
        raise ConfigError(f"{where}: holds no keys; name a file under conf/cluster/")
    fields = dict(values)
    allocations = fields.pop("allocations", None)
    if not isinstance(allocations, Sequence) or isinstance(allocations, str) or not allocations:
        raise ConfigError(f"{where}: allocations: give a list with at least one of them")
    built = [_read_allocation(f"{where}: allocations[{n}]", entry) for n, entry in enumerate(allocations)]
    names = [allocation.name for allocation in built]
    if len(set(names)) < len(names):
        raise ConfigError(f"{where}: two allocations are named alike ({', '.join(names)}): name them apart")
    controller = _build(ControllerConfig, fields.pop("controller", None) or {}, f"{where}: controller")
    _check_numbers(f"{where}: controller", controller, wall_minutes=1, memory_gigabytes=0.1)
    fields |= {"name": name, "allocations": built, "controller": controller}
    cluster: ClusterConfig = _build(ClusterConfig, fields, where)
    if cluster.kind not in KINDS:
        raise ConfigError(f"{where}: kind={cluster.kind!r}: must be one of {', '.join(KINDS)}")
    if not isinstance(cluster.on_event, str | None):
        raise ConfigError(f"{where}: on_event={cluster.on_event!r}: give a command or an http(s) address")
    given = cluster.gpus_per_run
    if given != "auto" and not (_is_number(given) and float(given).is_integer() and float(given) >= 1):
        raise ConfigError(f"{where}: gpus_per_run={given!r}: must be a whole number, at least 1, or auto")
    for number_name in ("tick_seconds", "hang_minutes", "doubt_seconds"):
        value = getattr(cluster, number_name)
        if not _is_number(value) or value <= 0:
            raise ConfigError(f"{where}: {number_name}={value}: must be a number above zero")
    return cluster


def _read_allocation(at: str, entry: Any) -> AllocationConfig:
    if not isinstance(entry, Mapping):
        raise ConfigError(f"{at}={entry!r}: give keys with their values")
    quota = _build(QuotaConfig, entry.get("quota") or {}, f"{at}.quota")
    for name, value in vars(quota).items():
        if value is not None and not (_is_number(value) and value >= 0):
            raise ConfigError(f"{at}.quota.{name}={value}: must be a number, zero or more, or left out")
    allocation: AllocationConfig = _build(AllocationConfig, {**entry, "quota": quota}, at)
    _check_numbers(at, allocation, gpus_per_node=0, gpu_gigabytes=1, cpus_per_node=1, max_wall_minutes=1)
    return allocation


def _check_numbers(at: str, config: object, **least: float) -> None:
    for name, bound in least.items():
        value = getattr(config, name)
        if not _is_number(value) or value < bound:
            raise ConfigError(f"{at}.{name}={value}: must be a number, at least {bound}")


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


def _build(cls: type, values: Any, where: str) -> Any:
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
