"""The right to submit jobs, which the sweeps of one user hand to each other, so that a quota they share is kept.

    STATE/submission-<uid>/<cluster and partition>/000017      a lease (`sweeps.store.lease`)
                                                  /wants-<id>  touched at each tick of a sweep that waits for nodes

A sweep reads the queue, decides and submits while it holds the leases of all its allocations, so the next one sees its
jobs. STATE is `$MULOCO_STATE`, or a folder under the home directory: all hosts that run controllers must share it.

Whose runs wait for nodes says so there, so that nobody keeps more than an equal share with successors.

A look at the queue from before the leases were taken is as good as a new one where nobody else has held them since:
their tokens tell.
"""

from __future__ import annotations

import contextlib
import errno
import os
import time
import uuid
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path

import psutil

from muloco_runner.config import ConfigError
from sweeps.formatting import when
from sweeps.node.disk_space import is_disk_full
from sweeps.store.lease import Holder, Lease, LeaseHeld, LeaseLost, newest_token, read_holder

STATE = "MULOCO_STATE"
"""Environment variable with the folder for what a user's sweeps have in common."""
_SUBMITTER = "MULOCO_SUBMITTER"
"""Environment variable of submissions under way: they outlive a controller that is killed."""
_POLL_SECONDS = 0.1


def state_folder() -> Path:
    return Path(os.environ.get(STATE) or Path.home() / ".local" / "state" / "muloco")


class SubmissionLease(Lease):
    """The right to submit into one allocation."""

    taken_over = "another sweep has taken the right to submit over"

    @staticmethod
    def is_alive(holder: Holder) -> bool:
        return holder.is_alive or _submits(holder)

    @staticmethod
    def held_by(holder: Holder) -> str:
        which = f"sweep {holder.purpose}" if holder.purpose else "another sweep of yours"
        since = f", since {when(holder.taken_at)}" if holder.taken_at is not None else ""
        return f"waits until {which} has submitted its jobs (host {holder.host}, pid {holder.pid}{since})"


def _name(pid: int, started_at: float) -> str:
    return f"{pid}@{started_at:.2f}"


def _submits(holder: Holder) -> bool:
    """Whether a submission of a holder that was killed is still under way on this host: its job will exist."""
    if not holder.is_here:
        return False
    name = _name(holder.pid, holder.started_at)
    for process in psutil.process_iter(["name"]):
        try:
            if process.info["name"] == "sbatch" and process.environ().get(_SUBMITTER) == name:
                return True
        except psutil.Error:
            continue
    return False


class Submission:
    """The leases of the allocations that one sweep submits to."""

    def __init__(self, scopes: Callable[[], Sequence[str]], sweep: str = "") -> None:
        """`scopes` names the allocations, alike in every sweep that shares them; without any no lease is needed.

        `sweep` is what those are told who wait for this one.
        """
        self._scopes, self._sweep = scopes, sweep
        self._leases: dict[str, Lease] = {}
        # Whoever replaces a killed controller of a sweep says so in the same place, and is not counted beside it.
        name = uuid.uuid5(uuid.NAMESPACE_URL, sweep) if sweep else uuid.uuid4()
        self._id = f"wants-{name.hex}"
        self._wants: bool | None = None
        """What has been said; None while what the controller before has said may stand."""

    @property
    def is_held(self) -> bool:
        return bool(self._leases)

    def check(self) -> None:
        """Raise `ConfigError` where the leases' folder cannot be made or written."""
        if self._scopes():
            with _words_for_errors():
                _own_folder().mkdir(parents=True, exist_ok=True)
                if not os.access(_own_folder(), os.W_OK):
                    raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), str(_own_folder()))

    def _folders(self) -> dict[str, Path]:
        # In one order everywhere, so that no two sweeps wait for each other.
        return {scope: _own_folder() / scope.replace("/", "_") for scope in sorted(set(self._scopes()))}

    def tokens(self) -> dict[str, int | None]:
        """The newest token of each lease, as `is_unchanged` takes it; None where somebody is submitting."""
        return {scope: _free_token(folder) for scope, folder in self._folders().items()}

    def held_by_another(self, controller: Holder) -> str:
        """Return whom the controller of this sweep, a process that may not be this one, would have to wait for now."""
        for folder in self._folders().values():
            holder = read_holder(folder)
            if holder is None or (holder.host, holder.pid) == (controller.host, controller.pid):
                continue
            if SubmissionLease.is_alive(holder):
                return SubmissionLease.held_by(holder)
        return ""

    def acquire(self, patience_seconds: float) -> str:
        """Take all leases; return why not where that takes longer, or nothing.

        A folder that cannot be written raises `ConfigError`.
        """
        if self.is_held:
            return ""
        deadline = time.monotonic() + patience_seconds
        with _words_for_errors():
            while (held_by := self._try()) and time.monotonic() < deadline:
                time.sleep(_POLL_SECONDS)
        return held_by

    def _try(self) -> str:
        for scope, folder in self._folders().items():
            try:
                self._leases[scope] = SubmissionLease(folder, self._sweep)
            except LeaseHeld as held:
                self.release()
                return str(held)
        if self._leases:
            process = psutil.Process()
            os.environ[_SUBMITTER] = _name(process.pid, process.create_time())
        return ""

    def is_unchanged(self, tokens: Mapping[str, int | None]) -> bool:
        """Whether nobody else has held the leases since `tokens` were read, until they were taken."""
        before = {scope: tokens.get(scope) for scope in self._leases}
        return all(token is not None and self._leases[scope].token == token + 1 for scope, token in before.items())

    def renew(self) -> bool:
        """Return whether the leases are still held; where one is not, all are given back."""
        try:
            for lease in self._leases.values():
                lease.renew()
        except LeaseLost:
            self.release()
            return False
        return True

    def want(self, wants: bool, until: float) -> None:
        """Say whether runs of this sweep wait for nodes, which holds `until` then (Unix seconds by the file system's
        clock) unless it is said again: whoever is killed wants nothing for long."""
        if not wants and self._wants is False:
            return
        self._wants = wants
        for folder in self._folders().values():
            path = folder / self._id
            with contextlib.suppress(OSError):
                if wants:
                    folder.mkdir(parents=True, exist_ok=True)
                    path.touch()
                    os.utime(path, (until, until))
                else:
                    path.unlink(missing_ok=True)

    def num_wanting(self, now: float) -> int:
        """Return how many other sweeps want nodes of one of the allocations; what is out of date is removed."""
        most = 0
        for folder in self._folders().values():
            others = [path for path in folder.glob("wants-*") if path.name != self._id]
            most = max(most, sum(_holds(path, now) for path in others))
        return most

    def release(self) -> None:
        os.environ.pop(_SUBMITTER, None)
        for lease in self._leases.values():
            lease.release()
        self._leases = {}


def _holds(path: Path, now: float) -> bool:
    with contextlib.suppress(OSError):
        if path.stat().st_mtime >= now:
            return True
        path.unlink()
    return False


def _own_folder() -> Path:
    return state_folder() / f"submission-{os.getuid()}"


@contextlib.contextmanager
def _words_for_errors() -> Iterator[None]:
    try:
        yield
    except OSError as error:
        if is_disk_full(error):
            raise
        raise ConfigError(
            f"{error.filename or state_folder()}: {error.strerror}: there your sweeps agree on who submits next, so "
            f"that they keep their quota together; set {STATE} to a folder that you may write and all login nodes share"
        ) from None


def _free_token(folder: Path) -> int | None:
    newest = newest_token(folder)
    holder = read_holder(folder)
    is_free = newest == 0 or (holder is not None and holder.pid == 0)
    return newest if is_free else None
