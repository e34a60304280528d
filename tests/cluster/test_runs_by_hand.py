"""Lines that `docs/clusters.md` gives for a run by hand, on the emulated cluster as they stand, but for their sizes."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
from emulated_slurm import PATIENCE_SECONDS, EmulatedSlurm
from node_addresses import PortBlock

pytestmark = pytest.mark.slurm
PAGE = Path(__file__).parents[2] / "docs" / "clusters.md"
SMALL = "model=29k global_batch_tokens=2048 tokens_per_parameter=2.5 execution.device=cpu"


def lines_of_the_page() -> list[str]:
    section = PAGE.read_text().partition("## One run by hand")[2].partition("\n## ")[0]
    blocks = re.findall(r"```sh\n(.*?)```", section, re.S)
    return [line for block in blocks for line in block.splitlines() if not line.startswith("#")]


def smaller(line: str) -> str:
    """Two processes for eight: they share the cores of this machine."""
    line = re.sub(r"(--ntasks(?:-per-node)?|--nproc-per-node) 8", r"\1 2", line)
    line = line.replace("method.num_workers=4", "method.num_workers=2").replace(
        "--cpus-per-task 12", "--cpus-per-task 1"
    )
    return re.sub(r"model=\w+", SMALL, line).replace("--cpus-per-task 96", "--cpus-per-task 2")


def test_each_line_of_the_page_trains_one_run(slurm: EmulatedSlurm, tmp_path: Path) -> None:
    ports = PortBlock(1)  # other programs of this machine may have the page's
    environment = {
        **os.environ, "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}", "FIRST_NODE": "127.0.0.1",
    }  # fmt: skip
    started = []
    for number, line in enumerate(map(smaller, lines_of_the_page())):
        folder = tmp_path / str(number)
        folder.mkdir()
        command = line.replace("srun ", "srun --partition whole --account lab ", 1)
        # torchrun's program is where torch is installed, which may be another environment than this one.
        command = command.replace(" torchrun ", f" {sys.executable} -m torch.distributed.run ")
        command = command.replace(":29500", f":{ports.numbers[0]}")
        jobs = subprocess.Popen(
            ["bash", "-c", command], cwd=folder, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
            text=True,
        )  # fmt: skip
        started.append((command, folder, jobs))
    ranks = []
    for command, folder, jobs in started:
        output, _ = jobs.communicate(timeout=PATIENCE_SECONDS)
        assert jobs.returncode == 0, f"{command}\n{output}"
        (run,) = (folder / "runs" / "runs").iterdir()
        ranks.append(json.loads((run / "result.json").read_text())["num_ranks"])
    ports.release()
    assert ranks == [1, 2, 4, 2, 4]
