"""A section of a page: blocks of text, figures and tables in their order, for both pages alike."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import ClassVar


@dataclass(frozen=True)
class Note:
    """A paragraph in small print."""

    text: str
    kind: ClassVar[str] = "note"


@dataclass(frozen=True)
class Items:
    """A list of lines."""

    lines: Sequence[str]
    kind: ClassVar[str] = "items"


@dataclass(frozen=True)
class Terms:
    """Words and their meanings."""

    meanings: Mapping[str, str]
    kind: ClassVar[str] = "terms"


@dataclass(frozen=True)
class Figures:
    """All figures of the section."""

    kind: ClassVar[str] = "figures"


@dataclass(frozen=True)
class Shown:
    """A table by its name, where it has rows."""

    table: str
    folded: bool = False
    """False: open where it is short."""
    kind: ClassVar[str] = "table"


Block = str | Note | Items | Terms | Figures | Shown
"""A text is a paragraph."""


@dataclass(frozen=True)
class Section:
    """What a page shows of one part; without blocks, the reason why it shows nothing."""

    id: str
    title: str
    blocks: Sequence[Block]
    reason: str | None = None
