"""The file under conf/cluster/ of the SLURM cluster that this is: text from what SLURM reports, a pure function."""

from __future__ import annotations

from collections.abc import Sequence

from muloco_runner.config import ConfigError
from sweeps.clusters.slurm.accounting import Accounting, NodeKind
from sweeps.clusters.slurm.limits import limits_of, mistake_in
from sweeps.engine.cluster import Limit, Resource
from sweeps.engine.cluster_config import AllocationConfig

_DAY = 1440.0


def cluster_file(accounting: Accounting) -> str:
    """Return the text of the file: a partition with GPUs that this user may use as its allocation (SLURM's default
    one where it has any, else the one with the most), all others as comments. No partition to use raises `ConfigError`.
    """
    found = {name: _usable(name, accounting) for name in accounting.partitions}
    usable = {name: way for name, way in found.items() if not isinstance(way, str)}
    closed = [f"  # not {name}: {why}" for name, why in found.items() if isinstance(why, str)]
    if not usable:
        raise ConfigError(f"cluster {accounting.cluster}: no partition is open to user {accounting.user}: {found}")
    chosen = max(usable, key=lambda name: _preference(name, accounting))
    lines = [
        f"# SLURM cluster {accounting.cluster} as `muloco-sweep init` found it for user {accounting.user}.",
        "# What a key means, and more of them: docs/clusters.md. null is SLURM's own default.",
        "kind: slurm",
        f"device: {'cuda' if _total_gpus(chosen, accounting) else 'cpu'}",
        "tick_seconds: 30",
        "allocations:",
        *_entry(usable[chosen], accounting),
    ]
    for name, allocation in usable.items():
        if name != chosen:
            lines += ["  # Another way in; several allocations may stand side by side:"]
            lines += [f"  # {line.removeprefix('  ')}" for line in _entry(allocation, accounting)]
    lines += [*closed, "gpus_per_run: auto         # GPUs of every run; auto gives larger models more"]
    lines += ["controller: {partition: null}  # of `launch --controller slurm`, one core: name one with shared nodes"]
    lines += ['setup: []                  # shell lines to run before each job, such as "module load cuda"']
    return "\n".join(lines) + "\n"


def _usable(partition: str, accounting: Accounting) -> AllocationConfig | str:
    """Return the partition with an account and a QOS by which the user may use it, or why there are none."""
    grants = [grant for grant in accounting.grants if grant.partition in ("", partition)]
    ways = [
        (None, None),
        *((grant.account, qos or None) for grant in grants for qos in (grant.default_qos, *grant.qos)),
    ]
    kinds = _kinds(partition, accounting)
    why = ""
    for account, qos in dict.fromkeys(ways):
        options = {key: value for key, value in (("account", account), ("qos", qos)) if value is not None}
        most_gpus = max((kind.gpus for kind in kinds), default=0)
        alike = [kind for kind in kinds if kind.gpus == most_gpus]
        allocation = AllocationConfig(
            name=partition,
            gpus_per_node=most_gpus,
            cpus_per_node=min((kind.cpus for kind in alike), default=1),
            whole_nodes=accounting.partitions[partition].get("OverSubscribe", "") == "EXCLUSIVE",
            options={"partition": partition, **options},
        )
        mistake = mistake_in(allocation, accounting)
        if mistake is None:
            return allocation
        why = why or mistake
    return why


def _entry(allocation: AllocationConfig, accounting: Accounting) -> list[str]:
    limits = limits_of(allocation, accounting)
    minutes = _least(limits, Resource.WALL_MINUTES)
    nodes = _least(limits, Resource.NODES)
    kinds = ", ".join(
        f"{kind.count} of {kind.cpus} cores, {kind.megabytes} MB, {kind.gpus} GPUs"
        for kind in _kinds(allocation.name, accounting)
    )
    accounts = sorted({grant.account for grant in accounting.grants})
    qos = sorted({name for grant in accounting.grants for name in grant.qos if name})
    lines = [
        f"  - name: {_quoted(allocation.name)}  # nodes: {kinds or 'sinfo names none'}",
        f"    partition: {_quoted(allocation.name)}",
        f"    account: {_quoted(allocation.options.get('account'))}  # yours: {', '.join(accounts) or 'not kept'}",
        f"    qos: {_quoted(allocation.options.get('qos'))}  # yours: {', '.join(qos) or 'not kept'}",
        f"    gpus_per_node: {allocation.gpus_per_node}",
    ]
    if allocation.gpus_per_node:
        lines += ["    gpu_gigabytes: 80  # of one GPU: SLURM does not say, so set it; what cannot fit is refused"]
    lines += [
        f"    cpus_per_node: {allocation.cpus_per_node}",
        f"    whole_nodes: {str(allocation.whole_nodes).lower()}  # true: a job gets its nodes alone, small runs share",
        f"    max_wall_minutes: {_DAY if minutes is None else minutes:g}"
        f"  # {'no limit found' if minutes is None else 'the limit found'}",
        f"    quota: {{nodes: {'null' if nodes is None else f'{nodes:g}'}}}"
        "  # also jobs, submitted_jobs, gpus, gpu_hours; null leaves SLURM's own limits",
    ]
    return [*lines, *(f"    # found: {limit.name} {limit.most:g}" for limit in limits)]


def _kinds(partition: str, accounting: Accounting) -> Sequence[NodeKind]:
    return [kind for kind in accounting.nodes if kind.partition == partition]


def _total_gpus(partition: str, accounting: Accounting) -> int:
    return sum(kind.count * kind.gpus for kind in _kinds(partition, accounting))


def _preference(partition: str, accounting: Accounting) -> tuple[bool, bool, int]:
    """One with GPUs before one without, then SLURM's default, then the most GPUs."""
    gpus = _total_gpus(partition, accounting)
    return gpus > 0, accounting.partitions[partition].get("Default") == "YES", gpus


def _least(limits: Sequence[Limit], resource: Resource) -> float | None:
    return min((limit.most for limit in limits if limit.resource is resource), default=None)


def _quoted(name: str | None) -> str:
    """A name as YAML reads it: quoted where it would read another thing, such as `on` or 1e3."""
    return "null" if name is None else f"'{name}'" if "'" not in name else f'"{name}"'
