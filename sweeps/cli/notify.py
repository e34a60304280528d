"""Tells someone when a run is held and when the sweep ends: a command, or a web address that takes JSON."""

from __future__ import annotations

import json
import shlex
import subprocess
import sys
import urllib.request
from collections.abc import Callable
from http.client import HTTPException
from typing import Any

from muloco_runner.config import ConfigError
from sweeps.controller import Tick

_PATIENCE_SECONDS = 20
_STANDARD_ERROR = 2


def notifier_of(sweep: str, target: str | None) -> Notifier | None:
    """None where nobody is to be told."""
    return Notifier(sweep, target) if target else None


class Notifier:
    """Called after each tick. `target` is http(s)://..., or a command that gets the event as JSON on its input."""

    def __init__(self, sweep: str, target: str) -> None:
        self.sweep = sweep
        self.send = _poster(target) if target.startswith(("http://", "https://")) else _runner(target)
        self.held: set[str] | None = None
        self.ended = False

    def __call__(self, tick: Tick) -> None:
        held = {name: why for why, names in tick.state.counters.held.items() for name in names}
        if self.held is None:
            self.held = set(held)  # what an earlier launch has told already
        new = {name: held[name] for name in sorted(held.keys() - self.held)}
        self.held = set(held)
        if new:
            self._tell({"event": "held", "runs": new})
        over = tick.state.is_over or tick.plan.unschedulable
        if over and not self.ended:
            self.ended = True
            self._tell({"event": "ended", "counts": {word: n for word, n in tick.state.counts.items() if n}})

    def _tell(self, event: dict[str, Any]) -> None:
        """A message that cannot be sent is no reason to stop a sweep."""
        try:
            self.send(json.dumps({"sweep": self.sweep, **event}))
        except (OSError, ValueError, HTTPException, subprocess.SubprocessError) as error:
            print(f"on-event: {_why(error)}", file=sys.stderr)


def _why(error: Exception) -> str:
    """Without the command or address, which may hold a secret."""
    if isinstance(error, subprocess.CalledProcessError):
        return f"the command ended with {error.returncode}"
    if isinstance(error, subprocess.TimeoutExpired):
        return f"the command took more than {_PATIENCE_SECONDS} s"
    if isinstance(error, HTTPException | ValueError):
        return f"the address does not answer as it should ({type(error).__name__})"
    return str(error)


def _poster(address: str) -> Callable[[str], None]:
    def post(text: str) -> None:
        request = urllib.request.Request(address, text.encode(), {"Content-Type": "application/json"})
        with urllib.request.urlopen(request, timeout=_PATIENCE_SECONDS):
            pass

    return post


def _runner(command: str) -> Callable[[str], None]:
    try:
        words = shlex.split(command)
    except ValueError as error:
        raise ConfigError(f"--on-event, or on_event of the cluster: {error} in the command") from None
    if not words:
        raise ConfigError("--on-event, or on_event of the cluster: give a command or an http(s) address")

    def run(text: str) -> None:
        # Our own output may be meant for a program.
        subprocess.run(words, input=text, text=True, check=True, timeout=_PATIENCE_SECONDS, stdout=_STANDARD_ERROR)

    return run
