"""What SLURM reports of accounts, QOS, partitions and nodes, as records: pure functions of its commands' text."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from sweeps.clusters.slurm.parse import gpus_in

Fields = Mapping[str, str]

QOS_FIELDS = "Name,MaxTRESPU,MaxJobsPU,MaxSubmitPU,MaxTRESPA,MaxJobsPA,MaxSubmitPA"
ASSOCIATION_FIELDS = "Account,Partition,QOS,DefaultQOS"
NODE_FORMAT = "%R|%D|%c|%m|%G"


@dataclass(frozen=True)
class Association:
    """One row of the accounting tree: an account (`user` is empty), or a user in it."""

    account: str
    user: str
    partition: str
    parent: str
    is_default: bool
    fields: Fields


@dataclass(frozen=True)
class Qos:
    """One QOS; `users` (by uid) and `accounts` hold what those who have used it may use and do use."""

    name: str
    fields: dict[str, str] = field(default_factory=dict)
    users: dict[str, dict[str, str]] = field(default_factory=dict)
    accounts: dict[str, dict[str, str]] = field(default_factory=dict)


@dataclass(frozen=True)
class Grant:
    """What one user may name when submitting: `sacctmgr show assoc`."""

    account: str
    partition: str
    """Empty where every partition is meant."""
    qos: tuple[str, ...]
    default_qos: str


@dataclass(frozen=True)
class NodeKind:
    """Nodes of one partition that are alike."""

    partition: str
    count: int
    cpus: int
    megabytes: int
    gpus: int


@dataclass(frozen=True)
class Accounting:
    """All that SLURM reports of limits at one time."""

    associations: Sequence[Association]
    qos: Mapping[str, Qos]
    partitions: Mapping[str, Fields]
    grants: Sequence[Grant]
    """Empty where there is no accounting database."""
    user: str
    uid: int
    cluster: str = ""
    """SLURM's name of itself."""
    nodes: Sequence[NodeKind] = ()
    """Empty where `sinfo` does not answer."""


def parse_assoc_mgr(text: str) -> tuple[list[Association], dict[str, Qos]]:
    """`scontrol show assoc_mgr flags=assoc,qos`."""
    associations: list[Association] = []
    qos: dict[str, Qos] = {}
    fields: dict[str, str] = {}
    inner: dict[str, dict[str, str]] | None = None
    for line in text.splitlines():
        words = line.split()
        if line.startswith("ClusterName="):
            head = _words(words)
            fields, inner = {}, None
            user = head.get("UserName", "").partition("(")[0]
            parent = head.get("ParentAccount", "").partition("(")[0]
            associations.append(
                Association(head.get("Account", ""), user, head.get("Partition", ""), parent, False, fields)
            )
        elif line.startswith("QOS="):
            name = words[0].removeprefix("QOS=").partition("(")[0]
            qos[name] = Qos(name)
            fields, inner = qos[name].fields, None
        elif words in (["Account", "Limits"], ["User", "Limits"]) and qos:
            inner = qos[name].accounts if words[0] == "Account" else qos[name].users
        elif inner is not None and len(words) == 1 and "=" not in line:
            # A user is printed as its uid, or as name(uid).
            found = re.search(r"\((\d+)\)$", words[0])
            fields = inner.setdefault(found[1] if found else words[0], {})
        else:
            fields.update(_words(words))
    return [_with_parent(association) for association in associations], qos


def _with_parent(association: Association) -> Association:
    """A user's parent is its account; an account's own is printed on the third line of its record."""
    fields = association.fields
    parent = association.account if association.user else fields.get("ParentAccount", "").partition("(")[0]
    is_default = fields.get("DefAssoc") == "Yes"
    return Association(association.account, association.user, association.partition, parent, is_default, fields)


def parse_partitions(text: str) -> dict[str, Fields]:
    """`scontrol show partition -o`, by name."""
    rows = [_words(line.split()) for line in text.splitlines() if line.startswith("PartitionName=")]
    return {row["PartitionName"]: row for row in rows}


def parse_nodes(text: str) -> list[NodeKind]:
    """`sinfo --noheader --exact --format=NODE_FORMAT`; lines of another shape are skipped."""
    rows = [line.split("|") for line in text.splitlines()]
    return [
        NodeKind(row[0], int(row[1]), int(row[2]), int(row[3]), gpus_in(row[4]))
        for row in rows
        if len(row) == 5 and all(word.isdigit() for word in row[1:4])
    ]


def parse_grants(text: str) -> list[Grant]:
    """`sacctmgr -nP show assoc user=U format=ASSOCIATION_FIELDS`."""
    rows = [line.split("|") for line in text.splitlines() if line.count("|") == 3]
    return [Grant(account, partition, tuple(qos.split(",")), default) for account, partition, qos, default in rows]


def with_unused_limits(qos: Mapping[str, Qos], text: str, uid: int, accounts: Sequence[str]) -> dict[str, Qos]:
    """Adds the limits of a user and accounts that have not used a QOS yet, which slurmctld does not print.

    `text` is `sacctmgr -nP show qos format=QOS_FIELDS`.
    """
    complete = dict(qos)
    for line in text.splitlines():
        name, *values = line.split("|")
        if len(values) != 6:
            continue
        found = complete.setdefault(name, Qos(name))
        names = ("MaxTRESPU", "MaxJobsPU", "MaxSubmitJobsPU", "MaxTRESPA", "MaxJobsPA", "MaxSubmitJobsPA")
        row = dict(zip(names, values, strict=True))
        found.users.setdefault(str(uid), {key: value for key, value in row.items() if key.endswith("PU")})
        for account in accounts:
            found.accounts.setdefault(account, {key: value for key, value in row.items() if key.endswith("PA")})
    return complete


def _words(words: Sequence[str]) -> dict[str, str]:
    """KEY=VALUE words; a value may hold further "="."""
    return dict(word.split("=", 1) for word in words if "=" in word)
