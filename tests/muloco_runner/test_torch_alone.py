"""Where there is torch, numpy and little else, as on many a GPU's machine."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[2]
OTHERS = "hydra omegaconf yaml submitit cloudpickle psutil pandas scipy matplotlib rich wandb pyarrow tokenizers"
IMPORT_ALL = """
import importlib, pkgutil, muloco_runner
command_line = {f"muloco_runner.{name}" for name in ("__main__", "compose", "memory.command", "train_run")}
names = [module.name for module in pkgutil.walk_packages(muloco_runner.__path__, "muloco_runner.")]
of_an_extra = {name for name in names if name.startswith("muloco_runner.jax")}
of_an_extra.add("muloco_runner.inference.lm_eval_model")
assert len(names) > 50 and command_line | of_an_extra < set(names), names
for name in names:
    if name not in command_line | of_an_extra:
        importlib.import_module(name)
"""
IMPORT_BENCHMARKS = """
sys.path[0] = "benchmarks"
import compression, data_loading, muon_step, train_throughput
"""


def python(lines: str, without: str) -> subprocess.CompletedProcess[str]:
    """Runs `lines` in a fresh interpreter that finds no module of `without`."""
    head = f"import sys\nsys.modules.update(dict.fromkeys({without.split()}))\n"
    return subprocess.run([sys.executable, "-c", head + lines], cwd=ROOT, capture_output=True, text=True, check=False)


def test_all_of_the_trainer_but_its_command_line_imports() -> None:
    done = python(IMPORT_ALL, without=OTHERS)
    assert done.returncode == 0, done.stderr


def test_benchmarks_for_a_gpu_need_no_hydra() -> None:
    done = python(IMPORT_BENCHMARKS, without=OTHERS.replace("yaml", "").replace("rich", ""))
    assert done.returncode == 0, done.stderr
    done = python("sys.argv = ['benchmarks/x.py']\n" + IMPORT_BENCHMARKS, without="rich yaml")
    assert done.stderr == "x.py needs rich and pyyaml beside torch: pip install rich pyyaml\n"
    assert done.returncode == 1
