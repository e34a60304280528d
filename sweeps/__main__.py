"""`muloco-sweep`: plans, launches and watches many runs."""

from __future__ import annotations

import argparse
import json
import os
import signal
import sys
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from muloco_runner.config import ConfigError
from muloco_runner.record import ExitCode

if TYPE_CHECKING:
    from sweeps.controller import Controller, Tick
    from sweeps.engine.quota import Verdict
    from sweeps.engine.works import Shape
    from sweeps.training.sweep import Sweep

DESCRIPTION = """\
Plan, launch and watch many runs under a quota.

  muloco-sweep plan +sweep=demo                       what it would cost; submits nothing
  muloco-sweep simulate +sweep=demo --faults rough   simulated, with failures; submits nothing
  muloco-sweep launch +sweep=demo root=demo           run it; the same command again continues it
  muloco-sweep launch +sweep=demo model=29k seed=0,1  values on the command line narrow the grid or add to it
  muloco-sweep launch +sweep=demo cluster=h100 --controller slurm    run its controller as a small job
  muloco-sweep status demo algorithm=muloco           what is done, running, waiting and held, and why
  muloco-sweep explain 3fa demo                       the history of the run 3fa... under demo/
  muloco-sweep quota demo --nodes 12                  another quota, from the next tick on
  muloco-sweep retry demo model=82k                   try held runs again

A sweep is a file under conf/sweep, a cluster one under conf/cluster (cluster=NAME). A sweep may be stopped at any
moment, with Ctrl-C or harder; launched again it continues, and trains no finished run twice.
Filters: algorithm=muloco, model=82k, seed=0,1, inner_optimizer.lr=0.02, run=3fa. ROOT defaults to results.
For programs: --json, no questions asked, and exit codes: 0 done as said; 1 runs are left or held, or something broke
and the same command continues; 2 a mistake in what was asked, of which one line tells, and nothing was submitted;
130 interrupted.
"""

# Name, what it does, options. Those that change runs need a filter or --all.
_ON_SWEEPS: dict[str, tuple[str, tuple[str, ...]]] = {
    "status": ("what is done, running, waiting and held, and why", ("--json",)),
    "watch": ("status, redrawn until the sweep is over", ()),
    "pause": ("submit nothing more; running jobs continue", ("--json",)),
    "resume": ("submit again", ("--json",)),
    "quota": ("show the limits and what is used of them, or change the sweep's own while it runs", ("--json",)),
    "cancel": ("end runs and hold them", ("--all", "--json")),
    "hold": ("keep waiting runs from starting", ("--all", "--json")),
    "retry": ("try held runs again, with new budgets", ("--all", "--json")),
}
_ON_RUNS: dict[str, tuple[str, tuple[str, ...]]] = {
    "explain": ("the whole history of a run and what happens next", ("--json",)),
    "logs": ("the output of a run's newest attempt", ()),
}


def main() -> None:
    """The console script. Never returns: exits with one of `ExitCode`."""
    arguments = parse(sys.argv[1:])
    from sweeps.store.lease import LeaseLost

    try:
        code = _run(arguments)
    except LeaseLost as error:
        print(f"muloco-sweep: {error}; this one has stopped; the sweep continues under the other", file=sys.stderr)
        sys.exit(ExitCode.CRASH)
    except ConfigError as error:
        print(f"muloco-sweep: {error}", file=sys.stderr)
        sys.exit(ExitCode.USAGE)
    except KeyboardInterrupt as interrupt:
        print(f"\n{interrupt or 'stopped; the same command continues'}", file=sys.stderr)
        sys.exit(130)
    except BrokenPipeError:
        # The reader of our output, such as `head`, has closed it.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(ExitCode.FINISHED)
    except OSError as error:
        # A full disk, or a folder that disappeared. Running jobs continue; nothing on disk is lost.
        print(f"muloco-sweep: {error}; fix it, then run the same command to continue", file=sys.stderr)
        sys.exit(ExitCode.CRASH)
    sys.exit(code)


def parse(words: Sequence[str]) -> argparse.Namespace:
    """Parse a command line whose options may stand before, between or after its other words."""
    parser = _parser()
    arguments, others = parser.parse_known_args(words)
    unknown = [word for word in others if word.startswith("-")]
    if unknown:
        parser.error(f"unrecognized arguments: {' '.join(unknown)}; see muloco-sweep {arguments.name} --help")
    getattr(arguments, "root_and_filters" if hasattr(arguments, "root_and_filters") else "overrides").extend(others)
    return arguments


