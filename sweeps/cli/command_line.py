"""The command line of `muloco-sweep`: its commands, their options, and its help."""

from __future__ import annotations

import argparse
from collections.abc import Sequence

from muloco_runner.config import ConfigError
from muloco_runner.flags import Parser, any_number, any_text, one_of, whole_number

DESCRIPTION = """\
Plan, launch and watch many runs under a quota.

  muloco-sweep init                           a file for this cluster, a sweep
  muloco-sweep plan +sweep=demo               what it would cost
  muloco-sweep simulate +sweep=demo --faults rough
                                              in numbers alone, with failures
  muloco-sweep launch +sweep=demo root=demo   run it; again: continue it
  muloco-sweep launch +sweep=demo model=29k seed=0,1
                                              narrows the grid, or adds to it
  muloco-sweep plan demo/report/next.yaml     what a report says is missing
  muloco-sweep launch +sweep=demo cluster=h100 --controller slurm
                                              its controller as a small job
  muloco-sweep status demo algorithm=muloco   what is done, waits, is held; why
  muloco-sweep explain 3fa demo               the history of the run 3fa...
  muloco-sweep quota demo --nodes 12          another quota, from now on
  muloco-sweep retry demo model=82k           try held runs again
  muloco-sweep clean demo --keep best --all   leave the best runs' weights alone

A sweep is a file under conf/sweep, or any other by its path (./mine.yaml);
a cluster one under conf/cluster (cluster=NAME). Own files of all choices are
found before the built-in ones in --config-dir DIR (may be said several times),
in the folders that MULOCO_CONF lists, and in ./conf; conf_path=none turns that
off. A sweep may be stopped at any moment, with Ctrl-C
or harder; launched again it continues, and trains no finished run twice.

Filters: algorithm=muloco, model=82k, seed=0,1, inner_optimizer.lr=0.02, run=3f.
ROOT is the folder that launch was given as root=; results where none is named.

For programs: every command takes --json, asks nothing, and says the same when
it is given twice. Exit codes: 0 done as said; 1 runs are left or held, or
something broke and the same command continues; 2 a mistake in what was asked,
of which one line tells, and nothing was submitted; 130 interrupted.
docs/programs.md lists what each command prints.
"""

# Name, what it does, options. Those that change runs need a filter or --all.
_ON_SWEEPS: dict[str, tuple[str, tuple[str, ...]]] = {
    "status": ("what is done, running, waiting and held, and why", ()),
    "watch": ("status, redrawn until the sweep is over", ()),
    "pause": ("submit nothing more; running jobs continue", ()),
    "resume": ("submit again", ()),
    "quota": ("show the limits and what is used of them, or change the sweep's own while it runs", ()),
    "cancel": ("end runs and hold them", ("--all",)),
    "hold": ("keep waiting runs from starting", ("--all",)),
    "retry": ("try held runs again, with new budgets", ("--all",)),
    "clean": ("what weights finished runs keep, and what they take; with --keep, remove others", ("--all",)),
}
_ON_RUNS: dict[str, tuple[str, tuple[str, ...]]] = {
    "explain": ("the whole history of a run and what happens next", ()),
    "logs": ("the output of a run's newest attempt", ()),
}


def parse(words: Sequence[str]) -> argparse.Namespace:
    """Parse a command line whose options may stand before, between or after its other words."""
    parser = make_parser()
    arguments: argparse.Namespace
    arguments, others = parser.parse_known_args(words)
    unknown = [word for word in others if word.startswith("-")]
    if unknown:
        raise command_of(parser, arguments.name).unknown(unknown)
    for name in ("root_and_filters", "overrides"):
        if hasattr(arguments, name):
            getattr(arguments, name).extend(others)
            others = []
    if others:
        raise command_of(parser, arguments.name).unknown(others)
    if hasattr(arguments, "overrides"):
        arguments.overrides = [_sweep_of_path(word) for word in arguments.overrides]
    for word in getattr(arguments, "overrides", ()):
        if "=" not in word and not word.startswith("~"):
            raise ConfigError(f"{word}: give KEY=VALUE, such as model=29k; see muloco-sweep {arguments.name} --help")
    return arguments


def _sweep_of_path(word: str) -> str:
    """`+sweep=` before the path of a sweep file that stands alone."""
    if "=" in word or not word.endswith((".yaml", ".yml")):
        return word
    quoted = word.replace("'", "\\'")
    return f"+sweep='{quoted}'"


def command_of(parser: Parser, name: str) -> Parser:
    """Return the parser of a command."""
    (commands,) = (one for one in parser._actions if isinstance(one, argparse._SubParsersAction))
    found: Parser = commands.choices[name]
    return found


