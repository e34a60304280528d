"""Notifications of held runs, slow nodes, runs that can never run, and the end, as JSON to a command or an address."""

from __future__ import annotations

import json
import shlex
import subprocess
import sys
import urllib.parse
import urllib.request
from collections.abc import Callable
from http.client import HTTPException
from typing import Any

from muloco_runner.config import ConfigError
from sweeps.controller import Tick
from sweeps.engine.sweep_state import SlowNode

ON_EVENT = "MULOCO_ON_EVENT"
"""Environment variable with the target for a controller that another process starts: an address may hold a secret."""
_WHERE = "--on-event, on_event of the cluster or hydra.launcher.on_event"
_TIMEOUT_SECONDS = 20
_STANDARD_ERROR = 2


def notifier_of(sweep: str, target: str | None) -> Callable[[Tick], None]:
    """Return the notifier of a target, one that does nothing where there is none. A mistake raises `ConfigError`."""
    return Notifier(sweep, target) if target else lambda tick: None


class Notifier:
    """Called after each tick. `target` is http(s)://..., or a command that gets the event as JSON on its input."""

    def __init__(self, sweep: str, target: str) -> None:
        self.sweep = sweep
        self.send = _poster(target) if "://" in target.partition(" ")[0] else _runner(target)
        self.held: set[str] | None = None
        self.never: set[str] = set()
        self.slow: dict[str, SlowNode] | None = None
        self.ended = False

    def __call__(self, tick: Tick) -> None:
        held = {name: why for why, names in tick.state.counters.held.items() for name in names}
        if self.held is None:
            self.held = set(held)  # notified by an earlier launch
        new = {name: held[name] for name in sorted(held.keys() - self.held)}
        self.held = set(held)
        if new:
            self._notify({"event": "held", "runs": new})
        never = [why for why in tick.never if why not in self.never]
        self.never.update(never)
        if never:
            self._notify({"event": "never", "why": never})
        slow_before = tick.state.slow_nodes if self.slow is None else self.slow
        self.slow = dict(tick.state.slow_nodes)
        slower = {node: vars(slow) for node, slow in self.slow.items() if slow_before.get(node) != slow}
        if slower:
            self._notify({"event": "slow_node", "nodes": slower})
        over = tick.state.is_over or tick.plan.unschedulable
        if over and not self.ended:
            self.ended = True
            self._notify({"event": "ended", "counts": {word: n for word, n in tick.state.counts.items() if n}})

    def _notify(self, event: dict[str, Any]) -> None:
        """Send an event. A failure is printed and stops nothing."""
        try:
            self.send(json.dumps({"sweep": self.sweep, **event}))
        except (OSError, ValueError, HTTPException, subprocess.SubprocessError) as error:
            print(f"on-event: {_why(error)}", file=sys.stderr)


def _why(error: Exception) -> str:
    """Describe the error without the command or address, which may hold a secret."""
    if isinstance(error, subprocess.CalledProcessError):
        return f"the command ended with {error.returncode}"
    if isinstance(error, subprocess.TimeoutExpired):
        return f"the command took more than {_TIMEOUT_SECONDS} s"
    if isinstance(error, HTTPException | ValueError):
        return f"the address gives no valid answer ({type(error).__name__})"
    return str(error)


def _poster(address: str) -> Callable[[str], None]:
    parts = urllib.parse.urlsplit(address)
    if parts.scheme not in ("http", "https") or not parts.hostname:
        raise ConfigError(f"{_WHERE}: this address begins {parts.scheme}://: give http(s)://HOST/..., or a command")

    def post(text: str) -> None:
        request = urllib.request.Request(address, text.encode(), {"Content-Type": "application/json"})
        with urllib.request.urlopen(request, timeout=_TIMEOUT_SECONDS):
            pass

    return post


def _runner(command: str) -> Callable[[str], None]:
    try:
        arguments = shlex.split(command)
    except ValueError as error:
        raise ConfigError(f"{_WHERE}: {error} in the command") from None
    if not arguments:
        raise ConfigError(f"{_WHERE}: give a command or an http(s) address")

    def run(text: str) -> None:
        # Not to our standard output, which a program may parse.
        subprocess.run(arguments, input=text, text=True, check=True, timeout=_TIMEOUT_SECONDS, stdout=_STANDARD_ERROR)

    return run
