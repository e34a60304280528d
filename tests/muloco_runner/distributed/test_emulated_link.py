"""An emulated link is never faster than it says, shared by what overlaps, and off unless asked for."""

import itertools
import threading
import time

import pytest

from muloco_runner.config import ConfigError, ExecutionConfig
from muloco_runner.distributed.traffic import EmulatedLink, Traffic, emulated_link


def test_an_exchange_takes_bytes_over_bandwidth_plus_latencies(monkeypatch: pytest.MonkeyPatch) -> None:
    link = EmulatedLink(megabits_per_second=8, latency_milliseconds=5)
    assert link.seconds(20_000, rounds=2) == 20_000 / 1e6 + 2 * 5e-3
    traffic, began = Traffic(link), time.perf_counter()
    with traffic.waiting(traffic.begin(20_000, 10_000, rounds=2)):
        pass
    assert time.perf_counter() - began >= link.seconds(20_000, rounds=2)
    assert traffic.read().wait_seconds >= link.seconds(20_000, rounds=2)
    # What the machine's own network took is part of it: nothing is left to wait for.
    slept: list[float] = []
    monkeypatch.setattr("muloco_runner.distributed.traffic.time.sleep", slept.append)
    with traffic.waiting(time.perf_counter() - 10):
        pass
    assert not slept


def test_exchanges_that_overlap_share_the_link(monkeypatch: pytest.MonkeyPatch) -> None:
    link = EmulatedLink(megabits_per_second=8, latency_milliseconds=5)
    with monkeypatch.context() as at_once:
        at_once.setattr(time, "perf_counter", lambda: 100.0)
        ends = [link.reserve(30_000) for _ in range(3)]
    assert [later - earlier for earlier, later in itertools.pairwise(ends)] == pytest.approx([0.03, 0.03])
    assert ends[-1] - 100.0 == pytest.approx(3 * 0.03 + 5e-3)


def test_no_link_is_emulated_unless_asked_for() -> None:
    assert emulated_link(ExecutionConfig(), "cuda") is None
    latency_only = emulated_link(ExecutionConfig(link_latency_milliseconds=1), "cpu")
    assert latency_only is not None
    assert latency_only.seconds(10**9) == 1e-3


def test_a_gpu_has_no_emulated_link() -> None:
    with pytest.raises(ConfigError, match=r"link_megabits_per_second=100.*execution\.device=cpu"):
        emulated_link(ExecutionConfig(link_megabits_per_second=100), "cuda")


def test_two_threads_traffic_adds_up_and_training_alone_waits() -> None:
    training = Traffic()
    beside = training.beside_training()

    def count(traffic: Traffic) -> None:
        for _ in range(2000):
            traffic.begin(3, 5)
            traffic.wait(0.5)

    threads = [threading.Thread(target=count, args=(traffic,)) for traffic in (training, beside)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    total = training.read()
    assert (total.bytes_sent, total.bytes_received, total.wait_seconds) == (12_000, 20_000, 1000)


def test_a_pause_is_not_counted_but_what_goes_on_beside_it_is() -> None:
    training = Traffic(EmulatedLink(megabits_per_second=1e-6, latency_milliseconds=0))
    beside = training.beside_training()
    training.is_paused = True
    assert training.begin(7, 7) == 0
    training.wait(1.0)
    assert training.read().bytes_sent == 0
    assert training.read().wait_seconds == 0
    assert beside.begin(7, 7) > time.perf_counter() + 1
    assert training.read().bytes_sent == 7
