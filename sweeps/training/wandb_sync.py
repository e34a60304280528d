"""Sends to Weights & Biases, from the controller's host, what runs on nodes without internet left in their folders.

    attempts/N/wandb/offline-run-*/run-ID.wandb     what an attempt left
    attempts/N/wandb-sent.json                      size and time of what has been sent of it

One process at a time sends, `python -m sweeps.training.wandb_sync ATTEMPT...`. It may outlive its controller: it holds
a lock on the attempt while it sends, and notes itself what it has sent, so that nothing is sent twice. The key is left
to wandb, which finds it where `wandb login` has put it; what is printed here never holds it.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

from muloco_runner.record import WANDB_FAILURE, write_atomically
from muloco_sweeps import PYTHON, python_command
from sweeps.controller import Tick
from sweeps.engine.policy import doubled
from sweeps.engine.sweep_state import SweepState
from sweeps.engine.work import Work
from sweeps.training.wandb_unsent import BEING_SENT, Unsent, left_behind, not_kept, waiting, was_told, write_unsent

_INTERVAL_SECONDS = 30.0
"""Least time between two processes; doubled after each that has failed, up to `_LONGEST_SECONDS`."""
_LONGEST_SECONDS = 600.0
_ATTEMPTS_AT_ONCE = 8
_TIMEOUT_SECONDS = 300.0
"""Of one attempt: wandb itself tries for very long to reach a service."""
_LAST_SECONDS = 120.0
"""Time that the end of a sweep waits for the last attempts to be sent."""
_SENT = "wandb-sent.json"


def syncer_of(works: Sequence[Work], log: Path, print_line: Callable[[str], None]) -> Syncer | None:
    """Return what sends the sweep's records where its runs keep them for that, and tells what is not sent.

    None where neither this launch nor an earlier one has a project there.
    """
    execution = works[0].arguments.get("execution", {}) if works else {}
    if execution.get("wandb_project") is None and not was_told(log.parent) and not log.exists():
        return None
    return Syncer(log, print_line, execution.get("wandb_mode") == "offline")


class Syncer:
    """Called after each tick: sends attempts that have ended, a few at a time, in a process beside the controller.

    What W&B has not got, and why, is printed when that changes, and kept beside the log for `status`.
    """

    def __init__(self, log: Path, print_line: Callable[[str], None], sends: bool = True) -> None:
        """`log` gets what the process prints: one line for each attempt that could not be sent. Unless it `sends`,
        what earlier launches have left is only told."""
        self.log, self.print_line, self.sends = log, print_line, sends
        self.process: subprocess.Popen[bytes] | None = None
        self.settled: set[Path] = set()
        """Attempts of which there is nothing to send any more."""
        self.failed: dict[Path, str] = {}
        """Attempts in which wandb itself failed, and its words."""
        self.next_at, self.failures, self.why, self.num_unsent = 0.0, 0, "", 0
        self.told: dict[str, str] = {}
        """Why records are not sent, as printed last, by what is the matter with them."""
        self.written: list[Unsent] | None = None

    def __call__(self, tick: Tick) -> None:
        self.advance(tick.state)

    def advance(self, state: SweepState) -> bool:
        """Take in a process that has ended and start the next where it is time; return whether one is at work."""
        if self.process is not None:
            if self.process.poll() is None:
                return True
            self.process = None
            self._take_in()
        if time.monotonic() < self.next_at:
            return False
        attempts = self._unsent(state)
        self.num_unsent = len(attempts)
        self._wait()
        if self.sends and attempts:
            self._start(attempts[:_ATTEMPTS_AT_ONCE])
        self._tell()
        return self.process is not None

    def finish(self, state: SweepState) -> None:
        """Send what is left once the sweep has ended; one that takes longer goes on by itself."""
        deadline = time.monotonic() + _LAST_SECONDS
        self.next_at, self.failures = 0.0, 0
        while self.advance(state) and not self.failures:
            if time.monotonic() > deadline:
                self.print_line("Weights & Biases: sending goes on without this command")
                return
            time.sleep(0.1)
            self.next_at = 0.0

    def _unsent(self, state: SweepState) -> list[Path]:
        """Return the attempts that have left records; take in what wandb failed at in others."""
        found = []
        for run in state.runs.with_history():
            for attempt in run.attempts:
                path = Path(run.work.folder) / "attempts" / str(attempt.number)
                if path in self.settled:
                    continue
                if path not in self.failed and (path / WANDB_FAILURE).exists():
                    self.failed[path] = (path / WANDB_FAILURE).read_text(errors="replace").strip()
                if attempt.cause is None:
                    continue
                if any(_unsent_files(path)):
                    found.append(path)
                else:
                    self.settled.add(path)
        return found

    def _tell(self) -> None:
        found = []
        if self.num_unsent:
            found = [waiting(self.num_unsent, self.why) if self.sends else left_behind(self.num_unsent)]
        if self.failed:
            found.append(not_kept(len(self.failed), next(reversed(self.failed.values()))))
        if found != self.written:
            self.written = found
            write_unsent(self.log.parent, found)
        # Numbers change all the time.
        for one in found:
            if self.told.get(one.what) != one.why:
                self.told[one.what] = one.why
                if one.why != BEING_SENT:
                    self.print_line(one.to_text())

    def _start(self, attempts: Sequence[Path]) -> None:
        try:
            self._start_process(attempts)
        except OSError as error:
            self._failed(f"{error.strerror}: {error.filename or self.log}")

    def _start_process(self, attempts: Sequence[Path]) -> None:
        self.log.parent.mkdir(parents=True, exist_ok=True)
        command = [*python_command("sweeps.training.wandb_sync"), *map(str, attempts)]
        with open(self.log, "wb") as file:
            # A session of its own: Ctrl-C ends the controller, and what is being sent is sent.
            self.process = subprocess.Popen(
                command, stdin=subprocess.DEVNULL, stdout=file, stderr=subprocess.STDOUT, start_new_session=True
            )

    def _take_in(self) -> None:
        lines = self.log.read_text(errors="replace").strip().splitlines()
        if lines:
            self._failed(lines[-1])
        else:
            self.failures, self.why = 0, ""

    def _failed(self, why: str) -> None:
        self.failures, self.why = self.failures + 1, why
        self._wait()
        self._tell()

    def _wait(self) -> None:
        self.next_at = time.monotonic() + doubled(_INTERVAL_SECONDS, self.failures, _LONGEST_SECONDS)


def _unsent_files(attempt: Path) -> Iterator[Path]:
    sent = _read_sent(attempt)
    for file in sorted(attempt.glob("wandb/offline-run-*/*.wandb")):
        if sent.get(file.parent.name) != _state_of(file):
            yield file


def _read_sent(attempt: Path) -> dict[str, list[int]]:
    try:
        found: dict[str, list[int]] = json.loads((attempt / _SENT).read_text())
    except (FileNotFoundError, ValueError):
        return {}
    return found


def _state_of(file: Path) -> list[int]:
    found = file.stat()
    return [found.st_size, found.st_mtime_ns]


def send(attempt: Path) -> str:
    """Send what an attempt has left and not sent yet; return why not, in one line, or nothing.

    Where another process is sending it nothing is done.
    """
    with open(attempt / ".wandb-lock", "a") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return ""
        sent = _read_sent(attempt)
        for file in _unsent_files(attempt):
            # wandb marks what it has sent and passes it over: also where this process was killed before it noted so.
            is_newer = file.parent.name in sent
            state = _state_of(file)
            error = _sync(file.parent, is_newer)
            if error:
                return error
            sent[file.parent.name] = state
            write_atomically(attempt / _SENT, json.dumps(sent) + "\n")
    return ""


def _sync(folder: Path, again: bool) -> str:
    command = [*PYTHON, "-m", "wandb", "sync", *(["--include-synced"] if again else []), str(folder)]
    # The mode is about runs that write, and would keep what they wrote here.
    environment = {name: value for name, value in os.environ.items() if name != "WANDB_MODE"}
    try:
        done = subprocess.run(
            command, stdin=subprocess.DEVNULL, capture_output=True, text=True, errors="replace", check=False,
            timeout=_TIMEOUT_SECONDS, env=environment, cwd=folder,
        )  # fmt: skip
    except subprocess.TimeoutExpired:
        return f"the service did not answer within {_TIMEOUT_SECONDS:.0f} s"
    if done.returncode == 0:
        return ""
    words = [*done.stdout.strip().splitlines(), *done.stderr.strip().splitlines()]
    last = words[-1].strip() if words else ""
    key = os.environ.get("WANDB_API_KEY")
    return f"wandb sync ended with {done.returncode}: {last.replace(key, '***') if key else last}"


def main(attempts: Sequence[str]) -> None:
    for path in map(Path, attempts):
        try:
            error = send(path)
        except OSError as failure:
            error = str(failure)
        if error:
            with contextlib.suppress(OSError):
                print(f"{path.parents[1].name}, attempt {path.name}: {error}", flush=True)


if __name__ == "__main__":
    main(sys.argv[1:])
