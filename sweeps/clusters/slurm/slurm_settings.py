"""Settings of a cluster's file that only SLURM understands: submitit's parameters by their names, and the controller's
job.

`SlurmOptions` are the parameters that users set, `REFUSED_PARAMETERS` those that the engine decides. Together they are
all that submitit knows.
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from muloco_runner.config import ConfigError
from sweeps.clusters.slurm.sbatch_options import (
    REFUSED,
    REFUSED_OF_CONTROLLER,
    long_name,
    sbatch_values,
    text_value,
)
from sweeps.engine.cluster import JobRequest
from sweeps.engine.cluster_config import AllocationConfig, ClusterConfig, build, check_numbers, checked_minutes


@dataclass
class SlurmOptions:
    """Settings of one allocation, by submitit's names; None takes SLURM's default."""

    partition: str | None = None
    account: str | None = None
    qos: str | None = None
    constraint: str | None = None
    """Features of nodes, such as `h100&ib`."""
    exclude: str | None = None
    """Nodes to avoid, besides those that failed a run."""
    nodelist: str | None = None
    gres: str | None = None
    """Generic resources per node. A `gpu` without a number, such as `gpu:h100`, gets the job's number of GPUs."""
    mem: str | None = None
    """Memory per node in sbatch's notation. At most one of the four is given."""
    mem_gb: float | None = None
    """Memory per node, in GiB."""
    mem_per_cpu: str | None = None
    mem_per_gpu: str | None = None
    exclusive: str | bool | None = None
    comment: str | None = None
    wckey: str | None = None
    mail_type: str | None = None
    mail_user: str | None = None
    dependency: str | None = None
    signal_delay_s: int = 120
    """A job is sent SIGUSR1 this long before its time limit, or up to a minute earlier."""
    setup: list[str] = field(default_factory=list)
    """Lines of shell before the work, after the cluster's own; the first that fails ends the job as `setup failed`."""
    teardown: list[str] = field(default_factory=list)
    """Lines of shell after the work, which keep its exit code."""
    python: str | None = None
    """Shell command that starts Python on the nodes, such as `apptainer exec image.sif python`; None takes this one."""
    srun_args: list[str] = field(default_factory=list)
    """Arguments of srun, which starts the work where there are any: `--container-image=...`."""
    use_srun: bool | None = None
    """Whether srun starts the work; None where `srun_args` are given."""
    additional_parameters: dict[str, Any] = field(default_factory=dict)
    """Further options of sbatch, by their long names. `sbatch` is another name of this setting."""


_FIELDS = tuple(f.name for f in dataclasses.fields(SlurmOptions))
_ALIAS = "sbatch"
"""`additional_parameters` before it had submitit's name."""
OPTION_KEYS = (*_FIELDS, _ALIAS)
_LINES = ("setup", "teardown", "srun_args")
_NO_TEXT = (*_LINES, "mem_gb", "exclusive", "signal_delay_s", "python", "use_srun", "additional_parameters")
_TEXTS = tuple(name for name in _FIELDS if name not in _NO_TEXT)
_NO_LISTS = ("account", "qos", "constraint", "comment", "wckey", "mem", "mem_per_cpu", "mem_per_gpu")
_MEMORY = ("mem", "mem_gb", "mem_per_cpu", "mem_per_gpu")
_LIFTED = {name.replace("_", "-"): name for name in (*_TEXTS, "exclusive")}
"""Options of sbatch that are settings of their own."""
REFUSED_PARAMETERS: dict[str, str] = {
    **{name.replace("-", "_"): advice for name, advice in REFUSED.items() if name not in ("gpus-per-node", "wait")},
    "timeout_min": REFUSED["time"],
    "tasks_per_node": REFUSED["ntasks-per-node"],
    "num_gpus": REFUSED["gpus"],
    "array_parallelism": REFUSED["array"],
    "map_count": REFUSED["array"],
    "max_num_timeout": REFUSED["requeue"],
    "stderr_to_stdout": REFUSED["output"],
    "folder": REFUSED["output"],
    "submitit_folder": REFUSED["output"],
    "command": REFUSED["wrap"],
    "max_pickle_size_gb": "what is pickled is a function's name and that of a file: leave it out",
}
"""submitit's parameters, and its executor's, that the engine decides itself: what to use instead."""


