"""One rank of a test job, as `srun` would have started it: trains the given folders one after another.

Arguments: settings as JSON, then the folders that are trained under them; further settings may follow.
"""

import json
import os
import sys

from muloco_runner.config import ExecutionConfig
from muloco_runner.job import run_job
from muloco_runner.record import RunFolder

if __name__ == "__main__":
    execution, code = ExecutionConfig(), 0
    # Under torchrun each rank has counted other attempts, as over a slow shared file system.
    attempt = 1 + int(os.environ.get("LOCAL_RANK", "0"))
    for argument in sys.argv[1:]:
        if argument.startswith("{"):
            execution = ExecutionConfig(**json.loads(argument))
        else:
            code = max(code, run_job(RunFolder(argument), execution, attempt))
    sys.exit(code)
