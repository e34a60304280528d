"""All that the library offers, also where a folder of the user's own is called `sweeps` or `analysis`.

    from muloco_runner.api import Need, Work, WorkFailed, launch, load_run, load_study, report, train

The same objects as `from sweeps import launch` and so on (docs/library.md).
"""

import importlib
from typing import TYPE_CHECKING, Any

from muloco_sweeps import claim_names

if TYPE_CHECKING:
    from analysis import load_study, report
    from muloco_runner import load_run, train
    from sweeps import Need, Work, WorkFailed, launch

__all__ = ["Need", "Work", "WorkFailed", "launch", "load_run", "load_study", "report", "train"]
_PACKAGES = {
    **dict.fromkeys(("load_run", "train"), "muloco_runner"),
    **dict.fromkeys(("Need", "Work", "WorkFailed", "launch"), "sweeps"),
    **dict.fromkeys(("load_study", "report"), "analysis"),
}


def __getattr__(name: str) -> Any:
    """Loads what is asked for and nothing else; `muloco_sweeps.NameTaken` where another package has the name of the one
    that it is from in this process."""
    if name not in _PACKAGES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    claim_names(("muloco_runner", _PACKAGES[name]))
    return getattr(importlib.import_module(_PACKAGES[name]), name)