def options_of(allocation: AllocationConfig) -> SlurmOptions:
    """Return the allocation's settings in sbatch's form. Mistakes raise `ConfigError`."""
    values = {key: value for key, value in allocation.options.items() if value is not None}
    further = _lifted(values, _further_options(values))
    options = SlurmOptions(additional_parameters=dict(sbatch_values(further)))
    for name, value in values.items():
        setattr(options, name, _checked(name, value))
    if sum(getattr(options, name) is not None for name in _MEMORY) > 1:
        raise ConfigError(f"{', '.join(_MEMORY)}: sbatch takes one of them")
    if allocation.memory_gigabytes is not None and any(getattr(options, name) is not None for name in _MEMORY):
        raise ConfigError(
            f"memory_gigabytes={allocation.memory_gigabytes:g}: {', '.join(_MEMORY)} say it too: keep one"
        )
    if options.srun_args and options.use_srun is False:
        raise ConfigError("use_srun=False: srun_args are given, which need srun: remove one of the two")
    _check_gpus(options.gres, allocation.gpus_per_node)
    return options


def options_of_job(request: JobRequest, allocation: AllocationConfig) -> SlurmOptions:
    """Return the settings of a job: its work's own, where that has some, else the allocation's."""
    own = request.attempts[0].work.need.options
    return options_of(dataclasses.replace(allocation, options=dict(own)) if own else allocation)


def _further_options(values: dict[str, Any]) -> dict[str, Any]:
    """Take the two names of one setting out of `values` and return their options by long names."""
    further: dict[str, Any] = {}
    for setting in ("additional_parameters", _ALIAS):
        given = values.pop(setting, {})
        if not isinstance(given, Mapping):
            raise ConfigError(f"{setting}={given!r}: give options with values")
        for key, value in given.items():
            try:
                name = long_name(key, REFUSED, _LIFTED)
            except ConfigError as error:
                raise ConfigError(f"{setting}.{error}") from None
            if name in further:
                raise ConfigError(f"{setting}.{key}: {name} is given twice")
            further[name] = value
    return further


def _lifted(values: dict[str, Any], further: Mapping[str, Any]) -> dict[str, Any]:
    """Move options that are settings of their own to `values`; return the others."""
    for name, setting in _LIFTED.items():
        if further.get(name) is not None:
            if setting in values:
                raise ConfigError(f"{setting}={values[setting]!r}: given twice, as an option of sbatch too: keep one")
            values[setting] = further[name]
    return {name: value for name, value in further.items() if name not in _LIFTED}


def _checked(name: str, value: Any) -> Any:
    """Return the value of a setting in the form that `SlurmOptions` holds; raises `ConfigError`."""
    if name in _TEXTS:
        return text_value(value, name, takes_list=name not in _NO_LISTS)
    if name == "exclusive":
        return (value or None) if isinstance(value, bool) else text_value(value, name, takes_list=False)
    is_good, allowed = _CHECKS[name]
    if not is_good(value):
        raise ConfigError(f"{name}={value!r}: give {allowed}")
    return list(value) if name in _LINES else value


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and value > 0


def _is_lines(value: Any) -> bool:
    return isinstance(value, Sequence) and not isinstance(value, str) and all(isinstance(line, str) for line in value)


_CHECKS: dict[str, tuple[Callable[[Any], bool], str]] = {
    **dict.fromkeys(_LINES, (_is_lines, "a list of lines")),
    "mem_gb": (_is_number, "a number above zero"),
    "signal_delay_s": (
        lambda value: _is_number(value) and isinstance(value, int) and value <= 65535, "whole seconds, 1 to 65535",
    ),
    "use_srun": (lambda value: isinstance(value, bool), "true or false"),
    "python": (
        lambda value: isinstance(value, str) and bool(value.strip()) and "\n" not in value, "one line of shell"
    ),
}  # fmt: skip


