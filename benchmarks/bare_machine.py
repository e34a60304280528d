"""Imported first by benchmarks that a GPU's machine runs: finds this project where it is not installed, and says in one
line what else is missing where there is torch and little else."""

from __future__ import annotations

import sys
from importlib.util import find_spec
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))
PACKAGES = {"numpy": "numpy", "rich": "rich", "yaml": "pyyaml"}
"""Modules that these benchmarks need beside torch, and the packages that hold them."""
missing = [package for module, package in PACKAGES.items() if find_spec(module) is None]
if missing:
    sys.exit(f"{Path(sys.argv[0]).name} needs {' and '.join(missing)} beside torch: pip install {' '.join(missing)}")
