"""The event log of a sweep: append-only JSON lines, each with a checksum and the writer's fencing token.

    ledger.jsonl     {"crc": ..., "token": 3, "time": ..., "event": "submitted", "tag": ..., ...}

Replaying it gives the state of the sweep. A torn last line is what a killed writer left and is closed; a damaged line
is reported and passed over, since run folders and the cluster still know what it said. Lines of a writer that had
already been replaced (a lower token after a higher one) do not count.
"""

from __future__ import annotations

import json
import os
import time
import zlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sweeps.lease import Lease

Event = dict[str, Any]


@dataclass(frozen=True)
class Damage:
    """One line that is not what was written."""

    line: int
    why: str


class Ledger:
    """The log as its one writer holds it."""

    def __init__(self, path: Path, lease: Lease, clock: Callable[[], float] = time.time) -> None:
        self.path, self.lease, self.clock = path, lease, clock
        self._close_torn_line()

    def append(self, event: str, **values: Any) -> Event:
        """Writes one event to the disk, and returns it. Raises `LeaseLost` if another writer has taken over."""
        self.lease.check()
        line = {"token": self.lease.token, "time": self.clock(), "event": event, **values}
        body = json.dumps(line, separators=(",", ":"), allow_nan=False)
        with open(self.path, "a") as file:
            file.write(f'{{"crc":{zlib.crc32(body.encode())},{body[1:]}\n')
            file.flush()
            os.fsync(file.fileno())
        return line

    def _close_torn_line(self) -> None:
        if not self.path.exists() or self.path.stat().st_size == 0:
            return
        with open(self.path, "rb+") as file:
            file.seek(-1, os.SEEK_END)
            if file.read(1) != b"\n":
                file.write(b"\n")


def read_events(path: Path) -> tuple[list[Event], list[Damage]]:
    """Events in order, and the lines that could not be read."""
    events: list[Event] = []
    damage: list[Damage] = []
    highest = 0
    for number, event in enumerate(_lines(path), start=1):
        if isinstance(event, str):
            damage.append(Damage(number, event))
        elif event["token"] >= highest:
            highest = event["token"]
            events.append(event)
    return events, damage


def _lines(path: Path) -> Iterator[Event | str]:
    if not path.exists():
        return
    with open(path, "rb") as file:
        for raw in file:
            yield _parse(raw)


def _parse(raw: bytes) -> Event | str:
    head, _, rest = raw.partition(b",")
    body = b"{" + rest.removesuffix(b"\n")
    if head != b'{"crc":%d' % zlib.crc32(body):
        return "its checksum does not match" if raw.endswith(b"\n") else "torn: its writer was killed"
    event: Event = json.loads(body)
    return event