def _check_gpus(gres: str | None, gpus_per_node: int) -> None:
    """Refuse a number of GPUs below what a job may be planned with."""
    for item in (gres or "").split(","):
        words = item.split(":")
        if words[0] == "gpu" and words[-1].isdigit() and int(words[-1]) < gpus_per_node:
            raise ConfigError(
                f"gres={gres}: fewer GPUs than gpus_per_node={gpus_per_node}: leave the number out, "
                "each job adds its own"
            )


def gres_of(options: SlurmOptions, gpus_per_node: int) -> str | None:
    """Return what a job with that many GPUs a node asks for."""
    items = [item for item in (options.gres or "").split(",") if item]
    asked = [item for item in items if item.split(":")[0] == "gpu"]
    if not gpus_per_node:
        return ",".join(item for item in items if item not in asked or re.search(r":\d+$", item)) or None
    counted = [item if item not in asked or re.search(r":\d+$", item) else f"{item}:{gpus_per_node}" for item in items]
    return ",".join(counted if asked else [*counted, f"gpu:{gpus_per_node}"])


@dataclass
class ControllerConfig:
    """Where `launch --controller slurm` runs the sweep's controller: one core, no GPU. None takes the first
    allocation's, which is for clusters that share their nodes."""

    partition: str | None = None
    account: str | None = None
    qos: str | None = None
    wall_minutes: float = 24 * 60
    """Its successor, queued from the start, continues after it."""
    memory_gigabytes: float = 2.0
    sbatch: dict[str, Any] = field(default_factory=dict)
    """Further options of sbatch, by their long names."""


def controller_of(cluster: ClusterConfig) -> ControllerConfig:
    """Return the settings of the controller's job, options in sbatch's form. Mistakes raise `ConfigError`."""
    where = f"cluster={cluster.name}: controller"
    controller: ControllerConfig = build(ControllerConfig, cluster.controller, where)
    controller.wall_minutes = checked_minutes(f"{where}.wall_minutes", controller.wall_minutes)
    check_numbers(where, controller, wall_minutes=1, memory_gigabytes=0.1)
    own = {name: getattr(controller, name) for name in ("partition", "account", "qos")}
    try:
        given = {long_name(key, REFUSED_OF_CONTROLLER, own): value for key, value in (controller.sbatch or {}).items()}
        twice = [name for name in own if own[name] is not None and given.get(name) is not None]
        if twice:
            raise ConfigError(f"{twice[0]}: given twice: keep one")
        texts: dict[str, Any] = {name: text_value(given.pop(name, own[name]), name) for name in own}
        return dataclasses.replace(controller, **texts, sbatch=dict(sbatch_values(given)))
    except ConfigError as error:
        raise ConfigError(f"{where}.sbatch.{error}") from None


def _check_prices(allocation: AllocationConfig, partition: str | None) -> None:
    prices = allocation.price_per_gpu_hour
    if isinstance(prices, dict) and set(prices) != set((partition or "").split(",")):
        raise ConfigError(f"price_per_gpu_hour={prices}: give one number, or one for each of partition={partition}")


def check_settings(cluster: ClusterConfig) -> ClusterConfig:
    """Return the same cluster. Mistakes in what only SLURM understands raise `ConfigError`."""
    try:
        _checked("setup", cluster.setup)
    except ConfigError as error:
        raise ConfigError(f"cluster={cluster.name}: {error}") from None
    for allocation in cluster.allocations:
        try:
            _check_prices(allocation, options_of(allocation).partition)
        except ConfigError as error:
            raise ConfigError(f"cluster={cluster.name}: {allocation.name}.{error}") from None
    controller_of(cluster)
    return cluster
