"""Where the nodes of emulated clusters are found: ports and names that several clusters on one machine share out."""

from __future__ import annotations

import fcntl
import os
import random
import socket

import psutil

_HOSTS_MARK = "# emulated by tests/cluster"


class PortBlock:
    """Ports below the range that outgoing connections draw from, so that a restarted daemon finds its own free; a
    socket on the block's last one keeps other clusters away."""

    _WIDTH = 50

    def __init__(self, count: int) -> None:
        assert count < self._WIDTH
        starts = range(10_000, 30_000, self._WIDTH)
        for start in random.Random().sample(starts, len(starts)):
            self.numbers = list(range(start, start + count))
            keeper = _listener(start + self._WIDTH - 1)
            if keeper is None:
                continue
            probes = [_listener(port) for port in self.numbers]
            for probe in probes:
                if probe is not None:
                    probe.close()
            if None not in probes:
                self._keeper = keeper
                return
            keeper.close()
        raise AssertionError("no block of free ports")

    def release(self) -> None:
        self._keeper.close()


def _listener(port: int) -> socket.socket | None:
    """None where the port is taken."""
    probe = socket.socket()
    try:
        probe.bind(("127.0.0.1", port))
        probe.listen()
    except OSError:
        probe.close()
        return None
    return probe


def name_in_hosts(nodes: list[str]) -> None:
    """Gives each node's name this machine's address, since MASTER_ADDR of a job is a node's name.

    In place of what this process has named so far; lines of processes that are gone are dropped with it.
    """
    with open("/etc/hosts", "r+") as hosts:
        # Written in place, under a lock: other clusters do the same, and containers mount this very file.
        fcntl.flock(hosts, fcntl.LOCK_EX)
        lines = [line for line in hosts.read().splitlines() if not _is_stale(line)]
        lines += [f"127.0.0.1 {node} {_HOSTS_MARK} {os.getpid()}" for node in nodes]
        hosts.seek(0)
        hosts.write("\n".join(lines) + "\n")
        hosts.truncate()


def _is_stale(line: str) -> bool:
    _, mark, owner = line.partition(f"{_HOSTS_MARK} ")
    return bool(mark) and (int(owner) == os.getpid() or not psutil.pid_exists(int(owner)))