def make_parser() -> Parser:
    parser = Parser(prog="muloco-sweep", description=DESCRIPTION, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(required=True, metavar="COMMAND", dest="name")
    for name, words in (
        ("plan", "runs, verdicts and cost of a sweep; submits nothing"),
        ("simulate", "simulate the sweep, with failures: makespan, retries, held runs; submits nothing"),
        ("launch", "run a sweep, or continue it"),
    ):
        command = commands.add_parser(name, help=words, description=words)
        command.add_argument(
            "overrides",
            nargs="+",
            metavar="KEY=VALUE",
            help="+sweep=NAME or FILE.yaml, cluster=NAME, root=FOLDER, keys of the grid",
        )
        command.add_argument("--allow-large", action="store_true", help="take more than 100,000 combinations")
        command.add_argument(
            "--same-code", action="store_true", help="code of an optimizer (_target_) that has changed since its runs "
            "were begun, under the same version, makes no difference",
        )  # fmt: skip
    words = "write a commented conf/cluster/NAME.yaml for the cluster that this is, and conf/sweep/mine.yaml"
    beginning = commands.add_parser("init", help=words, description=words)
    beginning.add_argument("cluster", nargs="?", metavar="NAME", help="of the file; default: the cluster's own name")
    beginning.add_argument("--local", action="store_true", help="for this machine alone, whatever scheduler it has")
    launching = commands.choices["launch"]
    where = launching.add_mutually_exclusive_group()
    where.add_argument("--detach", action="store_true", help="run in the background, independent of this terminal")
    where.add_argument(
        "--controller", default="here", type=one_of("here", "slurm"), metavar="{here,slurm}",
        help="slurm: as a small job that queues its own successor, and so survives time limits, preemption, node "
        "failures and the end of this login",
    )  # fmt: skip
    launching.add_argument(
        "--take-over", action="store_true", help="replace a controller of another host that is known to be dead, "
        "without waiting for its lease to end",
    )  # fmt: skip
    launching.add_argument(
        "--max-gpu-hours", type=any_number(500), metavar="H", help="submit nothing that could exceed this"
    )
    launching.add_argument(
        "--on-event", metavar="TARGET", type=any_text("a command or an http(s) address", may_be_empty=True),
        help="a command (gets JSON on its input) or an http(s) address, notified of held runs, slow nodes and the "
        "sweep's end; overrides on_event of the cluster file",
    )  # fmt: skip
    commands.choices["plan"].add_argument(
        "--max-gpu-hours", type=any_number(500), metavar="H", help="which runs would be done under this cap"
    )
    simulating = commands.choices["simulate"]
    simulating.add_argument(
        "--faults", "--weather", default="fair", type=one_of("calm", "fair", "rough"), metavar="{calm,fair,rough}",
        help="calm: as planned; fair: run times vary; rough: jobs also crash, hang or are preempted, nodes fail",
    )  # fmt: skip
    simulating.add_argument("--seed", type=whole_number(1), default=0, metavar="N", help="of the random faults")
    for name, (words, options) in {**_ON_RUNS, **_ON_SWEEPS}.items():
        command = commands.add_parser(name, help=words, description=words)
        if name in _ON_RUNS:
            command.add_argument("run", metavar="RUN", help="a run id, or its first digits")
        command.add_argument(
            "root_and_filters", nargs="*", metavar="ROOT | KEY=VALUE", help="the sweeps' root, and filters"
        )
        command.add_argument(
            "--sweep", metavar="NAME", type=any_text("the name of a sweep of that root"),
            help="which of the root's sweeps; needed only where there are several",
        )  # fmt: skip
        for option in options:
            command.add_argument(option, action="store_true", help="all runs, where no filter is given")
    commands.choices["logs"].add_argument(
        "-f", "--follow", action="store_true", help="keep printing while the attempt runs"
    )
    commands.choices["clean"].add_argument(
        "--keep",
        type=one_of("best", "none"),
        metavar="{best,none}",
        help="remove the weights of the chosen finished runs: all of them (none), or but of the best of each series "
        "and size; what trains keeps its checkpoints",
    )
    limiting = commands.choices["quota"]
    for name in ("nodes", "gpus", "jobs", "submitted-jobs"):
        limiting.add_argument(f"--{name}", type=whole_number(12), metavar="N", help="of each allocation")
    for name, words in (("gpu-hours", "of each allocation"), ("max-gpu-hours", "of all allocations together")):
        limiting.add_argument(f"--{name}", type=any_number(500), metavar="H", help=words)
    for command in commands.choices.values():
        command.add_argument("--json", action="store_true", help="for programs: JSON alone on standard output")
    return parser
