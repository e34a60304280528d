"""Turns run records into optima, fits, figures and a report. Never imports torch, never talks to SLURM.

As a library: `from analysis import load_study, report`.
"""

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from analysis.report.in_one_call import report
    from analysis.runs import load_study

__all__ = ["load_study", "report"]

DISTRIBUTION = "muloco-sweeps"
"""Whose package this is: the programs look for this line (`muloco_sweeps`), since names can be taken."""
_OFFERED = {"load_study": "analysis.runs", "report": "analysis.report.in_one_call"}


def __getattr__(name: str) -> Any:
    """Loads what the library offers at its first use: the package itself loads nothing."""
    if name not in _OFFERED:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(_OFFERED[name]), name)
