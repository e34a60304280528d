"""Which row of SLURM's listings is which job: by number, user and submit time once those are recorded, else by its tag.

The tag is a job's name, which users cannot give; a comment is a hint, since sites rewrite it. Pure.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from typing import TypeVar

from sweeps.clusters.slurm.parse import AccountedJob, QueuedJob
from sweeps.engine.cluster import JobIdentity

_SUBMISSION_SECONDS = 120.0
"""Between a job's intent and SLURM's submit time, at most: how long `sbatch` may take, and how far clocks differ."""
Row = TypeVar("Row", bound=QueuedJob | AccountedJob)


def rows_of(jobs: Sequence[JobIdentity], rows: Sequence[Row]) -> Mapping[str, Row]:
    """Return the row of each job, by tag; jobs without a row are left out.

    Of several rows the one with the recorded number goes first, then one that has not ended, then the last.
    """
    by_word: dict[str, list[Row]] = defaultdict(list)
    for row in rows:
        for word in {row.job_id, row.name, row.comment}:
            by_word[word].append(row)
    best = {job.tag: _best([*by_word[job.tag], *by_word[job.job_id or ""]], job) for job in jobs}
    return {tag: row for tag, row in best.items() if row is not None}


def _best(candidates: Sequence[Row], job: JobIdentity) -> Row | None:
    own = [row for row in candidates if is_row_of(row, job)]
    # max() returns the first of equals.
    return max(reversed(own), key=lambda row: (row.job_id == job.job_id, not row.is_finished), default=None)


def is_row_of(row: QueuedJob | AccountedJob, job: JobIdentity) -> bool:
    if job.uid is not None and row.uid != job.uid:
        return False
    has_tag = job.tag in (row.name, row.comment)
    has_number = row.job_id == job.job_id
    if job.submitted_at is not None:
        # A requeue changes the submit time and keeps the name; a number given again changes both.
        return has_number and (has_tag or row.submitted_at == job.submitted_at)
    was_then = row.submitted_at is not None and abs(row.submitted_at - job.intended_at) <= _SUBMISSION_SECONDS
    return has_tag or (has_number and was_then)
