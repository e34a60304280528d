"""`muloco-report`: turns a folder of runs into a report of scaling laws."""

from __future__ import annotations

import argparse
import json
import os
import shlex
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, NoReturn

from muloco_runner.config import ConfigError
from muloco_runner.record import write_atomically

if TYPE_CHECKING:
    from analysis.runs import Study

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

FIT_DESCRIPTION = """\
Fit one law to one table by Huber's loss in log space, with intervals.

  muloco-report fit chinchilla runs.csv --bootstrap 4000 --json
  muloco-report fit power runs.csv --column x=num_params --column y=loss

{forms}
"""


class _Parser(argparse.ArgumentParser):
    """A mistake is one line, and exit code 2."""

    def error(self, message: str) -> NoReturn:
        print(f"{self.prog}: {message}; see {self.prog} --help", file=sys.stderr)
        sys.exit(2)


def main() -> None:
    """The console script. Exits with 0, or 2 after a mistake in the command or its data."""
    # Thousands of products of tiny matrices: threads would only wait for each other.
    os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")
    sys.exit(run(sys.argv[1:]))


def run(arguments: list[str]) -> int:
    """One command; returns its exit code."""
    try:
        if arguments[:1] == ["fit"]:
            return _fit(arguments[1:])
        if arguments[:1] == ["compare"]:
            return _compare(arguments[1:])
        if arguments[:1] == ["schema"]:
            return _schema(arguments[1:])
        if arguments[:1] == ["published"]:
            return _published(arguments[1:])
        return _report(_report_parser().parse_args(arguments), arguments)
    except (ConfigError, OSError) as error:
        print(f"muloco-report: {error}", file=sys.stderr)
        return 2


def _fit(arguments: list[str]) -> int:
    from analysis.fit_command import FORMS, add_arguments, run_fit

    forms = "\n".join(f"  {name:15} {form.formula}" for name, form in FORMS.items())
    parser = _Parser(
        prog="muloco-report fit",
        description=FIT_DESCRIPTION.format(forms=forms),
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add_arguments(parser, _positive_or_inf, _whole, _resamples)
    _add_reading_arguments(parser)
    return run_fit(parser.parse_args(arguments))


def _compare(arguments: list[str]) -> int:
    from analysis.page.escape import markdown, printable
    from analysis.report.compare import compare_reports, read_report

    parser = _Parser(prog="muloco-report compare", description="What differs between two reports.")
    parser.add_argument("first", type=Path, metavar="A", help="a report.json, or the folder of a report or a study")
    parser.add_argument("second", type=Path, metavar="B", help="the same")
    parser.add_argument("--out", type=Path, metavar="FILE", help="Markdown file to write (default: print it)")
    options = parser.parse_args(arguments)
    tables, notes = compare_reports(read_report(options.first), read_report(options.second))
    title = printable(f"{options.first} and {options.second}")
    parts = [f"# {markdown(title)}\n", *[f"- {markdown(note)}" for note in notes]]
    parts += [f"\n{table.caption}:\n\n{table.to_markdown()}" for table in tables if table.rows]
    text = "\n".join(parts) + "\n"
    if options.out is None:
        print(text, end="")
    else:
        write_atomically(options.out, text)
    return 0


def _schema(arguments: list[str]) -> int:
    from analysis.report.schema import report_schema

    _Parser(prog="muloco-report schema", description="Print the JSON schema of report.json.").parse_args(arguments)
    print(json.dumps(report_schema(), indent=1))
    return 0


def _published(arguments: list[str]) -> int:
    from analysis.published.comparison import compare
    from analysis.published.page import to_markdown

    parser = _Parser(
        prog="muloco-report published",
        description="Fit the published tables and set the results beside what was published.",
    )
    parser.add_argument("--out", type=Path, metavar="FILE", help="Markdown file to write (default: print it)")
    options = parser.parse_args(arguments)
    rows = compare()
    text = to_markdown(rows)
    if options.out is None:
        print(text, end="")
    else:
        write_atomically(options.out, text)
        print(f"{sum(row.met for row in rows)} of {len(rows)} figures met: {options.out}")
    return 0 if all(row.met for row in rows) else 1


def _report_parser() -> argparse.ArgumentParser:
    parser = _Parser(
        prog="muloco-report", description=DESCRIPTION, formatter_class=argparse.RawDescriptionHelpFormatter
    )
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
        "--delta", type=_positive_or_inf, default=1e-3, help="Huber's delta; inf is least squares (%(default)s)"
    )
    fits.add_argument(
        "--bootstrap", type=_resamples, default=1000, help="resamples behind each interval, 0 for none (%(default)s)"
    )
    fits.add_argument("--seed", type=_whole, default=0, help="of the resampling (%(default)s)")
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
    _add_reading_arguments(group)


def _add_reading_arguments(parser: argparse._ActionsContainer) -> None:
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


_OF_TABLES = ("mapping", "identity", "setting", "bookkeeping", "budget_tolerance", "decimal", "separator", "part")


def _report(options: argparse.Namespace, arguments: list[str]) -> int:
    _check(options)
    if options.interactive:
        from analysis.report.interactive import require_plotly

        require_plotly()
    if options.watch is None:
        study, out = _read(options)
        _write(options, study, out, arguments)
        return 0
    seen: object = None
    try:
        while True:
            now = _finished(options)
            if now != seen:
                try:
                    study, out = _read(options)
                    _write(options, study, out, arguments)
                except ConfigError as error:
                    print(f"waiting: {error}", flush=True)
                seen = now
            time.sleep(min(options.watch, _LONGEST_SLEEP))
    except KeyboardInterrupt:
        return 0


