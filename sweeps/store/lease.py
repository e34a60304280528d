"""One writer of a sweep at a time, from any host: a lease in the sweep's folder, with a fencing token.

    lease/000003      the newest holder: host, pid, when it last renewed it

A lease is taken by creating the next number's file, which a file system grants to one process only. Its holder renews
it; one that has not been renewed for `TTL_SECONDS`, or whose process is gone from this host, may be taken over. Ages
are differences of the file system's own times, so clocks of hosts may disagree.
"""

from __future__ import annotations

import contextlib
import errno
import json
import os
import socket
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

import psutil

from muloco_runner.record import naming, write_atomically

TTL_SECONDS = 90.0
_NOBODY = json.dumps({"host": "", "pid": 0, "started_at": 0.0})


class LeaseHeld(RuntimeError):
    """Another holder is alive, or counts as alive: one elsewhere may be dead, which nobody sees from here."""

    def __init__(self, message: str, is_elsewhere: bool = False) -> None:
        super().__init__(message)
        self.is_elsewhere = is_elsewhere

    def to_text(self, take_over: str) -> str:
        """`take_over` is the caller's way to `take_over`, such as an option of the command."""
        return f"{self}; if you know it to be dead, {take_over} replaces it now" if self.is_elsewhere else str(self)


class LeaseLost(RuntimeError):
    """This holder was considered dead and replaced: it must write nothing more."""


class Lease:
    """Held from construction on. Raises `LeaseHeld` where another holder is alive.

    This one is a sweep's; a kind of lease with other words for who holds it is a subclass.
    """

    taken_over = "another controller has taken this sweep over"

    def __init__(self, folder: Path, purpose: str = "") -> None:
        """`purpose` says what it is taken for, to those who wait."""
        self.folder = folder
        folder.mkdir(parents=True, exist_ok=True)
        while True:
            newest = newest_token(folder)
            holder = _read(folder, newest)
            if holder is not None and self.is_alive(holder):
                raise LeaseHeld(self.held_by(holder), not holder.is_here)
            self.token = newest + 1
            try:
                # Made whole before it has its name: a reader never sees an empty lease.
                _link_new(self.path, purpose)
            except FileExistsError:
                continue
            # A newer holder removes the names before its own, so this one may have been free again.
            if newest_token(folder) == self.token:
                break
            self.path.unlink(missing_ok=True)
        for old in folder.glob("[0-9]*"):
            if int(old.name) < self.token:
                old.unlink(missing_ok=True)

    @staticmethod
    def is_alive(holder: Holder) -> bool:
        return holder.is_alive

    @staticmethod
    def held_by(holder: Holder) -> str:
        return f"a controller is running on this sweep already ({holder.to_text()}): nothing needs to be launched"

    @property
    def path(self) -> Path:
        return self.folder / f"{self.token:06d}"

    def check(self) -> None:
        """Raises `LeaseLost` when a newer token exists."""
        if newest_token(self.folder) != self.token or not self.path.exists():
            raise LeaseLost(self.taken_over)

    def renew(self) -> float:
        """The file system's own time, Unix seconds."""
        self.check()
        try:
            os.utime(self.path)
            return self.path.stat().st_mtime
        except FileNotFoundError:
            raise LeaseLost(self.taken_over) from None

    def release(self) -> None:
        """The token stays, so that the next holder's is higher."""
        if self.path.exists():
            # A full disk leaves it empty, which is nobody's too.
            with contextlib.suppress(OSError):
                self.path.write_text(_NOBODY)


@dataclass(frozen=True)
class Holder:
    """Who wrote the newest lease, and whether it still lives."""

    host: str
    pid: int
    """0: it has given the lease back."""
    started_at: float
    age: float
    """Seconds since it was last renewed."""
    purpose: str = ""
    taken_at: float | None = None
    """Unix seconds; leases of earlier code do not say."""

    @property
    def is_here(self) -> bool:
        """Whether it is, or was, a process of this host."""
        return self.pid != 0 and self.host == socket.gethostname()

    @property
    def is_alive(self) -> bool:
        if self.pid == 0:
            return False
        if self.is_here:
            try:
                return abs(psutil.Process(self.pid).create_time() - self.started_at) < 1.0
            except psutil.NoSuchProcess:
                return False
        return self.age < TTL_SECONDS

    def to_text(self) -> str:
        """Where it is; of one elsewhere, whose process nobody sees from here, when it counts as dead."""
        where = f"host {self.host}, pid {self.pid}"
        if self.is_here:
            return where
        left = max(0.0, TTL_SECONDS - self.age)
        return f"{where}, last heard of {self.age:.0f} s ago; if it is dead, it can be replaced in {left:.0f} s"


def take_over(folder: Path) -> None:
    """Declare the newest holder dead, as a person knows who has seen its host go down: the next one need not wait.

    One that lives after all writes nothing more, since its token is not the newest then. A process of this host that
    lives raises `LeaseHeld`.
    """
    holder = read_holder(folder)
    if holder is None:
        return
    if holder.is_here and holder.is_alive:
        raise LeaseHeld(f"the controller ({holder.to_text()}) lives: end it first, with kill {holder.pid}")
    write_atomically(folder / f"{newest_token(folder):06d}", _NOBODY)


def read_holder(folder: Path) -> Holder | None:
    """The newest lease's holder, alive or not; None where there never was one."""
    return _read(folder, newest_token(folder))


def _read(folder: Path, token: int) -> Holder | None:
    path = folder / f"{token:06d}"
    try:
        values = json.loads(path.read_text())
        age = _file_system_now(folder) - path.stat().st_mtime
    except (FileNotFoundError, ValueError):
        return None
    purpose, taken_at = values.get("purpose", ""), values.get("taken_at")
    return Holder(values["host"], values["pid"], values["started_at"], age, purpose, taken_at)


def _holder_json(purpose: str, taken_at: float) -> str:
    process = psutil.Process()
    who = {"host": socket.gethostname(), "pid": process.pid, "started_at": process.create_time()}
    return json.dumps({**who, "purpose": purpose, "taken_at": taken_at})


def newest_token(folder: Path) -> int:
    """The number of the newest lease; 0 where there never was one."""
    return max((int(path.name) for path in folder.glob("[0-9]*")), default=0)


def _link_new(path: Path, purpose: str) -> None:
    handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=".lease")
    try:
        with naming(path), os.fdopen(handle, "w") as file:
            # The file system's own time.
            file.write(_holder_json(purpose, os.fstat(handle).st_mtime))
        # Whoever may read the sweep's other files may also see who controls it.
        os.chmod(temporary, 0o644)
        try:
            os.link(temporary, path)
        except FileExistsError:
            # A network file system may have done it at the first try and answered to the second.
            if os.stat(temporary).st_nlink != 2:
                raise
    finally:
        os.unlink(temporary)


def _file_system_now(folder: Path) -> float:
    """The file system's time; this host's, for a reader who cannot write there."""
    try:
        handle, temporary = tempfile.mkstemp(dir=folder, prefix=".now")
    except OSError as error:
        if error.errno in (errno.EACCES, errno.EPERM, errno.EROFS, errno.ENOSPC, errno.EDQUOT):
            return time.time()
        raise
    try:
        return os.fstat(handle).st_mtime
    finally:
        os.close(handle)
        os.unlink(temporary)
