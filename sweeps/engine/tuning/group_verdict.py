"""What a rule says of a group of settings."""

from __future__ import annotations

from dataclasses import dataclass

from sweeps.engine.tuning.study import Setting


@dataclass(frozen=True)
class Wanted:
    """A setting that a group lacks."""

    setting: Setting
    like: Setting
    """A setting of the sweep that it is derived from."""
    why: str


@dataclass(frozen=True)
class Verdict:
    """What a group lacks, and what keeps it from being done."""

    wanted: list[Wanted]
    bounds: list[str]
    """What cannot be mended, such as edges that cannot be moved; one sentence each."""
    settled: str = "bracketed on all sides"
    """How it stands where nothing is wanted and nothing keeps it from being done."""

    @property
    def is_interior(self) -> bool:
        return not self.wanted and not self.bounds
