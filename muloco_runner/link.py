"""What goes over a rank's link: counted, and on an emulated link as slow as on the real one."""

from __future__ import annotations

import threading
import time
from dataclasses import dataclass

from muloco_runner.config import ExecutionConfig


@dataclass(frozen=True)
class TrafficCount:
    """Of one rank, since its attempt began."""

    bytes_sent: int
    bytes_received: int
    wait_seconds: float
    """Time in which training stood still for communication, waiting for slower ranks included."""


class Traffic:
    """Counters that the training thread and one in the background may share."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._sent = self._received = 0
        self._wait_seconds = 0.0

    def add(self, sent: int, received: int) -> None:
        """Bytes of one exchange: the payload itself, without the network's own headers."""
        with self._lock:
            self._sent += sent
            self._received += received

    def wait(self, seconds: float) -> None:
        with self._lock:
            self._wait_seconds += seconds

    def read(self) -> TrafficCount:
        with self._lock:
            return TrafficCount(self._sent, self._received, self._wait_seconds)


class EmulatedLink:
    """A full-duplex link of this rank to all others. Exchanges that overlap share it one after the other.

    An exchange takes at least its larger direction's bytes over the bandwidth, and the latency once for each of its
    rounds; what the machine's own network took counts as part of that.
    """

    def __init__(self, megabits_per_second: float | None, latency_milliseconds: float) -> None:
        self.bytes_per_second = float("inf") if megabits_per_second is None else megabits_per_second * 1e6 / 8
        self.latency_seconds = latency_milliseconds / 1e3
        self._lock = threading.Lock()
        self._free_at = 0.0

    def seconds(self, num_bytes: int, rounds: int = 1) -> float:
        """What an exchange of so many bytes takes on an idle link."""
        return num_bytes / self.bytes_per_second + rounds * self.latency_seconds

    def carry(self, began: float, num_bytes: int, rounds: int = 1) -> None:
        """Returns no earlier than an exchange that began then (`time.perf_counter`) would have ended."""
        with self._lock:
            start = max(began, self._free_at)
            self._free_at = start + num_bytes / self.bytes_per_second
            end = self._free_at + rounds * self.latency_seconds
        remaining = end - time.perf_counter()
        if remaining > 0:
            time.sleep(remaining)


def emulated_link(execution: ExecutionConfig) -> EmulatedLink | None:
    """The link that `execution` asks for; None for the network as it is."""
    if execution.link_megabits_per_second is None and not execution.link_latency_milliseconds:
        return None
    return EmulatedLink(execution.link_megabits_per_second, execution.link_latency_milliseconds)
