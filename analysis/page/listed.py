"""Names in a sentence, alone or each with a value."""

from __future__ import annotations

from collections.abc import Sequence

_MOST = 12
_OF_MANY = 5


def listed(names: Sequence[str]) -> str:
    """All of up to 12; of more the first five, and that there are others. Names with commas are kept apart by
    semicolons.
    """
    return _joined(names, ";" if any("," in name for name in names) else ",")


def listed_values(values: Sequence[tuple[str, str]]) -> str:
    """As `listed`, each name with what is said of it."""
    if any("," in name for name, _ in values):
        return _joined([f"{name}: {value}" for name, value in values], ";")
    return _joined([f"{name} {value}" for name, value in values], ",")


def _joined(parts: Sequence[str], separator: str) -> str:
    if len(parts) <= _MOST:
        return f"{separator} ".join(parts)
    return f"{f'{separator} '.join(parts[:_OF_MANY])} and others (the table has all)"
