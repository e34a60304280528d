"""The command line of `muloco-report`: its options, and what their values may be."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import NoReturn

DESCRIPTION = """\
Turn finished runs into a scaling-law report: report.html (one file), report.md, report.json, figures and tables.

  muloco-report results                 every run below results/runs, report in results/report
  muloco-report results --out report    the same, elsewhere
  muloco-report --table runs.csv        the same from any table with one row a run
  muloco-report results --watch         again whenever a run finishes, while a sweep runs
  muloco-report compare A B             what differs between two reports
  muloco-report fit loss-compute t.csv  one law on one table (columns flops, loss, and series where there are several)
  muloco-report schema                  the JSON schema of report.json
  muloco-report published               this program's fits of the published tables beside what was published
"""


class Parser(argparse.ArgumentParser):
    """A mistake is one line, and exit code 2."""

    def error(self, message: str) -> NoReturn:
        print(f"{self.prog}: {message}; see {self.prog} --help", file=sys.stderr)
        sys.exit(2)


def report_parser() -> argparse.ArgumentParser:
    """Options of a report."""
    parser = Parser(prog="muloco-report", description=DESCRIPTION, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("runs", type=Path, nargs="?", metavar="RUNS_DIR", help="folder that holds runs/<run_id>")
    parser.add_argument("--out", type=Path, help="folder of the report (default: RUNS_DIR/report)")
    parser.add_argument("--corpus", help="hash, or its beginning, of the data to report on (default: the commonest)")
    parser.add_argument(
        "--budget",
        type=_positive,
        metavar="D/N",
        help="tokens per parameter to compare at (default: where most sizes are)",
    )
    parser.add_argument(
        "--baseline",
        metavar="SERIES",
        help="series that ratios are relative to (default: DDP-AdamW; where there is none, of the data-parallel series "
        "the one with the most sizes, then runs)",
    )
    parser.add_argument(
        "--predict", nargs="+", action="extend", default=[], metavar="SIZE",
        help="sizes whose best batch and learning rate are predicted: model=7b, N=7e9 or N=7e9,D=1.4e11",
    )  # fmt: skip
    parser.add_argument(
        "--interval-width", type=_positive, default=0.1, metavar="WIDTH",
        help="of the 95%% intervals of exponents: next.yaml proposes sizes until they are as narrow (%(default)s)",
    )  # fmt: skip
    parser.add_argument("--title", default="Scaling-law report", help="heading of the report")
    parser.add_argument(
        "--style", type=Path, metavar="FILE",
        help="YAML with the order, colours, labels, partners and baseline of the series",
    )  # fmt: skip
    parser.add_argument(
        "--published", action="store_true", help="draw the points of arXiv 2505.23725 beside the study's"
    )
    parser.add_argument("--interactive", action="store_true", help="also interactive.html (needs plotly; 5 MB)")
    parser.add_argument(
        "--watch", type=_positive, nargs="?", const=60.0, metavar="SECONDS",
        help="look every so many seconds (%(const)s) whether runs have finished, and write the report again",
    )  # fmt: skip
    _add_table_arguments(parser.add_argument_group("a table instead of folders"))
    fits = parser.add_argument_group("fits")
    fits.add_argument(
        "--delta", type=positive_or_inf, default=1e-3, help="Huber's delta; inf is least squares (%(default)s)"
    )
    fits.add_argument(
        "--bootstrap", type=resamples, default=1000, help="resamples behind each interval, 0 for none (%(default)s)"
    )
    fits.add_argument("--seed", type=whole, default=0, help="of the resampling (%(default)s)")
    clock = parser.add_argument_group("wall clock")
    clock.add_argument(
        "--bandwidth", type=_positive, nargs="+", metavar="GBITS", help="links between workers, Gbit/s (0.1 to 6400)"
    )
    clock.add_argument(
        "--step-seconds", type=_positive, default=1.0, help="compute of a step, idealised model (%(default)s)"
    )
    clock.add_argument("--bits", type=_positive, default=16.0, help="a value takes in an exchange (%(default)s)")
    clock.add_argument("--devices", type=_devices, default=1024, help="of the model with fixed devices (%(default)s)")
    clock.add_argument("--device-flops", type=_positive, default=4e14, help="that one reaches, flop/s (%(default)g)")
    return parser


def _add_table_arguments(group: argparse._ArgumentGroup) -> None:
    group.add_argument(
        "--table",
        type=Path,
        nargs="+",
        action="extend",
        metavar="FILE",
        help="one row a run: .csv .tsv .parquet .jsonl .ndjson .json, also .gz or in a .zip; .xlsx; several files are "
        "one table",
    )
    group.add_argument(
        "--mapping", type=Path, metavar="FILE", help="YAML or JSON: our column names with the table's (loss: eval/loss)"
    )
    group.add_argument(
        "--identity", nargs="+", action="extend", default=[], metavar="COLUMN", help="of the table: tells series apart"
    )
    group.add_argument(
        "--setting", nargs="+", action="extend", default=[], metavar="COLUMN",
        help="of the table: a hyper-parameter, of which the best counts",
    )  # fmt: skip
    group.add_argument(
        "--bookkeeping", nargs="+", action="extend", default=[], metavar="COLUMN",
        help="of the table: says nothing about a run; patterns such as '_*' are understood",
    )  # fmt: skip
    group.add_argument(
        "--repeats", choices=["seeds", "unlabelled"], default="seeds",
        help="what counts as a repeat: runs with distinct seeds, or also runs that agree in everything (%(default)s)",
    )  # fmt: skip
    group.add_argument(
        "--budget-tolerance", type=_positive, metavar="SHARE",
        help="tokens per parameter this close count as one budget (default: 0.1)",
    )  # fmt: skip
    add_reading_arguments(group)


def add_reading_arguments(parser: argparse._ActionsContainer) -> None:
    """How cells are read, for `fit` and for reports of a table."""
    parser.add_argument(
        "--decimal", choices=["point", "comma"], help="decimal mark of the file (default: what its numbers show)"
    )
    parser.add_argument(
        "--separator", choices=["comma", "semicolon", "tab", "pipe"],
        help="between the cells of a .csv or .tsv (default: what its lines show)",
    )  # fmt: skip
    parser.add_argument(
        "--part", metavar="NAME", help="of a file that holds several tables: a sheet, a member of a .zip, a list's name"
    )


_SMALLEST, _LARGEST = 1e-24, 1e24
"""Beyond them hours and ratios leave the range of floating point."""
_FEWEST_RESAMPLES = 10
"""Fewer have no tails that an interval could be read from."""


def _positive(text: str) -> float:
    value = float(text)
    if not _SMALLEST <= value <= _LARGEST:
        raise argparse.ArgumentTypeError(f"{text}: must be positive and finite, {_SMALLEST:g} to {_LARGEST:g}")
    return value


def positive_or_inf(text: str) -> float:
    """A positive number, also infinity; anything else raises what argparse shows."""
    value = float(text)
    if not value > 0:
        raise argparse.ArgumentTypeError(f"{text}: must be positive")
    return value


def resamples(text: str) -> int:
    """Zero, or enough resamples for an interval; anything else raises what argparse shows."""
    value = int(text)
    if value != 0 and value < _FEWEST_RESAMPLES:
        raise argparse.ArgumentTypeError(f"{text}: must be 0, for no intervals, or {_FEWEST_RESAMPLES} or more")
    return value


def _devices(text: str) -> int:
    value = int(text)
    if value < 1:
        raise argparse.ArgumentTypeError(f"{text}: must be one or more")
    return value


def whole(text: str) -> int:
    """Zero or a positive whole number; anything else raises what argparse shows."""
    value = int(text)
    if value < 0:
        raise argparse.ArgumentTypeError(f"{text}: must be zero or positive")
    return value
