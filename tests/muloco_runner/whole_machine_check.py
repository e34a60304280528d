"""Every section of the check at tiny sizes on this CPU: a minute of a core, so `make test-extras` runs it."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[2]


def test_all_sections_pass_on_a_cpu(tmp_path: Path) -> None:
    out = tmp_path / "check.json"
    command = [sys.executable, "-m", "benchmarks.gpu_check", "--device", "cpu", "--out", str(out)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    said = json.loads(out.read_text())
    assert [section["section"] for section in said["sections"]] == [
        "ceilings", "kernels", "attention", "workers", "speed", "ranks", "tiles", "peers",
    ]  # fmt: skip
    right = {section["section"]: sum(f["verdict"] == "ok" for f in section["findings"]) for section in said["sections"]}
    assert right == {
        "ceilings": 0, "kernels": 26, "attention": 1, "workers": 2, "speed": 0, "ranks": 3, "tiles": 0, "peers": 2,
    }  # fmt: skip
    assert done.stdout.splitlines()[-2] == "The code works here."
