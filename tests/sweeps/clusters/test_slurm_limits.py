"""Limits as SLURM's commands print them (22.05, shortened), and what they say of an allocation."""

import dataclasses
from typing import Any

import pytest
import yaml

from sweeps.clusters import read_cluster
from sweeps.clusters.slurm.accounting import (
    Accounting,
    parse_assoc_mgr,
    parse_grants,
    parse_nodes,
    parse_partitions,
    with_unused_limits,
)
from sweeps.clusters.slurm.describe import cluster_file
from sweeps.clusters.slurm.limits import limits_of, mistake_in
from sweeps.engine.cluster import Resource
from sweeps.engine.cluster_config import AllocationConfig

ASSOC_MGR = """\
Current Association Manager state

Association Records

ClusterName=emulated Account=root UserName= Partition= Priority=0 ID=1
    SharesRaw/Norm/Level/Factor=1/0.00/1/0.00
    ParentAccount= Lft=1 DefAssoc=No
    GrpJobs=N(0) GrpJobsAccrue=N(0)
    GrpSubmitJobs=5000(12) GrpWall=N(0.00)
    GrpTRES=cpu=N(0),mem=N(0),node=64(5),gres/gpu=N(0)
    GrpTRESMins=cpu=N(0),node=N(0),gres/gpu=N(0)
    MaxJobs= MaxJobsAccrue= MaxSubmitJobs= MaxWallPJ=
    MaxTRESPJ=
ClusterName=emulated Account=lab UserName= Partition= Priority=0 ID=3
    ParentAccount=root(1) Lft=6 DefAssoc=No
    GrpJobs=N(0) GrpJobsAccrue=N(0)
    GrpTRES=cpu=N(0),mem=N(0),node=16(4),gres/gpu=N(0)
    GrpTRESMins=cpu=N(0),node=N(0),gres/gpu=600000(12000)
    MaxJobs= MaxJobsAccrue= MaxSubmitJobs= MaxWallPJ=2880
    MaxTRESPJ=
ClusterName=emulated Account=lab UserName=root(0) Partition= Priority=0 ID=5
    ParentAccount= Lft=9 DefAssoc=Yes
    GrpJobs=N(3) GrpJobsAccrue=N(0)
    GrpSubmitJobs=N(7) GrpWall=N(0.00)
    GrpTRES=cpu=N(0),mem=N(0),node=N(0),gres/gpu=N(0)
    MaxJobs=20 MaxJobsAccrue= MaxSubmitJobs=100 MaxWallPJ=
    MaxTRESPJ=node=4

QOS Records

QOS=normal(1)
    GrpJobs=N(0) GrpJobsAccrue=N(0) GrpSubmitJobs=N(0) GrpWall=N(0.00)
    GrpTRES=cpu=N(0),mem=N(0),node=N(0),gres/gpu=N(0)
    MaxWallPJ=
    MaxTRESPJ=
    Account Limits
      lab
        MaxJobsPA=N(0) MaxJobsAccruePA=N(0) MaxSubmitJobsPA=N(0)
        MaxTRESPA=cpu=N(288),node=N(4)
    User Limits
      root(0)
        MaxJobsPU=6(3) MaxJobsAccruePU=N(0) MaxSubmitJobsPU=N(3)
        MaxTRESPU=cpu=N(288),node=N(4),gres/gpu=16(9)
QOS=capped(5)
    GrpJobs=N(0) GrpJobsAccrue=N(0) GrpSubmitJobs=N(0) GrpWall=N(0.00)
    GrpTRES=cpu=N(0),mem=N(0),node=3(1),gres/gpu=N(0)
    MaxWallPJ=60
    MaxTRESPJ=
"""
PARTITIONS = (
    "PartitionName=gpu AllowGroups=ALL AllowAccounts=ALL AllowQos=ALL Default=YES QoS=N/A MaxNodes=UNLIMITED "
    "MaxTime=7-00:00:00 TotalNodes=8 TRES=cpu=768,mem=7812.50G,node=8,billing=768,gres/gpu=64\n"
    "PartitionName=closed AllowGroups=ALL AllowAccounts=ALL AllowQos=high Default=NO QoS=N/A MaxNodes=2 "
    "MaxTime=01:00:00 TotalNodes=8 TRES=cpu=768,node=8,gres/gpu=64\n"
    "PartitionName=theirs AllowGroups=ALL AllowAccounts=elsewhere AllowQos=ALL Default=NO QoS=capped "
    "MaxNodes=UNLIMITED MaxTime=UNLIMITED TotalNodes=8\n"
)
GRANTS = "lab||brief,capped,high,normal|normal\n"
UNUSED = "normal||6||||\ncapped|gres/gpu=24|||||40\n"


