"""Reasons of pending jobs that mean never, and those that do not."""

import pytest

from sweeps.clusters.slurm.reasons import never_starts


@pytest.mark.parametrize(
    "reason",
    [
        "PartitionConfig",
        "PartitionTimeLimit",
        "BadConstraints",
        "DependencyNeverSatisfied",
        "InvalidQOS",
        "QOSMaxWallDurationPerJobLimit",
        "AssocMaxNodePerJobLimit",
        "QOSMaxGRESPerNode",
        "QOSMinCpuNotSatisfied",
    ],
)
def test_reasons_that_mean_never(reason: str) -> None:
    assert never_starts(reason, "gpu")


@pytest.mark.parametrize(
    "reason",
    [
        "Priority",
        "Resources",
        "None",
        "Dependency",
        "QOSGrpNodeLimit",
        "AssocGrpGRES",
        "QOSMaxJobsPerUserLimit",
        "MaxGRESPerAccount",
        "PartitionDown",
        "JobHeldUser",
        "ReqNodeNotAvail, UnavailableNodes:node[03-04]",
        "",
    ],
)
def test_reasons_to_wait(reason: str) -> None:
    assert not never_starts(reason, "gpu")


def test_the_reason_of_one_partition_says_nothing_of_others() -> None:
    assert not never_starts("PartitionTimeLimit", "debug,gpu")
    assert never_starts("BadConstraints", "debug,gpu")
