"""The numbers of the study's page and of the README's first screen: all are read from `report/report.json`.

python docs/study/page.py        # writes them between the markers <!-- study: NAME --> and <!-- end --> again
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import critical
import differences
from numbers_in_words import percent, thousands

from analysis.confidence import t_quantile

HERE = Path(__file__).parent
PAGES = (HERE / "README.md", HERE.parents[1] / "README.md")
Report = Mapping[str, Any]
_BLOCK = re.compile(r"(<!-- study: (\w+) -->\n).*?(<!-- end -->)", re.DOTALL)


def best(report: Report) -> Iterator[str]:
    """Best settings, the lowest loss of each size first."""
    yield "| size | series | loss | seeds | batch | learning rate | outer lr, momentum |"
    yield "|---|---|---|---|---|---|---|"
    for one in sorted(report["best"], key=lambda one: (one["num_params"], one["loss"])):
        error = "" if one["loss_se"] is None else f" ± {one['loss_se']:.4f}"
        chosen = "" if one["unbiased"] else " (on seeds that chose it)"
        outer = "" if one["outer_lr"] is None else f"{one['outer_lr']:g}, {one['outer_momentum']:g}"
        yield (
            f"| {thousands(one['num_params'])} | {one['series']} | {one['loss']:.4f}{error}{chosen} | {one['seeds']} "
            f"| {one['global_batch_tokens']:,} | {one['lr']:.3g} | {outer} |"
        )


def budgets(report: Report) -> Iterator[str]:
    """The best of each series at each token budget, against the baseline seed by seed."""
    found = report["questions"]["token_budgets"]
    yield f"| size | tokens per parameter | series | loss | seeds | against {found['baseline']} | 95% interval |"
    yield "|---|---|---|---|---|---|---|"
    for one in found["points"]:
        error = "" if one["loss_se"] is None else f" ± {one['loss_se']:.4f}"
        over = one["against_baseline"]
        against = "" if over is None else percent(over["relative"])
        interval = "" if over is None else "none"
        if over is not None and over["se"] is not None and over["paired_seeds"] > 1:
            reach = t_quantile(over["paired_seeds"] - 1) * over["se"]
            interval = f"{percent(over['relative'] - reach)} to {percent(over['relative'] + reach)}"
        yield (
            f"| {thousands(one['num_params'])} | {one['tokens_per_parameter']:g} | {one['series']} "
            f"| {one['loss']:.4f}{error} | {one['seeds']} | {against} | {interval} |"
        )


def extent(report: Report) -> Iterator[str]:
    """What was run."""
    audit = report["audit"]
    yield "| series | sizes | batches | settings | runs | diverged |"
    yield "|---|---|---|---|---|---|"
    for one in audit["by_series"]:
        cells = [one[key] for key in ("series", "sizes", "batches", "settings", "runs", "diverged")]
        yield f"| {' | '.join(map(str, cells))} |"
    yield f"| all | | | | {audit['used']} | {audit['diverged']} |"


def cost(report: Report) -> Iterator[str]:
    """Charged hours of each slice, by what they went into."""
    rows = report["goodput"]["rows"]
    kinds = list(dict.fromkeys(one["kind"] for one in rows if one["share"] >= 0.001))
    yield f"| slice | core-hours | {' | '.join(kinds)} |"
    yield f"|---|---|{'---|' * len(kinds)}"
    for sweep in dict.fromkeys(one["sweep"] for one in rows):
        of_sweep = [one for one in rows if one["sweep"] == sweep]
        yield f"| {sweep} | {_hours(of_sweep):.2f} | {' | '.join(_share(of_sweep, kind) for kind in kinds)} |"
    yield f"| all | {_hours(rows):.2f} | {' | '.join(_share(rows, kind) for kind in kinds)} |"


def _hours(rows: Sequence[Mapping[str, Any]]) -> float:
    return float(sum(one["hours"] for one in rows))


def _share(rows: Sequence[Mapping[str, Any]], kind: str) -> str:
    return f"{100 * _hours([one for one in rows if one['kind'] == kind]) / _hours(rows):.1f}%"


def rules(report: Report) -> Iterator[str]:
    """How each series and size of each slice stands under the rules of its sweep."""
    yield "| slice | | runs added | stands |"
    yield "|---|---|---|---|"
    for sweep in report["questions"]["tuning_rules"]["sweeps"]:
        for group in sweep["groups"]:
            yield f"| {sweep['sweep']} | {group['label']} | {group['added']} | {group['standing']} |"


def contests(report: Report) -> Iterator[str]:
    """What `decide` found by each slice's rule, at the look at which it decided."""
    for sweep in report["questions"]["tuning_rules"]["sweeps"]:
        for one in sweep["contests"]:
            yield f"- {sweep['sweep']}: {one['outcome']}"


def figures(report: Report) -> Iterator[str]:
    """The report's figures of all sizes."""
    for name in ("loss_vs_batch", "loss_vs_tokens", "training_curves"):
        for path in sorted((HERE / "report").glob(f"{name}_*.svg")):
            yield f"![{name.replace('_', ' ')}, {path.stem.removeprefix(f'{name}_')}](report/{path.name})"


BLOCKS: Mapping[str, Callable[[Report], Iterator[str]]] = {
    "headline": differences.headline,
    "differences": differences.table,
    "critical": critical.table,
    "critical_orders": critical.orders,
    "budgets": budgets,
    "best": best,
    "figures": figures,
    "extent": extent,
    "cost": cost,
    "rules": rules,
    "contests": contests,
}


def filled(text: str, report: Report) -> str:
    """Return a page with its blocks as the report has them. A name that is no block's raises `KeyError`."""
    return _BLOCK.sub(lambda found: "\n".join([found[1] + "\n".join(BLOCKS[found[2]](report)), found[3]]), text)


def write() -> None:
    """Write the blocks of all pages again."""
    report = read_report()
    for page in PAGES:
        page.write_text(filled(page.read_text(), report))


def read_report() -> Report:
    """The study's report.json."""
    content: Report = json.loads((HERE / "report" / "report.json").read_text())
    return content


if __name__ == "__main__":
    write()