@pytest.fixture
def accounting() -> Accounting:
    associations, qos = parse_assoc_mgr(ASSOC_MGR)
    complete = with_unused_limits(qos, UNUSED, 0, ["lab"])
    return Accounting(associations, complete, parse_partitions(PARTITIONS), parse_grants(GRANTS), "root", 0)


def allocation(**values: Any) -> AllocationConfig:
    return AllocationConfig("a", gpus_per_node=values.pop("gpus_per_node", 8), options=values)


def found(accounting: Accounting, **values: Any) -> dict[tuple[str, Resource], tuple[float, float]]:
    limits = limits_of(allocation(**values), accounting)
    return {(limit.name, limit.resource): (limit.most, limit.used_by_others) for limit in limits}


def test_group_limits_of_every_level_bind(accounting: Accounting) -> None:
    limits = found(accounting)
    assert limits["account lab GrpTRES node", Resource.NODES] == (16, 4)
    assert limits["account root GrpTRES node", Resource.NODES] == (64, 5)
    assert limits["account root GrpSubmitJobs", Resource.SUBMITTED] == (5000, 12)
    assert limits["account lab GrpTRESMins gres/gpu", Resource.GPU_HOURS] == (10_000, 200)


def test_of_a_users_limits_the_first_level_that_sets_one_decides(accounting: Accounting) -> None:
    limits = found(accounting)
    assert limits["QOS normal MaxJobsPU", Resource.JOBS] == (6, 3)
    assert ("user root MaxJobs", Resource.JOBS) not in limits
    assert limits["user root MaxSubmitJobs", Resource.SUBMITTED] == (100, 7)
    assert limits["QOS normal MaxTRESPU gres/gpu", Resource.GPUS] == (16, 9)
    assert limits["user root MaxTRESPJ node", Resource.NODES_PER_JOB] == (4, 0)
    assert limits["account lab MaxWallPJ", Resource.WALL_MINUTES] == (2880, 0)


def test_a_qos_that_nobody_has_used_yet_has_its_limits_too(accounting: Accounting) -> None:
    limits = found(accounting, qos="capped")
    assert limits["QOS capped GrpTRES node", Resource.NODES] == (3, 1)
    assert limits["QOS capped MaxTRESPU gres/gpu", Resource.GPUS] == (24, 0)
    assert limits["QOS capped MaxSubmitJobsPA", Resource.SUBMITTED] == (40, 0)
    assert limits["QOS capped MaxWallPJ", Resource.WALL_MINUTES] == (60, 0)


def test_limits_of_the_partition_and_of_its_qos(accounting: Accounting) -> None:
    limits = found(accounting, partition="closed", qos="high")
    assert limits["partition closed MaxTime", Resource.WALL_MINUTES] == (60, 0)
    assert limits["partition closed MaxNodes", Resource.NODES_PER_JOB] == (2, 0)
    assert ("QOS capped GrpTRES node", Resource.NODES) in found(accounting, partition="theirs")


def test_of_several_partitions_each_limit_says_of_which_it_is(accounting: Accounting) -> None:
    limits = limits_of(allocation(partition="gpu,closed", qos="high"), accounting)
    times = {(limit.name, limit.place): limit.most for limit in limits if limit.name.endswith("MaxTime")}
    assert times == {("partition gpu MaxTime", "gpu"): 7 * 1440, ("partition closed MaxTime", "closed"): 60}
    assert {limit.place for limit in limits if limit.name == "account lab GrpTRES node"} == {"gpu", "closed"}


def on(accounting: Accounting, **options: object) -> dict[str, float]:
    nodes = parse_nodes("gpu|6|96|1000000|gpu:h100:8(S:0-1)\ngpu|2|128|2000000|(null)\ndebug|1|4|1000|(null)\n")
    limits = limits_of(allocation(**options), dataclasses.replace(accounting, nodes=nodes))
    return {
        f"{one.name} {one.resource.value}": one.most for one in limits if one.name.startswith("partition gpu: nodes")
    }


