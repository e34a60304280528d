"""Weights & Biases as a second destination for a run's records. It never fails or delays a run.

All of it happens in a thread that reads a queue: a service that is slow, unreachable or broken costs one line on
stderr. The key is left to wandb, which reads it from its own environment variable or file; it is never passed on or
written here.
"""

from __future__ import annotations

import contextlib
import dataclasses
import netrc
import os
import queue
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from muloco_runner.config import RunConfig
from muloco_runner.record import WANDB_FAILURE, StepRecord

FLUSH_TIMEOUT_SECONDS = 60.0
"""Time that the end of an attempt waits for the last records to be sent."""


@contextlib.contextmanager
def wandb_sink(
    run: RunConfig, project: str | None, folder: Path, mode: str = "auto", group: str | None = None
) -> Iterator[Callable[[StepRecord], None]]:
    """Yields what to call with each record; wandb's own files go below `folder`. Without a project nothing happens.

    `mode` and `group` are those of `ExecutionConfig`.
    """
    if project is None:
        yield lambda record: None
        return
    records: queue.SimpleQueue[StepRecord | None] = queue.SimpleQueue()
    # A daemon: a call that hangs in it must not keep the process alive.
    thread = threading.Thread(
        target=_send, args=(records, run, project, folder, mode, group), name="wandb", daemon=True
    )
    thread.start()
    try:
        yield records.put
    finally:
        records.put(None)
        thread.join(FLUSH_TIMEOUT_SECONDS)
        if thread.is_alive():
            _warn(folder, f"did not accept the last records within {FLUSH_TIMEOUT_SECONDS:.0f} s")


def _send(
    records: queue.SimpleQueue[StepRecord | None],
    run: RunConfig,
    project: str,
    folder: Path,
    mode: str,
    group: str | None,
) -> None:
    try:
        import wandb

        folder.mkdir(parents=True, exist_ok=True)
        service_run = wandb.init(
            project=project,
            id=run.run_id,
            resume="allow",
            name=f"{run.algorithm} N={run.num_params:,} K={run.num_workers} {run.run_id}",
            group=group or run.algorithm,
            config=run.to_dict(),
            dir=str(folder),
            mode=_mode(mode),
            # Its defaults would also record the terminal, the code and the command line.
            settings=wandb.Settings(
                console="off", silent=True, disable_git=True, disable_code=True, x_disable_meta=True
            ),
        )
        with service_run:
            while (record := records.get()) is not None:
                service_run.log(values_of(record), step=record.step)
        # Waits for its own process, which may not have written the last of them yet.
        wandb.teardown()
    except Exception as error:
        _warn(folder, f"does not record this run ({type(error).__name__}: {' '.join(str(error).split())})")


def _mode(mode: str) -> Any:
    """Return wandb's own word; None leaves it to wandb. `wandb sync` sends the files of an offline run later."""
    if mode != "auto":
        return mode
    return None if "WANDB_MODE" in os.environ or _has_key() else "offline"


def _has_key() -> bool:
    """Whether wandb will find a key where it looks for one: the environment, or the file that `wandb login` writes."""
    if os.environ.get("WANDB_API_KEY"):
        return True
    host = urlsplit(os.environ.get("WANDB_BASE_URL", "https://api.wandb.ai")).hostname
    try:
        return netrc.netrc(os.environ.get("NETRC")).authenticators(str(host)) is not None
    except (OSError, netrc.NetrcParseError):
        return False


def values_of(record: StepRecord) -> dict[str, Any]:
    """The quantities that are set; one for each rank or kind of module becomes NAME/RANK or NAME/KIND."""
    values: dict[str, Any] = {}
    for name, value in dataclasses.asdict(record).items():
        if isinstance(value, list):
            values |= {f"{name}/{rank}": one for rank, one in enumerate(value)}
        elif isinstance(value, dict):
            values |= {f"{name}/{kind}": one for kind, one in value.items()}
        elif value is not None and name != "step":
            values[name] = value
    return values


def _warn(folder: Path, what: str) -> None:
    print(f"Weights & Biases {what}; record.jsonl has everything", file=sys.stderr, flush=True)
    with contextlib.suppress(OSError):
        folder.mkdir(parents=True, exist_ok=True)
        (folder / WANDB_FAILURE).write_text(f"it {what}\n")