def _run(arguments: argparse.Namespace) -> ExitCode:
    if arguments.name == "launch":
        if arguments.controller == "slurm":
            return launch_as_job(arguments)
        return detach(arguments) if arguments.detach else launch(arguments)
    if arguments.name in ("plan", "simulate"):
        from sweeps.cli import plan as planning

        return planning.plan(arguments) if arguments.name == "plan" else planning.simulate_sweep(arguments)
    from sweeps.cli import commands

    code: ExitCode = getattr(commands, {"explain": "explain_run"}.get(arguments.name, arguments.name))(arguments)
    return code


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="muloco-sweep", description=DESCRIPTION, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    commands = parser.add_subparsers(required=True, metavar="COMMAND", dest="name")
    for name, text in (
        ("plan", "runs, verdicts and cost of a sweep; submits nothing"),
        ("simulate", "simulate the sweep, with failures: makespan, retries, held runs; submits nothing"),
        ("launch", "run a sweep, or continue it"),
    ):
        command = commands.add_parser(name, help=text, description=text)
        command.add_argument(
            "overrides", nargs="+", metavar="KEY=VALUE", help="+sweep=NAME, cluster=NAME, root=FOLDER, keys of the grid"
        )
        command.add_argument("--allow-large", action="store_true", help="take more than 100,000 combinations")
    launching = commands.choices["launch"]
    where = launching.add_mutually_exclusive_group()
    where.add_argument("--detach", action="store_true", help="run in the background, independent of this terminal")
    where.add_argument(
        "--controller", default="here", choices=("here", "slurm"), help="slurm: as a small job that queues its own "
        "successor, and so survives time limits, preemption, node failures and the end of this login",
    )  # fmt: skip
    launching.add_argument(
        "--take-over", action="store_true", help="replace a controller of another host that is known to be dead, "
        "without waiting for its lease to end",
    )  # fmt: skip
    launching.add_argument("--max-gpu-hours", type=float, metavar="H", help="submit nothing that could exceed this")
    launching.add_argument(
        "--on-event", metavar="TARGET", help="a command (gets JSON on its input) or an http(s) address, notified of "
        "held runs and of the sweep's end; overrides on_event of the cluster file",
    )  # fmt: skip
    where.add_argument(
        "--json", action="store_true", help="at the end what `status --json` says; progress goes to standard error"
    )
    commands.choices["plan"].add_argument(
        "--max-gpu-hours", type=float, metavar="H", help="which runs would be done under this cap"
    )
    for name in ("plan", "simulate"):
        commands.choices[name].add_argument("--json", action="store_true", help="for programs")
    simulating = commands.choices["simulate"]
    simulating.add_argument(
        "--faults", "--weather", default="fair", choices=("calm", "fair", "rough"),
        help="calm: as planned; fair: run times vary; rough: jobs also crash, hang or are preempted, nodes fail",
    )  # fmt: skip
    simulating.add_argument("--seed", type=int, default=0, metavar="N", help="of the random faults")
    for name, (text, options) in {**_ON_RUNS, **_ON_SWEEPS}.items():
        command = commands.add_parser(name, help=text, description=text)
        if name in _ON_RUNS:
            command.add_argument("run", metavar="RUN", help="a run id, or its first digits")
        command.add_argument(
            "root_and_filters", nargs="*", metavar="ROOT | KEY=VALUE", help="the sweeps' root, and filters"
        )
        command.add_argument("--sweep", help="which of the root's sweeps; needed only where there are several")
        for option in options:
            meaning = "for programs" if option == "--json" else "all runs, where no filter is given"
            command.add_argument(option, action="store_true", help=meaning)
    commands.choices["logs"].add_argument(
        "-f", "--follow", action="store_true", help="keep printing while the attempt runs"
    )
    for name in ("nodes", "gpus", "jobs", "submitted-jobs", "gpu-hours", "max-gpu-hours"):
        text = "of all allocations together" if name == "max-gpu-hours" else "of each allocation"
        commands.choices["quota"].add_argument(f"--{name}", type=float, metavar="N", help=text)
    return parser


def multirun(overrides: Sequence[str], detached: bool, allow_large: bool) -> ExitCode:
    """`muloco-train --multirun`: the same sweep as `muloco-sweep launch` (see `hydra.sweeper.launch_with`)."""
    flags = [*(["--detach"] if detached else []), *(["--allow-large"] if allow_large else [])]
    if not overrides:
        raise ConfigError("--multirun: name a sweep (+sweep=NAME), or give a key several values, such as seed=0,1")
    return _run(parse(["launch", *flags, *overrides]))


def make_controller(sweep: Sweep, max_gpu_hours: float | None) -> Controller:
    """Check all that can be checked before submission, then write the sweep's folder and return its controller."""
    from sweeps.clusters import make_cluster
    from sweeps.controller import Controller
    from sweeps.engine.capacity import MAX_GPU_HOURS
    from sweeps.engine.quota import all_limits
    from sweeps.store.lease import LeaseHeld
    from sweeps.training.entry import prepare
    from sweeps.training.preview import cuts_of

    check_cap(sweep, max_gpu_hours)
    check_alone(sweep)
    make_cluster(sweep.cluster, sweep.folder.cluster_dir).check()
    prepare(sweep.runs, sweep.root)
    try:
        controller = Controller(sweep.folder, sweep.definition, make_cluster)
    except LeaseHeld as error:
        raise ConfigError(error.to_text("--take-over")) from None
    sweep.folder.write_definition(sweep.definition)
    if max_gpu_hours is not None:
        controller.set_limits({MAX_GPU_HOURS: max_gpu_hours})
    for damage in controller.damage:
        print(f"ledger line {damage.line}: {damage.why}; ignored", file=sys.stderr)
    limits = all_limits(sweep.cluster, controller.cluster.limits(sweep.folder.owns), controller.state)
    for line in cuts_of(sweep.definition.works, sweep.cluster, limits):
        print(line, file=sys.stderr)
    return controller


