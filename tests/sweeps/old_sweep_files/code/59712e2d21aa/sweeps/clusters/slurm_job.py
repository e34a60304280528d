"""What a SLURM job of the time runs."""

import sys
from pathlib import Path

from sweeps.attempts import run

if __name__ == "__main__":
    sys.exit(run(Path(sys.argv[1])))
