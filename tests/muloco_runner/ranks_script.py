"""One rank of a test job: trains the given folders one after another, as `srun` would have started it."""

import json
import sys

from muloco_runner.config import ExecutionConfig
from muloco_runner.job import run_job
from muloco_runner.record import RunFolder

if __name__ == "__main__":
    execution = ExecutionConfig(**json.loads(sys.argv[1]))
    sys.exit(max(run_job(RunFolder(folder), execution) for folder in sys.argv[2:]))
