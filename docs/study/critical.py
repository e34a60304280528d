"""Critical batches of the study by the 1% rule, with the bounds that seeds give them, against the paper's."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from numbers_in_words import thousands

from analysis.published.published_tables import critical_batches

Report = Mapping[str, Any]
Bounds = tuple[int | None, int | None]
"""Of a batch in tokens: it is at least the first, below the second; None where that is not known."""
PAIRS = (("DDP-Muon", "DDP-AdamW"), ("MuLoCo K=1", "DiLoCo K=1"))
"""The first's critical batch grows faster in the paper, and is the larger one at its larger sizes."""


def bounds(points: Sequence[Mapping[str, Any]], series: str, num_params: int) -> Bounds:
    """The report's, of one series at one size."""
    at = (series, num_params)
    return next((one["at_least"], one["below"]) for one in points if (one["series"], one["num_params"]) == at)


def curve(report: Report, series: str, num_params: int) -> Sequence[Mapping[str, Any]]:
    """The best setting at each batch."""
    curves = report["loss_vs_batch"]
    found: Sequence[Mapping[str, Any]] = next(
        one["points"] for one in curves if (one["series"], one["num_params"]) == (series, num_params)
    )
    return found


def verdict(one: Bounds, other: Bounds) -> str:
    """Whether the first is the larger, as in the paper."""
    if one[0] is not None and other[1] is not None and one[0] >= other[1]:
        return "agrees"
    if one[1] is not None and other[0] is not None and one[1] <= other[0]:
        return "differs"
    return "cannot be told"


def table(report: Report) -> Iterator[str]:
    """What was found, as lines of Markdown."""
    yield "| size | series | batches tried | best | largest within 1% | 95% interval | seeds |"
    yield "|---|---|---|---|---|---|---|"
    for point in report["critical_batch"]["points"]:
        where = point["series"], point["num_params"]
        batches = [one["global_batch_tokens"] for one in curve(report, *where)]
        cells = [
            thousands(point["num_params"]),
            point["series"],
            f"{min(batches):,} to {max(batches):,}",
            f"{point['best_batch']:,}",
            f"{point['largest_good_batch']:,}",
            _between((point["at_least"], point["below"])),
            str(point["paired_seeds"]),
        ]
        yield f"| {' | '.join(cells)} |"


def orders(report: Report) -> Iterator[str]:
    """The paper's order against what was found, as lines of Markdown."""
    points = report["critical_batch"]["points"]
    sizes = sorted({one["num_params"] for one in points})
    yield "| | paper: at how many sizes larger | size | found, tokens | |"
    yield "|---|---|---|---|---|"
    for pair in PAIRS:
        title = f"critical batch, {pair[0]} against {pair[1]}"
        for size in sizes:
            if not set(pair) <= {one["series"] for one in points if one["num_params"] == size}:
                continue
            one, other = (bounds(points, name, size) for name in pair)
            said = f"{_between(one)}, against {_between(other)}"
            yield f"| {title} | {_published(*pair)} | {thousands(size)} | {said} | **{verdict(one, other)}** |"
    exponents = critical_batches().groupby("series", sort=False)["exponent"].first()
    paper = ", ".join(f"{name} {exponent:.2f}" for name, exponent in exponents.items())
    laws = [one for one in report["critical_batch"]["laws"] if one["definition"] == "cbs_1pct"]
    fitted = sorted(one["series"] for one in laws if one["fit"] is not None)
    said = f"fitted for {', '.join(fitted)}" if fitted else "no fit: sizes with a value are fewer than three"
    outcome = "see the report" if fitted else "cannot be told"
    yield f"| exponent of its growth with tokens | {paper} | all | {said} | **{outcome}** |"


def _published(first: str, second: str) -> str:
    batches = critical_batches().set_index(["series", "num_tokens"])["critical_batch_size"]
    one, other = batches[first], batches[second]
    return f"{int((one > other).sum())} of {len(one)}, equal at {int((one == other).sum())}"


def _between(found: Bounds) -> str:
    match found:
        case None, None:
            return "not bounded"
        case None, high:
            return f"below {high:,}"
        case low, None:
            return f"at least {low:,}"
        case low, high:
            return f"at least {low:,}, below {high:,}"
