"""Trains one run of DDP-AdamW, DDP-Muon, DiLoCo or MuLoCo on the ranks it is given.

As a library: `from muloco_runner import train, load_run`.
"""

from typing import TYPE_CHECKING

from muloco_sweeps import loads_at_first_use

if TYPE_CHECKING:
    from muloco_runner.inference.load import load_run
    from muloco_runner.train_run import train

__all__ = ["load_run", "train"]

DISTRIBUTION = "muloco-sweeps"
"""Whose package this is: the programs look for this line (`muloco_sweeps`), since names can be taken."""
__getattr__ = loads_at_first_use(
    __name__, {"train": "muloco_runner.train_run", "load_run": "muloco_runner.inference.load"}
)
