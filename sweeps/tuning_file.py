"""Keeps the file of a sweep that says by what rules it goes on, and how they stand."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Callable
from dataclasses import replace
from typing import Any

from muloco_runner.record import SweepTuning
from sweeps.engine.capacity import MAX_GPU_HOURS
from sweeps.engine.sweep_state import SweepState
from sweeps.engine.tuning.growth import Growth
from sweeps.engine.tuning.rules_in_words import rule_lines
from sweeps.store.folder import SweepFolder

_SECONDS = 10.0
"""Between two looks at the groups, which is a while where there are thousands of runs."""


class TuningFile:
    """`tuning.json` of one sweep, as one controller has written it."""

    def __init__(self, folder: SweepFolder, cluster: str, growth: Growth | None) -> None:
        self.folder, self.cluster, self.growth = folder, cluster, growth
        self._written: object = None
        """What it was written of."""
        self._written_at = -math.inf

    def keep(self, state: SweepState, now: float, check: Callable[[], None]) -> None:
        """Brings it up to date, after `check`, where something has changed; a file that cannot be written now is
        written at a later look."""
        if state.is_over or now - self._written_at >= _SECONDS:
            self._write(state, now, check)

    def end(self, state: SweepState, now: float, check: Callable[[], None]) -> None:
        """Writes it, after `check`, where its controller ends, whenever it was last written."""
        self._written = None
        self._write(state, now, check)

    def _write(self, state: SweepState, now: float, check: Callable[[], None]) -> None:
        results = len(state.losses), len(state.stopped)
        known = (results, len(state.added), len(state.blocked), state.own_limits.get(MAX_GPU_HOURS), state.is_over)
        if known == self._written:
            return
        check()
        with contextlib.suppress(OSError):
            self.folder.write_tuning(replace(self._tuning(state), **self._moment(state, now)))
            self._written, self._written_at = known, now

    def _moment(self, state: SweepState, now: float) -> dict[str, Any]:
        """Of when it is, for readers of a file whose controller was killed."""
        ledger = self.folder.ledger_file
        length = ledger.stat().st_size if ledger.exists() else 0
        return {"as_of": now, "ledger_bytes": length, "is_final": state.is_over}

    def _tuning(self, state: SweepState) -> SweepTuning:
        facts = self.folder.name, self.cluster, state.own_limits.get(MAX_GPU_HOURS)
        if self.growth is None:
            return SweepTuning(*facts)
        standings, contests = self.growth.standings(state), self.growth.contests()
        rules = tuple(rule_lines(self.growth.study))
        return SweepTuning(*facts, rules, tuple(standings), tuple(one.standing for one in contests))
