"""The limits that SLURM itself sets on an allocation, with what is used of each: pure functions of what it reports.

Group limits (`Grp*`) bind at every level: the partition's QOS, the job's QOS, the association and each of its parents.
Of the others the first level that sets one decides, in that order, as in SLURM's own resource-limit rules
(https://slurm.schedmd.com/resource_limits.html); partitions bind besides.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace

from sweeps.clusters.slurm.accounting import Accounting, Association, Fields, NodeKind, Qos
from sweeps.clusters.slurm.slurm_settings import SlurmOptions, options_of
from sweeps.engine.cluster import Limit, Resource
from sweeps.engine.cluster_config import AllocationConfig
from sweeps.engine.minutes import parse_minutes


def limits_of(allocation: AllocationConfig, accounting: Accounting) -> list[Limit]:
    """Every limit of SLURM's on a job of this allocation; `used_by_others` is what all use, this sweep too.

    Of an allocation that names several partitions each limit says of which it is.
    """
    names = partitions_of(allocation, accounting)
    if len(names) == 1:
        return _limits_in(names[0], allocation, accounting)
    return [replace(limit, place=name) for name in names for limit in _limits_in(name, allocation, accounting)]


def _limits_in(name: str, allocation: AllocationConfig, accounting: Accounting) -> list[Limit]:
    """Those on a job that runs in one partition."""
    partition = accounting.partitions.get(name, {})
    account = account_of(allocation, accounting)
    chain = list(_upward(account, partition.get("PartitionName", ""), accounting))
    names = [partition.get("QoS", "N/A"), qos_of(allocation, accounting)]
    levels = [accounting.qos[name] for name in dict.fromkeys(names) if name in accounting.qos]
    limits: list[Limit] = []
    for qos in levels:
        limits += _group_limits(f"QOS {qos.name}", qos.fields)
    for association in chain:
        limits += _group_limits(_name(association), association.fields)
    # The first level that sets a limit of this kind hides the later ones.
    single: dict[tuple[Resource, bool], Limit] = {}
    for limit in _single_limits(levels, chain, account, accounting.uid):
        of_account = re.search(r"PA\b", limit.name) is not None
        single.setdefault((limit.resource, of_account), limit)
    kinds = [kind for kind in accounting.nodes if kind.partition == name]
    at_nodes = _node_limits(name, partition, kinds, options_of(allocation))
    return [*limits, *single.values(), *_partition_limits(partition), *at_nodes]


def partition_of(allocation: AllocationConfig, accounting: Accounting) -> str | None:
    """The one it names, or SLURM's default."""
    named = options_of(allocation).partition
    if named is not None:
        return named
    return next((name for name, row in accounting.partitions.items() if row.get("Default") == "YES"), None)


def partitions_of(allocation: AllocationConfig, accounting: Accounting) -> list[str]:
    """Those that a job may run in, in the order they are named."""
    return (partition_of(allocation, accounting) or "").split(",")


def account_of(allocation: AllocationConfig, accounting: Accounting) -> str:
    named = options_of(allocation).account
    if named is not None:
        return named
    mine = [a for a in accounting.associations if a.user == accounting.user]
    return next((a.account for a in mine if a.is_default), "")


def qos_of(allocation: AllocationConfig, accounting: Accounting) -> str:
    named = options_of(allocation).qos
    if named is not None:
        return named
    account = account_of(allocation, accounting)
    return next((grant.default_qos for grant in accounting.grants if grant.account == account), "")


def mistake_in(allocation: AllocationConfig, accounting: Accounting) -> str | None:
    """What is wrong with the allocation's partitions, account or QOS for this user, and what there is instead.

    Of several partitions one must be right, and all must exist.
    """
    partitions = partitions_of(allocation, accounting)
    for partition in partitions:
        if partition not in accounting.partitions:
            known = ", ".join(accounting.partitions)
            return f"partition={partition or None}: this cluster has no such partition; there are {known}"
    mistakes = [_mistake_in(partition, allocation, accounting) for partition in partitions]
    found = [mistake for mistake in mistakes if mistake is not None]
    return "; ".join(found) if len(found) == len(partitions) else None


