"""What a job looks like over several looks at the cluster: missing, without hope to start, hanging, about to report.

Times are since this controller first saw it so: other clocks than its own are not asked.
"""

from __future__ import annotations

from collections import defaultdict

from sweeps.engine.cluster import Cluster, JobEnd, JobObservation
from sweeps.engine.cluster_config import ClusterConfig
from sweeps.engine.outcome import Outcome
from sweeps.engine.sweep_state import TrackedJob

_OUTCOME_WAIT_SECONDS = 5.0
"""How long the files of an attempt may take to show up on a network file system after its job has ended."""


class SignsOfJobs:
    """Remembers since when the jobs of one controller have looked so. `now` is always in Unix seconds."""

    def __init__(self, cluster: Cluster, config: ClusterConfig) -> None:
        self.cluster, self.config = cluster, config
        self._since: dict[str, dict[str, float]] = defaultdict(dict)
        """By tag, when each sign was first seen."""

    def forget(self, job: TrackedJob) -> None:
        """Forget a job that has ended."""
        self._since.pop(job.tag, None)

    def is_listed(self, job: TrackedJob) -> None:
        """Take in that the cluster lists it: it is missing no longer."""
        self._since[job.tag].pop("missing", None)

    def is_overdue(self, job: TrackedJob, now: float) -> bool:
        """Whether a job that a complete observation misses has been missing for long, and shows no sign of life."""
        since = self._first_seen(job.tag, "missing", now)
        if not self.cluster.outlives_controller:
            return True
        timeout = self.config.submit_confirm_timeout_seconds
        if now - since <= timeout:
            return False
        at_work = [left.heartbeat_at for left in self._left_by(job) if not left.finished and left.ending is None]
        return not any(at is not None and now - at <= timeout for at in at_work)

    def is_hopeless(self, seen: JobObservation, now: float) -> bool:
        """Whether the scheduler has said for a while that it will never start.

        It may say so for a moment while it is being configured.
        """
        if not seen.never_starts:
            self._since[seen.tag].pop("hopeless", None)
            return False
        return now - self._first_seen(seen.tag, "hopeless", now) >= self.config.submit_confirm_timeout_seconds

    def hangs(self, job: TrackedJob, seen: JobObservation, now: float) -> bool:
        """Whether every attempt of the job has had time to report, and none has a recent heartbeat.

        A suspended job has the same time again once it runs on. Heartbeats are files: their age is by the file
        system's clock, as is `now`.
        """
        if self.config.heartbeat_timeout_minutes is None:
            return False
        if seen.is_suspended:
            self._since[job.tag].pop("running", None)
            return False
        timeout = 60 * self.config.heartbeat_timeout_minutes
        if now - self._first_seen(job.tag, "running", now) < timeout:
            return False
        return all(left.heartbeat_at is not None and now - left.heartbeat_at > timeout for left in self._left_by(job))

    def has_reported(self, job: TrackedJob) -> bool:
        """Whether an attempt of the job has left a result or its exit record: it ran, whoever else knows of it."""
        return any(left.finished or left.ending is not None for left in self._left_by(job))

    def may_still_report(self, job: TrackedJob, seen: JobObservation, now: float) -> bool:
        """Whether the scheduler says that it ended well, and its own files may not have arrived yet."""
        if seen.end is not JobEnd.EXITED or seen.exit_code not in (None, 0):
            return False
        if now - self._first_seen(job.tag, "ended", now) >= _OUTCOME_WAIT_SECONDS:
            return False
        return any(not left.finished and left.ending is None for left in self._left_by(job))

    def _left_by(self, job: TrackedJob) -> list[Outcome]:
        return [self.cluster.outcome(attempt) for attempt in job.request.attempts]

    def _first_seen(self, tag: str, sign: str, now: float) -> float:
        return self._since[tag].setdefault(sign, now)
