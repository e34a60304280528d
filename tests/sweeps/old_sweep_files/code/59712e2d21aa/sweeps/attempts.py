"""Does a request's attempts, and leaves their endings as the code of the time did."""

import importlib
import json
import socket
import time
from pathlib import Path


def run(request_file: Path) -> int:
    worst = 0
    for attempt in json.loads(request_file.read_text())["attempts"]:
        work, number = attempt["work"], attempt["number"]
        module, _, name = work["entry"].partition(":")
        function, started_at = getattr(importlib.import_module(module), name), time.time()
        code = function(work["folder"], number, attempt["memory_halvings"], **work["arguments"])
        worst = max(worst, code)
        folder = Path(work["folder"], "attempts", str(number))
        folder.mkdir(parents=True, exist_ok=True)
        ending = {"exit_code": code, "host": socket.gethostname(), "started_at": started_at, "ended_at": time.time()}
        (folder / "ending.json").write_text(json.dumps({**ending, "stopped_early": False}) + "\n")
    return worst