def _mistake_in(partition: str, allocation: AllocationConfig, accounting: Accounting) -> str | None:
    row = accounting.partitions[partition]
    grants = [grant for grant in accounting.grants if grant.partition in ("", partition)]
    if accounting.grants and not grants:
        return f"partition={partition}: user {accounting.user} has no account there; ask the administrators"
    accounts = sorted({grant.account for grant in grants})
    account = account_of(allocation, accounting)
    if accounts and account not in accounts:
        return f"account={account}: not one of user {accounting.user}'s accounts; they are {', '.join(accounts)}"
    allowed = _allowed(row.get("AllowAccounts", "ALL"))
    if allowed and account not in allowed:
        return f"account={account}: partition {partition} is open to {', '.join(allowed)} only; name another partition"
    if account in _allowed(row.get("DenyAccounts", "ALL")):
        return f"account={account}: partition {partition} is closed to it; name another partition"
    return _mistake_in_qos(allocation, accounting, account, partition)


def _mistake_in_qos(allocation: AllocationConfig, accounting: Accounting, account: str, partition: str) -> str | None:
    qos = qos_of(allocation, accounting)
    granted = sorted({name for grant in accounting.grants if grant.account == account for name in grant.qos if name})
    if qos and granted and qos not in granted:
        return f"qos={qos}: account {account} of user {accounting.user} may use {', '.join(granted)}"
    row = accounting.partitions[partition]
    allowed = _allowed(row.get("AllowQos", "ALL"))
    if allowed and qos not in allowed:
        return f"qos={qos or 'none'}: partition {partition} is open to QOS {', '.join(allowed)} only; set qos"
    if qos in _allowed(row.get("DenyQos", "ALL")):
        return f"qos={qos}: partition {partition} is closed to it; set another qos"
    kinds = [kind.gpus for kind in accounting.nodes if kind.partition == partition]
    gpus = max(kinds) if kinds else _partition_gpus(row)
    if gpus is not None and allocation.gpus_per_node > gpus:
        return f"gpus_per_node={allocation.gpus_per_node}: nodes of partition {partition} have {gpus:g}; lower it"
    return None


def _allowed(text: str) -> list[str]:
    return [] if text in ("ALL", "(null)", "N/A", "") else text.split(",")


def _partition_gpus(row: Fields) -> float | None:
    """GPUs of a node on average; None where the partition says nothing of GPUs."""
    amounts = dict(item.partition("=")[::2] for item in row.get("TRES", "").split(","))
    nodes, gpus = amounts.get("node"), amounts.get("gres/gpu")
    return float(gpus) / float(nodes) if gpus and nodes and float(nodes) else None


def _upward(account: str, partition: str, accounting: Accounting) -> Iterator[Association]:
    """The user's association, then its account's, its parent's, up to the root."""
    mine = [a for a in accounting.associations if a.account == account and a.user == accounting.user]
    mine.sort(key=lambda a: a.partition != partition)
    yield from [a for a in mine if a.partition in ("", partition)][:1]
    by_account = {a.account: a for a in accounting.associations if not a.user}
    seen: set[str] = set()
    while account in by_account and account not in seen:
        seen.add(account)
        yield by_account[account]
        account = by_account[account].parent


def _name(association: Association) -> str:
    return f"user {association.user}" if association.user else f"account {association.account}"


_TRES = {"node": Resource.NODES, "cpu": Resource.CPUS}
_TRES_PER_JOB = {"node": Resource.NODES_PER_JOB}


def _group_limits(owner: str, fields: Fields) -> Iterator[Limit]:
    yield from _counted(owner, fields, "GrpJobs", Resource.JOBS)
    yield from _counted(owner, fields, "GrpSubmitJobs", Resource.SUBMITTED)
    yield from _tres(owner, fields, "GrpTRES", _TRES, Resource.GPUS)
    for limit in _tres(owner, fields, "GrpTRESMins", {}, Resource.GPU_HOURS):
        yield Limit(limit.name, limit.resource, limit.most / 60, limit.used_by_others / 60)


def _single_limits(levels: Sequence[Qos], chain: Sequence[Association], account: str, uid: int) -> Iterator[Limit]:
    """Limits of one user, one account or one job, the level that decides first."""
    for qos in levels:
        owner = f"QOS {qos.name}"
        for ending, fields in (("PU", qos.users.get(str(uid), {})), ("PA", qos.accounts.get(account, {}))):
            yield from _counted(owner, fields, f"MaxJobs{ending}", Resource.JOBS)
            yield from _counted(owner, fields, f"MaxSubmitJobs{ending}", Resource.SUBMITTED)
            yield from _tres(owner, fields, f"MaxTRES{ending}", _TRES, Resource.GPUS)
        yield from _per_job(owner, qos.fields)
    for association in chain:
        owner = _name(association)
        if association.user:
            yield from _counted(owner, association.fields, "MaxJobs", Resource.JOBS, "GrpJobs")
            yield from _counted(owner, association.fields, "MaxSubmitJobs", Resource.SUBMITTED, "GrpSubmitJobs")
        yield from _per_job(owner, association.fields)