_LONGEST_SLEEP = 1e6
"""Seconds; the system takes no wait of centuries."""


def _finished(options: argparse.Namespace) -> object:
    """What changes whenever there is something new to report."""
    from muloco_runner.record import RunFolder

    if options.table is not None:
        return [path.stat().st_mtime_ns if path.exists() else None for path in options.table]
    return sum(folder.result_file.exists() for folder in RunFolder.all_under(options.runs))


def _write(options: argparse.Namespace, study: Study, out: Path, arguments: list[str]) -> None:
    from analysis.questions.going_on import next_runs
    from analysis.questions.options import Options
    from analysis.questions.wall_clock import DEFAULT_BANDWIDTHS_GBITS, Assumptions
    from analysis.report.content import build_report
    from analysis.report.render import write_report
    from analysis.style import read_style

    report = build_report(
        study,
        Options(
            delta=options.delta,
            bootstrap=options.bootstrap,
            seed=options.seed,
            title=options.title,
            budget=options.budget,
            baseline=options.baseline,
            predict=tuple(options.predict),
            interval_width=options.interval_width,
            command=shlex.join(["muloco-report", *arguments]),
            published=options.published,
            style=read_style(options.style),
            bandwidths=tuple(sorted(options.bandwidth or DEFAULT_BANDWIDTHS_GBITS)),
            machine=Assumptions(options.step_seconds, options.bits, options.devices, options.device_flops),
        ),
    )
    write_report(report, out)
    if options.interactive:
        from analysis.report.interactive import write_interactive

        write_interactive(report, out / "interactive.html")
    for line in report["verdict"]["findings"]:
        print(line)
    missing = next_runs.QUESTION.read(report)
    if missing.steps:
        command = next_runs.plan_command(missing, shlex.quote(str(out / next_runs.FILE)))
        print(f"What is open would take {missing.runs} more runs: {command}")
    print(
        f"{report['audit']['used']} of {report['audit']['found']} runs used; report: {out / 'report.html'}", flush=True
    )


def _check(options: argparse.Namespace) -> None:
    """What is wrong whatever the runs say; sizes to predict for, from their texts."""
    if (options.runs is None) == (options.table is None):
        raise ConfigError("name a folder of runs or --table FILE, one of them; see muloco-report --help")
    given = [name for name in _OF_TABLES if getattr(options, name)]
    given += ["repeats"] if options.repeats != "seeds" else []
    if options.table is None and given:
        raise ConfigError(f"--{given[0].replace('_', '-')} has no effect without --table: drop it")
    if options.table is not None and options.corpus is not None:
        raise ConfigError("--corpus has no effect with --table: drop it")
    if options.out is not None and options.out.exists() and not options.out.is_dir():
        raise ConfigError(f"--out {options.out}: is a file; give the folder of the report")
    if options.runs is not None and not options.runs.is_dir():
        raise ConfigError(f"{options.runs}: no such folder")
    if options.predict:
        from analysis.questions.options import parse_size

        options.predict = [parse_size(text) for text in options.predict]


def _read(options: argparse.Namespace) -> tuple[Study, Path]:
    """The runs that were named, and the folder of their report."""
    if options.table is None:
        from analysis.runs import load_study

        return load_study(options.runs, options.corpus), options.out or options.runs / "report"
    from analysis.budgets import TOLERANCE
    from analysis.input.table_files import read_tables
    from analysis.table import Declared, read_mapping, study_of_table

    declared = Declared(
        identity=tuple(options.identity),
        settings=tuple(options.setting),
        bookkeeping=tuple(options.bookkeeping),
        unlabelled_repeats=options.repeats == "unlabelled",
        budget_tolerance=options.budget_tolerance or TOLERANCE,
        decimal=options.decimal,
    )
    table = read_tables(options.table, options.separator, options.part)
    study = study_of_table(table.source, table, read_mapping(options.mapping), declared)
    return study, options.out or options.table[0].parent / "report"


_SMALLEST, _LARGEST = 1e-24, 1e24
"""Beyond them hours and ratios leave the range of floating point."""
_FEWEST_RESAMPLES = 10
"""Fewer have no tails that an interval could be read from."""


def _positive(text: str) -> float:
    value = float(text)
    if not _SMALLEST <= value <= _LARGEST:
        raise argparse.ArgumentTypeError(f"{text}: must be positive and finite, {_SMALLEST:g} to {_LARGEST:g}")
    return value


def _positive_or_inf(text: str) -> float:
    value = float(text)
    if not value > 0:
        raise argparse.ArgumentTypeError(f"{text}: must be positive")
    return value


def _resamples(text: str) -> int:
    value = int(text)
    if value != 0 and value < _FEWEST_RESAMPLES:
        raise argparse.ArgumentTypeError(f"{text}: must be 0, for no intervals, or {_FEWEST_RESAMPLES} or more")
    return value


def _devices(text: str) -> int:
    value = int(text)
    if value < 1:
        raise argparse.ArgumentTypeError(f"{text}: must be one or more")
    return value


def _whole(text: str) -> int:
    value = int(text)
    if value < 0:
        raise argparse.ArgumentTypeError(f"{text}: must be zero or positive")
    return value


if __name__ == "__main__":
    main()
