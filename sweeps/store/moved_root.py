"""A sweep whose root was copied, moved or mounted elsewhere: its files hold paths of where it was.

Where it is now is known from the folder that was asked about; where it was, from the folder of a piece of work, which
lies at a known place below the root.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

_BELOW_THE_SWEEP = ("sweeps.hydra_apps.program:run", "sweeps.functions:call")
"""Entries of work whose folders are below the sweep's own; those of all other work are below the root itself."""


@dataclass(frozen=True)
class Move:
    """A root's path in its files, and its path now; both absolute."""

    old: str
    new: str

    def path(self, text: str) -> str:
        """Return a path as it is now; one that is not below the root stays."""
        return f"{self.new}{text[len(self.old) :]}" if text.startswith(f"{self.old}/") else text

    def work(self, values: Mapping[str, Any]) -> dict[str, Any]:
        """Return the values of a `Work` with its folder, and the paths it is called with, as they are now."""
        arguments = {key: self.path(one) if isinstance(one, str) else one for key, one in values["arguments"].items()}
        return {**values, "folder": self.path(values["folder"]), "arguments": arguments}

    def words(self, value: Any) -> Any:
        """Return what was said of the sweep, an event or a part of one, with the paths in it as they are now."""
        if isinstance(value, str):
            return value.replace(f"{self.old}/", f"{self.new}/")
        if isinstance(value, dict):
            return {key: self.words(one) for key, one in value.items()}
        return [self.words(one) for one in value] if isinstance(value, list) else value


def move_of(work: Mapping[str, Any], sweep: str, root: Path) -> Move | None:
    """Return from where to where the root of a sweep has come since the values of one of its works were written.

    None where it has not moved.
    """
    below = f"/sweeps/{sweep}/runs" if work["entry"] in _BELOW_THE_SWEEP else "/runs"
    tail = f"{below}/{work['name']}"
    if not work["folder"].endswith(tail):
        return None
    old, new = work["folder"].removesuffix(tail), str(root.resolve())
    return None if str(Path(old).resolve()) == new else Move(old, new)


def work_here(work: dict[str, Any], sweep: str, root: Path) -> dict[str, Any]:
    """Return the values of one of a sweep's works, written wherever its root was then, with its paths as they are
    now."""
    move = move_of(work, sweep, root)
    return work if move is None else move.work(work)