def _per_job(owner: str, fields: Fields) -> Iterator[Limit]:
    yield from _tres(owner, fields, "MaxTRESPJ", _TRES_PER_JOB, Resource.GPUS_PER_JOB)
    yield from _counted(owner, fields, "MaxWallPJ", Resource.WALL_MINUTES)


def _partition_limits(row: Fields) -> Iterator[Limit]:
    owner = f"partition {row.get('PartitionName', '')}"
    minutes = parse_minutes(row.get("MaxTime", ""))
    if minutes is not None:
        yield Limit(f"{owner} MaxTime", Resource.WALL_MINUTES, minutes)
    for key, resource in (("MaxNodes", Resource.NODES_PER_JOB), ("TotalNodes", Resource.NODES_THERE)):
        if row.get(key, "").isdigit():
            yield Limit(f"{owner} {key}", resource, float(row[key]))


def _node_limits(partition: str, row: Fields, kinds: Sequence[NodeKind], options: SlurmOptions) -> Iterator[Limit]:
    """What the largest node of a partition has, and what the memory asked for leaves of it."""
    if not kinds:
        return
    owner = f"partition {partition}: nodes"
    most_cpus = [max(kind.cpus for kind in kinds), _whole(row.get("MaxCPUsPerNode", ""))]
    yield Limit(owner, Resource.CPUS_PER_NODE, min(number for number in most_cpus if number is not None))
    yield Limit(owner, Resource.GPUS_PER_NODE, max(kind.gpus for kind in kinds))
    most_memory = [max(kind.megabytes for kind in kinds), _whole(row.get("MaxMemPerNode", ""))]
    megabytes = min(number for number in most_memory if number is not None)
    yield Limit(owner, Resource.MEMORY_PER_NODE, megabytes / 1024)
    for name, resource in _MEMORY.items():
        asked = getattr(options, name)
        each = _megabytes(f"{asked * 1024:.0f}" if name == "mem_gb" and asked else asked)
        if each and resource is Resource.NODES_THERE:
            there = sum(kind.count for kind in kinds if min(kind.megabytes, megabytes) >= each)
            yield Limit(f"{owner} with {name}={asked}", resource, there)
        elif each:
            yield Limit(f"{owner} of {megabytes} MB with {name}={asked}", resource, megabytes // each)


_MEMORY = {
    "mem": Resource.NODES_THERE,
    "mem_gb": Resource.NODES_THERE,
    "mem_per_cpu": Resource.CPUS_PER_NODE,
    "mem_per_gpu": Resource.GPUS_PER_NODE,
}
"""Settings of memory, with what the memory of a node limits by them."""


def _whole(text: str) -> int | None:
    return int(text) if text.isdigit() else None


def _megabytes(value: object) -> float | None:
    """As sbatch reads a size of memory: megabytes, or with K, M, G, T; None for 0 (all of a node) and anything else."""
    match = re.fullmatch(r"(\d+)([KMGT]?)B?", str(value).strip().upper())
    return float(match[1]) * 1024 ** ("KMGT".index(match[2] or "M") - 1) or None if match else None


def _counted(owner: str, fields: Fields, key: str, resource: Resource, used_in: str | None = None) -> Iterator[Limit]:
    """`key`=6(2): 2 of 6 used."""
    most, used = _amount(fields.get(key, ""))
    if used_in is not None:
        used = max(used, _amount(fields.get(used_in, ""))[1])
    if most is not None:
        yield Limit(f"{owner} {key}", resource, most, used)


def _tres(
    owner: str, fields: Fields, key: str, resources: Mapping[str, Resource], of_gpus: Resource
) -> Iterator[Limit]:
    """`key`=cpu=N(97),node=4(2),gres/gpu=16(9): limits on those resources that have one."""
    for item in fields.get(key, "").split(","):
        name, _, amount = item.partition("=")
        resource = of_gpus if name.startswith("gres/gpu") else resources.get(name)
        most, used = _amount(amount)
        if resource is not None and most is not None:
            yield Limit(f"{owner} {key} {name}", resource, most, used)


def _amount(text: str) -> tuple[float | None, float]:
    """16(9) -> (16, 9); N(2) -> (None, 2); 60 -> (60, 0); nothing -> (None, 0)."""
    match = re.fullmatch(r"(N|\d+(?:\.\d+)?)(?:\((\d+(?:\.\d+)?)\))?", text)
    if not match:
        return None, 0.0
    return None if match[1] == "N" else float(match[1]), float(match[2] or 0)
