"""`muloco-report`: turns a folder of runs into a report of scaling laws."""

from __future__ import annotations

import argparse
import json
import os
import shlex
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING

from analysis.commands.arguments import Parser, report_parser
from muloco_runner.config import ConfigError
from muloco_runner.record import write_atomically

if TYPE_CHECKING:
    from analysis.runs import Study

FIT_DESCRIPTION = """\
Fit one law to one table by Huber's loss in log space, with intervals.

  muloco-report fit chinchilla runs.csv --bootstrap 4000 --json
  muloco-report fit power runs.csv --column x=num_params --column y=loss

{forms}
"""


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
        return _report(report_parser().parse_args(arguments), arguments)
    except (ConfigError, OSError) as error:
        print(f"muloco-report: {error}", file=sys.stderr)
        return 2


def _fit(arguments: list[str]) -> int:
    from analysis.commands.fit_command import FORMS, add_arguments, run_fit

    forms = "\n".join(f"  {name:15} {form.formula}" for name, form in FORMS.items())
    parser = Parser(
        prog="muloco-report fit",
        description=FIT_DESCRIPTION.format(forms=forms),
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add_arguments(parser)
    return run_fit(parser.parse_args(arguments))


def _compare(arguments: list[str]) -> int:
    from analysis.page.escape import markdown, printable
    from analysis.report.compare import compare_reports, read_report

    parser = Parser(prog="muloco-report compare", description="What differs between two reports.")
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

    Parser(prog="muloco-report schema", description="Print the JSON schema of report.json.").parse_args(arguments)
    print(json.dumps(report_schema(), indent=1))
    return 0


def _published(arguments: list[str]) -> int:
    from analysis.published.comparison import compare
    from analysis.published.page import to_markdown

    parser = Parser(
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


if __name__ == "__main__":
    main()
