"""A controller in the background, on no terminal.

`python -m sweeps.background ROOT NAME` goes on with a sweep as its folder defines it, until nothing is left to do.
"""

from __future__ import annotations

import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path

from muloco_runner.config import ConfigError
from muloco_runner.record import ExitCode
from sweeps.store.folder import SweepFolder
from sweeps.store.lease import read_holder

_START_SECONDS = 60.0


def start(folder: SweepFolder) -> int:
    """Of a sweep that is defined; returns the controller's pid."""
    return start_process([sys.executable, "-m", "sweeps.background", str(folder.root), folder.name], folder)


def start_process(words: Sequence[str], folder: SweepFolder) -> int:
    """A command that is to hold the sweep's lease; its first moments are watched from here. Returns its pid.

    Raises `ConfigError` with its last words where it ends at once.
    """
    log = folder.controller_log
    try:
        log.parent.mkdir(parents=True, exist_ok=True)
        with open(log, "ab") as file:
            process = subprocess.Popen(
                words, stdin=subprocess.DEVNULL, stdout=file, stderr=subprocess.STDOUT, start_new_session=True
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
    place = f"{folder.root} --sweep {folder.name}"
    return (
        f"sweep {folder.name}: controller {pid} is at work in the background; it prints to {folder.controller_log}\n"
        f"  muloco-sweep status {place}\n  muloco-sweep watch {place}\n  kill {pid}  stops it in order"
    )


def main(root: str, name: str) -> None:
    from sweeps.clusters import make_cluster
    from sweeps.controller import Controller
    from sweeps.progress_lines import Lines

    folder = SweepFolder(Path(root), name)
    # A polite kill is Ctrl-C from afar.
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    Controller(folder, folder.read_definition(), make_cluster).run(Lines(lambda line: print(line, flush=True)))


if __name__ == "__main__":
    main(*sys.argv[1:])
