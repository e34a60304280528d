"""What the sections of a check find: printed as they come, and kept where a crash does not take them along."""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

Verdict = Literal["ok", "wrong", "meets", "misses", "absent", ""]
"""ok, wrong: of a result that is right or not; meets, misses: of a speed that was hoped for; absent: what it needs is
not here; empty: a figure without a bar."""


@dataclass(frozen=True)
class Finding:
    """One figure."""

    section: str
    what: str
    value: float | str
    unit: str = ""
    verdict: Verdict = ""
    bar: str = ""
    """What the value is held against, in words: "at most 0.03"."""

    def __str__(self) -> str:
        value = self.value if isinstance(self.value, str) else f"{self.value:.4g}"
        words = [f"{self.what}: {value}", self.unit, f"({self.bar})" if self.bar else "", self.verdict]
        return " ".join(word for word in words if word)


class Findings:
    """Those of one section, appended to a file as JSON lines."""

    def __init__(self, section: str, file: Path) -> None:
        self._section, self._file = section, file

    def add(self, what: str, value: float | str, unit: str = "", verdict: Verdict = "", bar: str = "") -> None:
        """Print and keep a figure."""
        finding = Finding(self._section, what, value, unit, verdict, bar)
        print(f"  {finding}", flush=True)
        with self._file.open("a") as file:
            file.write(json.dumps(asdict(finding)) + "\n")

    def at_most(self, what: str, value: float, most: float, unit: str = "") -> None:
        """Add a result that is wrong where it exceeds `most`, or is NaN."""
        self.add(what, value, unit, "ok" if value <= most else "wrong", f"at most {most:g}")

    def holds(self, what: str, holds: bool) -> None:
        """Add a property that must hold."""
        self.add(what, "yes" if holds else "no", verdict="ok" if holds else "wrong")

    def hoped(self, what: str, value: float, least: float, unit: str = "") -> None:
        """Add a speed beside the least that was hoped for."""
        self.add(what, value, unit, "meets" if value >= least else "misses", f"hoped for {least:g}")


def read_findings(file: Path) -> list[Finding]:
    """Read what has been kept; a line that was cut short by a crash is left out."""
    if not file.exists():
        return []
    return list(_whole(file.read_text().splitlines()))


def _whole(lines: Iterable[str]) -> Iterable[Finding]:
    for line in lines:
        try:
            values: dict[str, Any] = json.loads(line)
        except ValueError:
            continue
        yield Finding(**values)
