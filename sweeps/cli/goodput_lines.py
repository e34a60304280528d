"""Where the charged hours went, in a line: of a whole sweep, of some runs, or of one."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping

from muloco_runner.record import Goodput
from sweeps.engine.run_states import RunState


def goodput_of(runs: Iterable[RunState]) -> dict[str, Goodput]:
    """Sum the hours that the attempts of some runs were charged, without what no run used of their jobs."""
    found: dict[str, Goodput] = {}
    for run in runs:
        for attempt in run.attempts:
            if attempt.hours:
                found.setdefault("GPU" if run.work.need.gpus else "CPU", Goodput()).add(attempt.hours)
    return found


def goodput_lines(by_processor: Mapping[str, Goodput], whose: str) -> Iterator[str]:
    """Yield a line for each sort of processor that was charged; `whose` hours they are, such as "of ended jobs"."""
    for processor, goodput in by_processor.items():
        if goodput.charged:
            shares = ", ".join(f"{_percent(share)} {kind}" for kind, share in goodput.shares.items())
            rates = "".join(f"; {_amount(rate)} {unit} for each hour" for unit, rate in goodput.rates.items())
            yield f"{_amount(goodput.charged)} {processor}-hours {whose}: {shares}{rates}."


def _amount(number: float) -> str:
    """Three digits: 0.012, 4.1, 8,120,000."""
    return f"{float(f'{number:.3g}'):,.0f}" if number >= 100 else f"{number:.3g}"


def _percent(share: float) -> str:
    return f"{100 * share:.0f}%" if share >= 0.01 else "under 1%"
