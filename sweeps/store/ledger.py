"""The event log of a sweep: append-only JSON lines, each with a checksum and the writer's fencing token.

    ledger.jsonl     {"crc": ..., "token": 3, "time": ..., "event": "submitted", "tag": ..., ...}

Replaying it gives the state of the sweep. A torn last line is what a killed writer left and is closed; a damaged line
is reported and passed over, since run folders and the cluster still hold what it recorded. Lines of a writer that had
already been replaced (a lower token after a higher one) do not count.
"""

from __future__ import annotations

import errno
import json
import os
import time
import zlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from io import FileIO
from pathlib import Path
from typing import Any, NamedTuple

from muloco_runner.record import naming
from sweeps.engine.sweep_state import Event
from sweeps.store.lease import Lease

_REPEATED = ("submitted", "started")
"""Events that need not be on the disk at once: the next look at the cluster tells them again."""


@dataclass(frozen=True)
class Damage:
    """One line that is not what was written."""

    line: int
    why: str


@dataclass(frozen=True)
class Position:
    """A position between two lines of a ledger, with what identifies the line before it."""

    offset: int = 0
    """Bytes before it."""
    lines: int = 0
    token: int = 0
    """The highest before it."""
    last_length: int = 0
    last_crc: int = 0
    """Checksum of the line that ends here."""

    def after(self, line: bytes, token: int) -> Position:
        """Behind one more line."""
        offset, number = self.offset + len(line), self.lines + 1
        return Position(offset, number, max(token, self.token), len(line), zlib.crc32(line))

    def is_in(self, path: Path) -> bool:
        """Whether the file still has the line that ended here."""
        try:
            with open(path, "rb") as file:
                file.seek(self.offset - self.last_length)
                return zlib.crc32(file.read(self.last_length)) == self.last_crc
        except (OSError, ValueError):
            return self.offset == 0


START = Position()


class Reading(NamedTuple):
    events: list[Event]
    damage: list[Damage]
    end: Position
    """Behind the last whole line."""


class Ledger:
    """The log as its one writer holds it, from its end on."""

    def __init__(self, path: Path, lease: Lease, clock: Callable[[], float] = time.time) -> None:
        self.path, self.lease, self.clock = path, lease, clock
        self.end: Position | None = None
        """Where its next line goes; None where that is not known, or another has written too."""
        self._close_torn_line()

    def append(self, event: str, **values: Any) -> Event:
        """Writes one event and returns it; synced to disk unless the next observation would repeat it.

        Raises `LeaseLost` if another writer has taken over, and `OSError` where it cannot be written: then it is as if
        it had never been tried.
        """
        self.lease.renew()
        line = {"token": self.lease.token, "time": self.clock(), "event": event, **values}
        text = encode(line)
        with naming(self.path), open(self.path, "ab", buffering=0) as file:
            start = file.tell()
            try:
                if file.write(text) != len(text):
                    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(self.path))
                if event not in _REPEATED:
                    os.fsync(file.fileno())
            except OSError as error:
                self._take_back(file, start, len(text))
                raise error
            written_to = file.tell()
        if self.end is not None:
            self.end = self.end.after(text, self.lease.token)
            if self.end.offset != written_to:
                self.end = None
        return line

    def _take_back(self, file: FileIO, start: int, length: int) -> None:
        """Cuts a line off of which the disk has taken a part, or all without saying so, unless another has written."""
        self.lease.check()
        try:
            if os.fstat(file.fileno()).st_size <= start + length:
                file.truncate(start)
        except OSError as error:
            raise RuntimeError(f"{self.path}: {error.strerror}: launch the sweep again, which mends it") from None

    def _close_torn_line(self) -> None:
        if not self.path.exists() or self.path.stat().st_size == 0:
            return
        with open(self.path, "rb+") as file:
            file.seek(-1, os.SEEK_END)
            if file.read(1) != b"\n":
                file.write(b"\n")


def encode(event: Event) -> bytes:
    """One line of a ledger."""
    body = json.dumps(event, separators=(",", ":"), allow_nan=False)
    return f'{{"crc":{zlib.crc32(body.encode())},{body[1:]}\n'.encode()


def read_events(path: Path, start: Position = START) -> Reading:
    """Events in order from `start` on, the lines that could not be read, and where the whole lines end."""
    events: list[Event] = []
    damage: list[Damage] = []
    offset, number, highest, last = start.offset, start.lines, start.token, b""
    for raw in _lines(path, start.offset):
        event = _parse(raw)
        if isinstance(event, str):
            damage.append(Damage(number + 1, event))
        elif event["token"] >= highest:
            highest = event["token"]
            events.append(event)
        if raw.endswith(b"\n"):
            offset, number, last = offset + len(raw), number + 1, raw
    if not last:
        return Reading(events, damage, start)
    return Reading(events, damage, Position(offset, number, highest, len(last), zlib.crc32(last)))


def _lines(path: Path, start: int) -> Iterator[bytes]:
    if not path.exists():
        return
    with open(path, "rb") as file:
        file.seek(start)
        yield from file


def _parse(raw: bytes) -> Event | str:
    head, _, rest = raw.partition(b",")
    body = b"{" + rest.removesuffix(b"\n")
    if head != b'{"crc":%d' % zlib.crc32(body):
        return "its checksum does not match" if raw.endswith(b"\n") else "torn: its writer was killed"
    event: Event = json.loads(body)
    return event
