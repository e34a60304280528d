"""One rank of several that trains runs whose matrices have owners, in many small messages.

Arguments: a JSON file with a list of {folder, execution, killed_after}. Leaves `parameters-RANK.json` in each folder: a
digest of all parameters after each step. A rank kills itself after step `killed_after`, where there is one.
"""

from __future__ import annotations

import hashlib
import json
import os
import signal
import sys
from pathlib import Path

from muloco_runner.config import ExecutionConfig
from muloco_runner.distributed import message_sizes
from muloco_runner.job import run_job
from muloco_runner.record import RunFolder
from muloco_runner.training.loop import Trainer

step_workers = Trainer.step_workers


def train(folder: RunFolder, execution: ExecutionConfig, killed_after: int | None) -> int:
    digests = []

    def watched(self: Trainer) -> None:
        if self.state.step == killed_after:
            os.kill(os.getpid(), signal.SIGKILL)
        step_workers(self)
        values = b"".join(tensor.detach().numpy().tobytes() for tensor in self.state.workers[0].tensors)
        digests.append(hashlib.sha256(values).hexdigest())

    Trainer.step_workers = watched  # type: ignore[method-assign]
    code = run_job(folder, execution)
    (folder.path / f"parameters-{os.environ['RANK']}.json").write_text(json.dumps(digests))
    return code


if __name__ == "__main__":
    message_sizes.OWNER_MESSAGE_VALUES = 2000
    for job in json.loads(Path(sys.argv[1]).read_text()):
        if code := train(RunFolder(job["folder"]), ExecutionConfig(**job["execution"]), job["killed_after"]):
            sys.exit(code)
