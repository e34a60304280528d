"""A slot of the local cluster, in the protocol of the time: it leaves once nothing waits for its code."""

import fcntl
import json
import os
import time
from pathlib import Path

from sweeps.attempts import run


def serve_slot(folder_name: str, slot: int, gpu: int | None, threads: int, code: str) -> None:
    folder = Path(folder_name)
    with open(folder / "slots" / f"{slot}.lock", "a") as lock:
        fcntl.lockf(lock, fcntl.LOCK_EX)
        (folder / "slots" / f"{slot}.starting").unlink(missing_ok=True)
        mine = folder / "taken" / str(slot)
        mine.mkdir(parents=True, exist_ok=True)
        for path in sorted((folder / "requests").glob("*.json")):
            if json.loads(path.read_text())["code"] != code:
                continue
            os.rename(path, mine / path.name)
            end = {"end": "exited", "exit_code": run(mine / path.name), "at": time.time()}
            draft = folder / "ended" / f".{path.name}"
            draft.write_text(json.dumps(end))
            os.rename(draft, folder / "ended" / path.name)
            (mine / path.name).unlink()
