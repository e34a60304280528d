"""Plans, submits, watches and resubmits many runs under quotas. Never imports torch.

As a library, for any Python function: `from sweeps import Need, Work, launch`.
"""

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from sweeps.engine.work import Need, Work
    from sweeps.functions import WorkFailed, launch

__all__ = ["Need", "Work", "WorkFailed", "launch"]

DISTRIBUTION = "muloco-sweeps"
"""Whose package this is: the programs look for this line (`muloco_sweeps`), since names can be taken."""
_OFFERED = {
    "Need": "sweeps.engine.work",
    "Work": "sweeps.engine.work",
    "WorkFailed": "sweeps.functions",
    "launch": "sweeps.functions",
}


def __getattr__(name: str) -> Any:
    """Loads what the library offers at its first use: the package itself loads nothing."""
    if name not in _OFFERED:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(_OFFERED[name]), name)
