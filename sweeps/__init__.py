"""Plans, submits, watches and resubmits many runs under quotas. Never imports torch.

As a library, for any Python function: `from sweeps import Need, Work, launch`.
"""

from typing import TYPE_CHECKING

from muloco_sweeps import loads_at_first_use

if TYPE_CHECKING:
    from sweeps.engine.work import Need, Work
    from sweeps.functions import WorkFailed, launch

__all__ = ["Need", "Work", "WorkFailed", "launch"]

DISTRIBUTION = "muloco-sweeps"
"""Whose package this is: the programs look for this line (`muloco_sweeps`), since names can be taken."""
__getattr__ = loads_at_first_use(
    __name__,
    {
        "Need": "sweeps.engine.work",
        "Work": "sweeps.engine.work",
        "WorkFailed": "sweeps.functions",
        "launch": "sweeps.functions",
    },
)
