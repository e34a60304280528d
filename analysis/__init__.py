"""Turns run records into optima, fits, figures and a report. Never imports torch, never talks to SLURM.

As a library: `from analysis import load_study, report`.
"""

from typing import TYPE_CHECKING

from muloco_sweeps import loads_at_first_use

if TYPE_CHECKING:
    from analysis.report.in_one_call import report
    from analysis.runs import load_study

__all__ = ["load_study", "report"]

DISTRIBUTION = "muloco-sweeps"
"""Whose package this is: the programs look for this line (`muloco_sweeps`), since names can be taken."""
__getattr__ = loads_at_first_use(__name__, {"load_study": "analysis.runs", "report": "analysis.report.in_one_call"})
