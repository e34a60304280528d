"""Trains one run of DDP-AdamW, DDP-Muon, DiLoCo or MuLoCo on the ranks it is given.

As a library: `from muloco_runner import train, load_run`.
"""

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from muloco_runner.inference.load import load_run
    from muloco_runner.train_run import train

__all__ = ["load_run", "train"]

DISTRIBUTION = "muloco-sweeps"
"""Whose package this is: the programs look for this line (`muloco_sweeps`), since names can be taken."""
_OFFERED = {"train": "muloco_runner.train_run", "load_run": "muloco_runner.inference.load"}


def __getattr__(name: str) -> Any:
    """Loads what the library offers at its first use: the package itself loads nothing."""
    if name not in _OFFERED:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(_OFFERED[name]), name)