def test_nodes_bound_what_a_job_may_ask_of_one(accounting: Accounting) -> None:
    assert on(accounting) == {
        "partition gpu: nodes CPUs of one node": 128,
        "partition gpu: nodes GPUs of one node": 8,
        "partition gpu: nodes GiB of one node": 2000000 / 1024,
    }
    assert on(accounting, mem="1500G")["partition gpu: nodes with mem=1500G nodes there are"] == 2
    assert on(accounting, mem_gb=1500)["partition gpu: nodes with mem_gb=1500 nodes there are"] == 2
    assert on(accounting, mem="3T")["partition gpu: nodes with mem=3T nodes there are"] == 0
    by_cpu = on(accounting, mem_per_cpu="100G")
    assert by_cpu["partition gpu: nodes of 2000000 MB with mem_per_cpu=100G CPUs of one node"] == 19
    # 0 is all of a node.
    assert on(accounting, mem=0) == on(accounting)


@pytest.mark.parametrize(
    ("values", "words"),
    [
        ({}, None),
        ({"partition": "gpu,closed"}, None),
        (
            {"partition": "gpu,gpuu"},
            "partition=gpuu: this cluster has no such partition; there are gpu, closed, theirs",
        ),
        (
            {"partition": "closed,theirs"},
            "qos=normal: partition closed is open to QOS high only; set qos; account=lab: partition theirs is open to "
            "elsewhere only; name another partition",
        ),
        ({"qos": "capped", "account": "lab", "partition": "gpu"}, None),
        ({"partition": "gpuu"}, "partition=gpuu: this cluster has no such partition; there are gpu, closed, theirs"),
        ({"account": "elsewhere"}, "account=elsewhere: not one of user root's accounts; they are lab"),
        ({"qos": "urgent"}, "qos=urgent: account lab of user root may use brief, capped, high, normal"),
        ({"partition": "closed"}, "qos=normal: partition closed is open to QOS high only; set qos"),
        ({"partition": "theirs"}, "account=lab: partition theirs is open to elsewhere only; name another partition"),
    ],
)
def test_a_wrong_name_is_told_before_anything_is_submitted(
    accounting: Accounting, values: dict[str, Any], words: str | None
) -> None:
    assert mistake_in(allocation(**values), accounting) == words


def test_more_gpus_a_node_than_there_are(accounting: Accounting) -> None:
    wide = dataclasses.replace(allocation(), gpus_per_node=16)
    assert mistake_in(wide, accounting) == "gpus_per_node=16: nodes of partition gpu have 8; lower it"


def test_without_a_database_partitions_bind_and_no_name_is_wrong() -> None:
    accounting = Accounting([], {}, parse_partitions(PARTITIONS), [], "root", 0)
    assert mistake_in(allocation(account="whatever"), accounting) is None
    assert {limit.name for limit in limits_of(allocation(), accounting)} == {
        "partition gpu MaxTime",
        "partition gpu TotalNodes",
    }


def test_init_writes_a_partition_that_the_user_may_use(accounting: Accounting) -> None:
    nodes = parse_nodes("gpu|6|96|1000000|gpu:h100:8\nclosed|8|96|1000000|gpu:8\ntheirs|8|96|1000000|gpu:8\n")
    text = cluster_file(dataclasses.replace(accounting, nodes=nodes, cluster="emulated"))
    cluster = read_cluster("mine", yaml.safe_load(text))
    (one,) = cluster.allocations
    assert (one.name, one.gpus_per_node, one.cpus_per_node, one.max_wall_minutes) == ("gpu", 8, 96, 2880)
    assert (one.quota.nodes, one.options["partition"], cluster.device) == (16, "gpu", "cuda")
    assert mistake_in(one, accounting) is None
    assert "# - name: 'closed'" in text
    assert "qos: 'high'" in text, "another way in, with the QOS that it needs"
    assert "# not theirs: account=lab: partition theirs is open to elsewhere only" in text
    assert "# found: QOS normal MaxTRESPU gres/gpu 16" in text
