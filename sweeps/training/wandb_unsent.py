"""What Weights & Biases has not got of a sweep's records, for its controller's output and for `status`.

<root>/sweeps/<name>/wandb.json     written by the controller: a list of `Unsent`, as of its last look
"""

from __future__ import annotations

import contextlib
import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from muloco_runner.record import write_atomically
from sweeps.formatting import plural

BEING_SENT = "they are being sent"
_FILE = "wandb.json"


@dataclass(frozen=True)
class Unsent:
    """Records of some attempts, all for one reason."""

    attempts: int
    """How many."""
    what: str
    """What is the matter with them, after "records of 3 attempts"."""
    why: str
    remedy: str

    def to_text(self) -> str:
        """Return one line."""
        return f"Weights & Biases: records of {plural(self.attempts, 'attempt')} {self.what}: {self.why}; {self.remedy}"

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)


def waiting(attempts: int, why: str) -> Unsent:
    """Records that the controller is to send, where it could not, or has not yet (`why` is empty)."""
    remedy = "tried again later; `python -m wandb sync` must work where the controller runs"
    return Unsent(attempts, "wait in their folders", why or BEING_SENT, remedy if why else "nothing needs to be done")


def left_behind(attempts: int) -> Unsent:
    """Records of an earlier launch, which this one does not send."""
    why = "this launch does not send them (without execution.wandb_mode=offline)"
    remedy = "launch with execution.wandb_project=NAME execution.wandb_mode=offline, which sends them"
    return Unsent(attempts, "wait in their folders", why, remedy)


def not_kept(attempts: int, why: str) -> Unsent:
    """Records that wandb failed to take in the attempts themselves."""
    remedy = "record.jsonl has everything; correct that in the jobs' Python, and later attempts are recorded there"
    return Unsent(attempts, "are not, or not all, there", why, remedy)


def write_unsent(sweep: Path, found: Sequence[Unsent]) -> None:
    """Replace what is known; a disk without space costs this file alone."""
    with contextlib.suppress(OSError):
        write_atomically(sweep / _FILE, json.dumps([one.to_dict() for one in found]) + "\n")


def was_told(sweep: Path) -> bool:
    """Whether a controller of the sweep has ever had to do with Weights & Biases."""
    return (sweep / _FILE).exists()


def read_unsent(sweep: Path) -> list[Unsent]:
    """Return what a controller has found last; nothing where all is sent, or nobody knows."""
    try:
        return [Unsent(**one) for one in json.loads((sweep / _FILE).read_text())]
    except (OSError, ValueError, TypeError):
        return []
