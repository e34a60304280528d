"""What happened to a sweep, one event after the other: the lines of its ledger, without checksum."""

from __future__ import annotations

from typing import Any

Event = dict[str, Any]
"""`event` names it, `time` is in Unix seconds; the other keys are the event's own (`SweepState.apply`)."""
