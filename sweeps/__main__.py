"""`muloco-sweep`: plans, launches and watches many runs."""

from __future__ import annotations

import argparse
import signal
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from muloco_runner.config import ConfigError
from muloco_runner.record import ExitCode

if TYPE_CHECKING:
    from sweeps.folder import SweepFolder

DESCRIPTION = """\
Plan, launch and watch many runs under a quota.

  muloco-sweep plan +sweep=demo                       what it would cost; submits nothing
  muloco-sweep launch +sweep=demo root=demo           runs it here; again: continues it
  muloco-sweep launch +sweep=demo model=29k seed=0,1  values on the command line narrow the grid or add to it
  muloco-sweep status demo                            what is done, running, waiting and held, and why

A sweep is a file under conf/sweep, a cluster one under conf/cluster (cluster=NAME). A sweep may be stopped at any
moment, with Ctrl-C or harder; launched again it continues, and trains no finished run twice.
"""


def main() -> None:
    """The console script. Never returns: exits with one of `ExitCode`."""
    parser = _parser()
    arguments = parser.parse_args()
    try:
        code = arguments.command(arguments)
    except ConfigError as error:
        print(f"muloco-sweep: {error}", file=sys.stderr)
        sys.exit(ExitCode.USAGE)
    except KeyboardInterrupt:
        print("\nstopped; the same command continues", file=sys.stderr)
        sys.exit(130)
    sys.exit(code)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="muloco-sweep", description=DESCRIPTION, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    commands = parser.add_subparsers(required=True, metavar="COMMAND")
    for name, function, text in (
        ("plan", plan, "runs, verdicts and cost of a sweep; submits nothing"),
        ("launch", launch, "run a sweep, or continue it"),
    ):
        command = commands.add_parser(name, help=text, description=text)
        command.add_argument(
            "overrides", nargs="+", metavar="KEY=VALUE", help="+sweep=NAME, cluster=NAME, root=FOLDER, keys of the grid"
        )
        command.set_defaults(command=function)
    command = commands.add_parser("status", help="what is done, running, waiting and held, and why")
    _add_place(command)
    command.set_defaults(command=status)
    return parser


def _add_place(command: argparse.ArgumentParser) -> None:
    command.add_argument("root", nargs="?", default="results", type=Path, help="the sweeps' root (default: results)")
    command.add_argument("--sweep", help="which of the root's sweeps; needed only where there are several")


def plan(arguments: argparse.Namespace) -> ExitCode:
    from sweeps.display import show_plan
    from sweeps.launch import read_sweep
    from sweeps.preview import preview

    show_plan(preview(read_sweep(arguments.overrides)))
    return ExitCode.FINISHED


def launch(arguments: argparse.Namespace) -> ExitCode:
    from sweeps.clusters import make_cluster
    from sweeps.controller import Controller
    from sweeps.display import progress, show_end
    from sweeps.launch import read_sweep
    from sweeps.lease import LeaseHeld
    from sweeps.training import prepare

    sweep = read_sweep(arguments.overrides)
    prepare(sweep.runs, sweep.root)
    try:
        controller = Controller(sweep.folder, sweep.definition, make_cluster)
    except LeaseHeld as error:
        raise ConfigError(str(error)) from None
    sweep.folder.write_definition(sweep.definition)
    for damage in controller.damage:
        print(f"ledger line {damage.line}: {damage.why}; passed over", file=sys.stderr)
    # A polite kill is Ctrl-C from afar.
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    with progress(sweep) as on_tick:
        state = controller.run(on_tick)
    show_end(sweep, state)
    return ExitCode.FINISHED if state.counts["done"] == len(state.runs) else ExitCode.CRASH


def status(arguments: argparse.Namespace) -> ExitCode:
    from sweeps.display import show_status

    for folder in find_sweeps(arguments.root, arguments.sweep):
        show_status(folder)
    return ExitCode.FINISHED


def find_sweeps(root: Path, name: str | None) -> Sequence[SweepFolder]:
    """The root's sweeps, or the named one. None at all raises `ConfigError`."""
    from sweeps.folder import SweepFolder

    found = [folder for folder in SweepFolder.all_under(root) if name in (None, folder.name)]
    if not found:
        what = f"sweep {name!r}" if name else "sweep"
        raise ConfigError(f"{root}: holds no {what}: give the folder that `launch` was given as root=")
    return found


if __name__ == "__main__":
    main()
