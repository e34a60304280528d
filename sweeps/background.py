"""A controller in the background, on no terminal.

`python -m sweeps.background ROOT NAME` controls the sweep that its folder defines, until it is over.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path

from muloco_runner.config import ConfigError
from muloco_runner.record import ExitCode
from muloco_sweeps import python_command
from sweeps.notify import ON_EVENT, notifier_of
from sweeps.store.folder import SweepFolder
from sweeps.store.lease import read_holder

_START_SECONDS = 60.0


def start(folder: SweepFolder, on_event: str | None = None) -> int:
    """Start the controller of a sweep that is defined; return its pid. `on_event` is told of events (`Notifier`)."""
    command = [*python_command("sweeps.background"), str(folder.root), folder.name]
    return start_process(command, folder, {ON_EVENT: on_event or ""})


def start_process(command: Sequence[str], folder: SweepFolder, environment: Mapping[str, str] | None = None) -> int:
    """Start a command that is to hold the sweep's lease, wait until it does, and return its pid.

    Raises `ConfigError` with the last line of its output where it ends at once.
    """
    log = folder.controller_log
    try:
        log.parent.mkdir(parents=True, exist_ok=True)
        with open(log, "ab") as file:
            process = subprocess.Popen(
                command,
                env={**os.environ, **(environment or {})},
                stdin=subprocess.DEVNULL,
                stdout=file,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )
    except OSError as error:
        raise ConfigError(f"{log}: {error.strerror}: choose another root") from None
    deadline = time.monotonic() + _START_SECONDS
    while time.monotonic() < deadline and process.poll() is None:
        holder = read_holder(folder.lease_dir)
        if holder is not None and holder.pid == process.pid:
            break
        time.sleep(0.1)
    if process.poll() not in (None, ExitCode.FINISHED):
        last = log.read_text(errors="replace").strip().splitlines()[-1:]
        raise ConfigError(f"the controller ended at once: {' '.join(last)}; see {log}")
    return process.pid


def how_to_watch(folder: SweepFolder, pid: int) -> str:
    where = f"{folder.root} --sweep {folder.name}"
    return (
        f"sweep {folder.name}: controller {pid} runs in the background; its output is in {folder.controller_log}\n"
        f"  muloco-sweep status {where}\n  muloco-sweep watch {where}\n  kill {pid}  stops it in order"
    )


def main(root: str, name: str) -> None:
    from sweeps.clusters import make_cluster
    from sweeps.controller import Controller, Tick
    from sweeps.progress_lines import Lines

    folder = SweepFolder(Path(root), name)
    # SIGTERM stops the sweep in order, like Ctrl-C.
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    lines = Lines(lambda line: print(line, flush=True), folder.cluster_dir)
    # Not for its jobs to see.
    notify = notifier_of(name, os.environ.pop(ON_EVENT, None))

    def on_tick(tick: Tick) -> None:
        lines(tick)
        notify(tick)

    Controller(folder, folder.read_definition(), make_cluster).run(on_tick)


if __name__ == "__main__":
    main(*sys.argv[1:])