def read_launch(arguments: argparse.Namespace) -> Sweep:
    """Return the sweep that a launch names, taken over from a dead controller where that is asked."""
    from sweeps.store.lease import LeaseHeld, take_over
    from sweeps.training.sweep import read_sweep

    sweep = read_sweep(arguments.overrides, arguments.allow_large)
    if arguments.take_over:
        try:
            take_over(sweep.folder.lease_dir)
        except LeaseHeld as error:
            raise ConfigError(str(error)) from None
    return sweep


def launch(arguments: argparse.Namespace) -> ExitCode:
    from sweeps.cli.display import progress, show_end
    from sweeps.cli.notify import notifier_of
    from sweeps.progress_lines import after_interrupt

    sweep = read_launch(arguments)
    notify = notifier_of(sweep.name, event_target(arguments, sweep))
    controller = make_controller(sweep, arguments.max_gpu_hours)
    # SIGTERM stops the sweep in order, like Ctrl-C.
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    verdicts: Mapping[Shape, Verdict] = {}
    with progress(sweep, sys.stderr if arguments.json else sys.stdout) as show:

        def on_tick(tick: Tick) -> None:
            nonlocal verdicts
            verdicts = tick.plan.verdicts
            show(tick)
            if notify is not None:
                notify(tick)

        try:
            state = controller.run(on_tick)
        except KeyboardInterrupt:
            raise KeyboardInterrupt(
                after_interrupt(controller.state, controller.cluster.outlives_controller, sweep.folder)
            ) from None
    if arguments.json:
        from sweeps.cli.live_snapshot import Snapshot

        print(json.dumps(Snapshot(sweep.folder, verdicts).to_dict()))
    else:
        show_end(sweep, state, verdicts)
    return ExitCode.FINISHED if state.counts["done"] == len(state.runs) else ExitCode.CRASH


def launch_as_job(arguments: argparse.Namespace) -> ExitCode:
    from sweeps.cli import controller_job
    from sweeps.cli.notify import notifier_of

    sweep = read_launch(arguments)
    if sweep.cluster.kind != "slurm":
        raise ConfigError(
            f"--controller slurm: cluster {sweep.cluster.name} is not a SLURM cluster: choose another, or use --detach"
        )
    target = event_target(arguments, sweep)
    notifier_of(sweep.name, target)  # raises for a mistake in the target
    os.environ[controller_job.ON_EVENT] = target or ""
    make_controller(sweep, arguments.max_gpu_hours).apply_pending_commands()
    job, is_new = controller_job.start(sweep.folder, sweep.cluster)
    where = f"{sweep.root} --sweep {sweep.name}"
    what = "is submitted" if is_new else "is queued already and takes up the new definition"
    print(f"sweep {sweep.name}: controller job {job} {what}; it prints to {sweep.folder.controller_log}")
    print(f"  muloco-sweep status {where}\n  muloco-sweep watch {where}")
    print(f"  scancel --name={controller_job.job_name(sweep.folder)}  stops it; its jobs continue")
    return ExitCode.FINISHED


def event_target(arguments: argparse.Namespace, sweep: Sweep) -> str | None:
    """Return what to notify of events; `--on-event ''` notifies nobody."""
    target: str | None = arguments.on_event
    return sweep.cluster.on_event if target is None else target


def check_cap(sweep: Sweep, max_gpu_hours: float | None) -> None:
    if max_gpu_hours is None:
        return
    if not max_gpu_hours >= 0:
        raise ConfigError(f"--max-gpu-hours {max_gpu_hours}: must be zero or more")
    if not any(allocation.gpus_per_node for allocation in sweep.cluster.allocations):
        raise ConfigError(f"--max-gpu-hours has no effect: cluster {sweep.cluster.name} has no GPUs; drop it")


def check_alone(sweep: Sweep) -> None:
    """Raise `ConfigError` where a controller is running, before anything is written; the lease decides a race."""
    from sweeps.store.lease import Lease, read_holder

    holder = read_holder(sweep.folder.lease_dir)
    if holder is not None and holder.is_alive:
        raise ConfigError(Lease.held_by(holder))


def detach(arguments: argparse.Namespace) -> ExitCode:
    """Run the same launch in a session of its own, without a terminal; wait until it holds the lease."""
    from sweeps.background import how_to_watch, start_process

    sweep = read_launch(arguments)
    check_cap(sweep, arguments.max_gpu_hours)
    check_alone(sweep)
    command = [sys.executable, "-m", "sweeps", "launch", *arguments.overrides]
    for option, value in (("--max-gpu-hours", arguments.max_gpu_hours), ("--on-event", arguments.on_event)):
        command += [option, str(value)] if value is not None else []
    command += ["--allow-large"] if arguments.allow_large else []
    print(how_to_watch(sweep.folder, start_process(command, sweep.folder)))
    return ExitCode.FINISHED


if __name__ == "__main__":
    main()
