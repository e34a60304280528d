"""Controllers that are killed, and what must hold of the folder that they leave."""

import json
import random
from typing import Any

import pytest
from state_values import values_of

from sweeps.controller import Controller
from sweeps.store.folder import SweepFolder
from sweeps.store.ledger import Ledger


class Killed(BaseException):
    """kill -9, as the code under test sees it: nothing of it runs any more."""


def kill_at_ledger_lines(patch: pytest.MonkeyPatch, luck: random.Random, share: float) -> None:
    """A controller dies before that share of the ledger's lines, and after as many."""
    whole = Ledger.append

    def append(self: Ledger, event: str, **values: Any) -> Any:
        if luck.random() < share:
            raise Killed
        line = whole(self, event, **values)
        if luck.random() < share:
            raise Killed
        return line

    patch.setattr(Ledger, "append", append)


def take_for_dead(folder: SweepFolder) -> None:
    """Whoever has the folder's lease was on another host and is dead."""
    for lease in folder.lease_dir.glob("[0-9]*"):
        lease.write_text(json.dumps({"host": "", "pid": 0, "started_at": 0.0}))


def assert_snapshot_equals_ledger(controller: Controller) -> None:
    """What was read with the snapshot, if there is one, is what the ledger alone says."""
    snapshot = controller.folder.snapshot_file
    if snapshot.exists():
        aside = snapshot.rename(snapshot.parent / "aside")
        replayed = controller.folder.read_state(controller.definition).state
        aside.rename(snapshot)
        assert values_of(controller.state) == values_of(replayed)
        # Elsewhere nobody asks for it, and a snapshot leaves it out.
        assert controller.definition.study is None or controller.state.unscored == replayed.unscored
