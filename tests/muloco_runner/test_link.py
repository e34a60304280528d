"""An emulated link is never faster than it says, shared by what overlaps, and off unless asked for."""

import threading
import time

from muloco_runner.config import ExecutionConfig
from muloco_runner.link import EmulatedLink, Traffic, emulated_link


def test_an_exchange_takes_its_bytes_over_the_bandwidth_and_the_latency_of_each_round() -> None:
    link = EmulatedLink(megabits_per_second=8, latency_milliseconds=5)
    assert link.seconds(20_000, rounds=2) == 20_000 / 1e6 + 2 * 5e-3
    began = time.perf_counter()
    link.carry(began, 20_000, rounds=2)
    assert time.perf_counter() - began >= link.seconds(20_000, rounds=2)
    # What the machine's own network took is part of it: nothing is left to wait for.
    late = time.perf_counter()
    link.carry(late - 10, 20_000)
    assert time.perf_counter() - late < 1


def test_exchanges_that_overlap_share_the_link() -> None:
    link = EmulatedLink(megabits_per_second=8, latency_milliseconds=0)
    began = time.perf_counter()
    threads = [threading.Thread(target=link.carry, args=(began, 30_000)) for _ in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert time.perf_counter() - began >= 3 * 0.03


def test_no_link_is_emulated_unless_asked_for() -> None:
    assert emulated_link(ExecutionConfig()) is None
    latency_only = emulated_link(ExecutionConfig(link_latency_milliseconds=1))
    assert latency_only is not None
    assert latency_only.seconds(10**9) == 1e-3


def test_traffic_of_two_threads_adds_up() -> None:
    traffic = Traffic()

    def count() -> None:
        for _ in range(2000):
            traffic.add(3, 5)

    threads = [threading.Thread(target=count) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert (traffic.read().bytes_sent, traffic.read().bytes_received) == (12_000, 20_000)
