"""What a rank sends and receives: counted, and over an emulated link as slow as over a real one."""

from __future__ import annotations

import contextlib
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass

from muloco_runner.config import ConfigError, ExecutionConfig


@dataclass(frozen=True)
class TrafficCount:
    """Traffic of one rank since its attempt started to train."""

    bytes_sent: int = 0
    bytes_received: int = 0
    wait_seconds: float = 0.0
    """Time that training waited for communication, slower ranks included."""


class Traffic:
    """Counts the bytes that this rank sends and receives, and the time that training waits for them.

    Bytes are those of the payload, without the network's own headers.
    """

    def __init__(self, link: EmulatedLink | None = None) -> None:
        self.link = link
        self.is_paused = False
        """While it is, nothing is counted or delayed: what is sent is no part of training."""
        self._counters = _Counters()
        self._counts_waiting = True

    def beside_training(self) -> Traffic:
        """Return the traffic of a thread that training does not wait for: same link, same count of bytes."""
        other = Traffic(self.link)
        other._counters, other._counts_waiting = self._counters, False
        return other

    def begin(self, sent: int, received: int, rounds: int = 1) -> float:
        """Count an exchange that starts now; return the `time.perf_counter` at which the emulated link is done."""
        if self.is_paused:
            return 0.0
        self._counters.add(sent, received, 0.0)
        return 0.0 if self.link is None else self.link.reserve(max(sent, received), rounds)

    @contextlib.contextmanager
    def waiting(self, end: float = 0.0) -> Iterator[None]:
        """Time what waits for an exchange; ends no earlier than `end`, a `time.perf_counter`."""
        start = time.perf_counter()
        yield
        remaining = end - time.perf_counter()
        if remaining > 0:
            time.sleep(remaining)
        self.wait(time.perf_counter() - start)

    def wait(self, seconds: float) -> None:
        """Add time that training has waited."""
        if self._counts_waiting and not self.is_paused:
            self._counters.add(0, 0, seconds)

    def restart(self) -> None:
        """Start to count from zero again."""
        self._counters.total = TrafficCount()

    def read(self) -> TrafficCount:
        """Return the count so far."""
        return self._counters.total


class _Counters:
    """A count that the training thread and one in the background share."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self.total = TrafficCount()

    def add(self, sent: int, received: int, wait_seconds: float) -> None:
        with self._lock:
            old = self.total
            self.total = TrafficCount(
                old.bytes_sent + sent, old.bytes_received + received, old.wait_seconds + wait_seconds
            )


class EmulatedLink:
    """A full-duplex link of this rank to all others. Exchanges that overlap share it one after the other.

    An exchange takes at least its larger direction's bytes over the bandwidth, and the latency once for each of its
    rounds; what the machine's own network takes counts as part of that.
    """

    def __init__(self, megabits_per_second: float | None, latency_milliseconds: float) -> None:
        self.bytes_per_second = float("inf") if megabits_per_second is None else megabits_per_second * 1e6 / 8
        self.latency_seconds = latency_milliseconds / 1e3
        self._lock = threading.Lock()
        self._free_at = 0.0

    def seconds(self, num_bytes: int, rounds: int = 1) -> float:
        """Return how long an exchange of `num_bytes` takes on an idle link."""
        return num_bytes / self.bytes_per_second + rounds * self.latency_seconds

    def reserve(self, num_bytes: int, rounds: int = 1) -> float:
        """Reserve the link for an exchange from now on; return the `time.perf_counter` at which it ends."""
        with self._lock:
            self._free_at = max(time.perf_counter(), self._free_at) + num_bytes / self.bytes_per_second
            return self._free_at + rounds * self.latency_seconds


def emulated_link(execution: ExecutionConfig, device_type: str) -> EmulatedLink | None:
    """Return the emulated link that `execution` asks for; None for the network as it is.

    An emulated link on a device other than a CPU is a `ConfigError`.
    """
    if execution.link_megabits_per_second is None and not execution.link_latency_milliseconds:
        return None
    if device_type != "cpu":
        # A GPU's queue runs on while its host is held back.
        raise ConfigError(
            f"execution.link_megabits_per_second={execution.link_megabits_per_second}, "
            f"execution.link_latency_milliseconds={execution.link_latency_milliseconds}: a link is emulated between "
            f"CPUs alone, and this rank trains on {device_type}: set execution.device=cpu, or leave the link as it is"
        )
    return EmulatedLink(execution.link_megabits_per_second, execution.link_latency_milliseconds)
