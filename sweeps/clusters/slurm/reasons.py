"""Why a job waits, as SLURM words it: which reasons mean that it waits for ever.

SLURM accepts jobs that can never run (https://slurm.schedmd.com/job_reason_codes.html). Group limits are not told by
their reason: it is the same whether a job waits for its turn or asks for more than the limit.
"""

from __future__ import annotations

import re

_NEVER = re.compile(
    r"PartitionConfig|PartitionNodeLimit|PartitionTimeLimit|BadConstraints|DependencyNeverSatisfied"
    r"|Invalid(Account|QOS)|AccountNotAllowed|QOSNotAllowed|QOSTimeLimit"
    # Limits on one job, one node of it, or its least size.
    r"|(Assoc|QOS)\w*(PerJob|PerNode|WallDuration)\w*|QOSMin\w+"
)


def never_starts(reason: str, partition: str) -> bool:
    """Return whether a pending job with that reason never starts, in `partition` as the job names it.

    Of several partitions the reason is that of the one tried last: it says nothing of the others.
    """
    name = reason.partition(",")[0].strip()
    if name.startswith("Partition") and "," in partition:
        return False
    return _NEVER.fullmatch(name) is not None
