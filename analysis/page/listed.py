"""Names in a sentence."""

from __future__ import annotations

from collections.abc import Sequence

_MOST = 12
_OF_MANY = 5


def listed(names: Sequence[str]) -> str:
    """All of up to 12; of more the first five, and that there are others."""
    if len(names) <= _MOST:
        return ", ".join(names)
    return f"{', '.join(names[:_OF_MANY])} and others (the table has all)"
