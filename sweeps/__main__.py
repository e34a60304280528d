"""`muloco-sweep`: plans, launches and watches many runs."""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import signal
import sys
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, NoReturn

from muloco_runner.config import ConfigError
from muloco_runner.paths import announce, config_path, take_config_path, use_config_path
from muloco_runner.record import ExitCode

if TYPE_CHECKING:
    from sweeps.controller import Controller, Tick
    from sweeps.engine.quota import Verdict
    from sweeps.engine.works import Shape
    from sweeps.store.lease import Holder
    from sweeps.training.sweep import Sweep

DESCRIPTION = """\
Plan, launch and watch many runs under a quota.

  muloco-sweep init                                   write a file for this cluster, and a sweep to begin from
  muloco-sweep plan +sweep=demo                       what it would cost; submits nothing
  muloco-sweep simulate +sweep=demo --faults rough   simulated, with failures; submits nothing
  muloco-sweep launch +sweep=demo root=demo           run it; the same command again continues it
  muloco-sweep launch +sweep=demo model=29k seed=0,1  values on the command line narrow the grid or add to it
  muloco-sweep launch +sweep=demo cluster=h100 --controller slurm    run its controller as a small job
  muloco-sweep status demo algorithm=muloco           what is done, running, waiting and held, and why
  muloco-sweep explain 3fa demo                       the history of the run 3fa... under demo/
  muloco-sweep quota demo --nodes 12                  another quota, from the next tick on
  muloco-sweep retry demo model=82k                   try held runs again

A sweep is a file under conf/sweep, or any other by its path (+sweep=./mine.yaml); a cluster one under conf/cluster
(cluster=NAME). Own files of all choices are found before the built-in ones in --config-dir DIR (may be said several
times), in the folders that MULOCO_CONF lists, and in ./conf; conf_path=none turns that off. A sweep may be stopped at
any moment, with Ctrl-C or harder; launched again it continues, and trains no finished run twice.
Filters: algorithm=muloco, model=82k, seed=0,1, inner_optimizer.lr=0.02, run=3fa. ROOT defaults to results.
For programs: every command takes --json, asks nothing, and says the same when it is given twice. Exit codes: 0 done as
said; 1 runs are left or held, or something broke and the same command continues; 2 a mistake in what was asked, of
which one line tells, and nothing was submitted; 130 interrupted. docs/programs.md lists what each command prints.
"""

_INTERRUPTED = 130
"""Exit code after Ctrl-C, as in a shell."""

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
}
_ON_RUNS: dict[str, tuple[str, tuple[str, ...]]] = {
    "explain": ("the whole history of a run and what happens next", ()),
    "logs": ("the output of a run's newest attempt", ()),
}


def main() -> None:
    """The console script. Never returns: exits with one of `ExitCode`."""
    from sweeps.store.lease import LeaseLost

    try:
        words, path = take_config_path(sys.argv[1:])
        use_config_path(path)
        arguments = parse(words)
        if line := announce(path):
            print(line, file=sys.stderr)
        code = _run(arguments)
    except LeaseLost as error:
        _fail(f"{error}; this one has stopped; the sweep continues under the other", ExitCode.CRASH)
    except ConfigError as error:
        _fail(str(error), ExitCode.USAGE)
    except KeyboardInterrupt as interrupt:
        _fail(str(interrupt) or "stopped; the same command continues", _INTERRUPTED, "\n")
    except BrokenPipeError:
        # The reader of our output, such as `head`, has closed it.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(ExitCode.FINISHED)
    except OSError as error:
        # A full disk, or a folder that disappeared. Running jobs continue; nothing on disk is lost.
        _fail(f"{error}; fix it, then run the same command to continue", ExitCode.CRASH)
    except Exception as error:
        # A defect of ours: a person gets the traceback, a program also a line that it can read.
        _tell_program(f"{type(error).__name__}: {error}", ExitCode.CRASH)
        raise
    sys.exit(code)


def _fail(words: str, code: int, prefix: str = "muloco-sweep: ") -> NoReturn:
    """Exit with one line on standard error, and as JSON where that was asked for."""
    print(f"{prefix}{words}", file=sys.stderr)
    _tell_program(words, code)
    sys.exit(code)


def _tell_program(words: str, code: int) -> None:
    # The command line itself is looked at: it may be what could not be parsed.
    if "--json" in sys.argv[1:]:
        with contextlib.suppress(OSError):
            print(json.dumps({"error": words, "exit_code": int(code)}), flush=True)


def parse(words: Sequence[str]) -> argparse.Namespace:
    """Parse a command line whose options may stand before, between or after its other words."""
    parser = _parser()
    arguments, others = parser.parse_known_args(words)
    unknown = [word for word in others if word.startswith("-")]
    if unknown:
        raise ConfigError(f"unrecognized arguments: {' '.join(unknown)}; see muloco-sweep {arguments.name} --help")
    for name in ("root_and_filters", "overrides"):
        if hasattr(arguments, name):
            getattr(arguments, name).extend(others)
            return arguments
    if others:
        raise ConfigError(f"unrecognized arguments: {' '.join(others)}; see muloco-sweep {arguments.name} --help")
    return arguments


def _run(arguments: argparse.Namespace) -> ExitCode:
    if arguments.name == "launch":
        if arguments.controller == "slurm":
            return launch_as_job(arguments)
        return detach(arguments) if arguments.detach else launch(arguments)
    if arguments.name == "init":
        from sweeps.cli.init import init

        return init(arguments)
    if arguments.name in ("plan", "simulate"):
        from sweeps.cli import plan as planning

        return planning.plan(arguments) if arguments.name == "plan" else planning.simulate_sweep(arguments)
    from sweeps.cli import commands

    code: ExitCode = getattr(commands, {"explain": "explain_run"}.get(arguments.name, arguments.name))(arguments)
    return code


class _Parser(argparse.ArgumentParser):
    """Tells of a mistake in one line, as all else that refuses."""

    def error(self, message: str) -> NoReturn:
        raise ConfigError(f"{message}; see {self.prog} --help")


def _parser() -> argparse.ArgumentParser:
    parser = _Parser(prog="muloco-sweep", description=DESCRIPTION, formatter_class=argparse.RawDescriptionHelpFormatter)
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
        command.add_argument(
            "--same-code", action="store_true", help="code of an optimizer (_target_) that has changed since its runs "
            "were begun, under the same version, makes no difference",
        )  # fmt: skip
    text = "write a commented conf/cluster/NAME.yaml for the cluster that this is, and conf/sweep/mine.yaml"
    beginning = commands.add_parser("init", help=text, description=text)
    beginning.add_argument("cluster", nargs="?", metavar="NAME", help="of the file; default: the cluster's own name")
    beginning.add_argument("--local", action="store_true", help="for this machine alone, whatever scheduler it has")
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
    commands.choices["plan"].add_argument(
        "--max-gpu-hours", type=float, metavar="H", help="which runs would be done under this cap"
    )
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
            command.add_argument(option, action="store_true", help="all runs, where no filter is given")
    commands.choices["logs"].add_argument(
        "-f", "--follow", action="store_true", help="keep printing while the attempt runs"
    )
    for name in ("nodes", "gpus", "jobs", "submitted-jobs", "gpu-hours", "max-gpu-hours"):
        text = "of all allocations together" if name == "max-gpu-hours" else "of each allocation"
        commands.choices["quota"].add_argument(f"--{name}", type=float, metavar="N", help=text)
    for command in commands.choices.values():
        command.add_argument("--json", action="store_true", help="for programs: JSON alone on standard output")
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
    sweep.folder.write_config_sources(config_path().to_dict() if config_path().folders else None)
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

    sweep = read_sweep(arguments.overrides, arguments.allow_large, arguments.same_code)
    if arguments.take_over:
        try:
            take_over(sweep.folder.lease_dir)
        except LeaseHeld as error:
            raise ConfigError(str(error)) from None
    return sweep


def launch(arguments: argparse.Namespace) -> ExitCode:
    from sweeps.cli.display import progress, show_end
    from sweeps.notify import notifier_of
    from sweeps.progress_lines import after_interrupt
    from sweeps.training.wandb_sync import syncer_of

    sweep = read_launch(arguments)
    notify = notifier_of(sweep.name, event_target(arguments, sweep))
    controller = make_controller(sweep, arguments.max_gpu_hours)
    # SIGTERM stops the sweep in order, like Ctrl-C.
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    send_records = syncer_of(
        sweep.definition.works, sweep.folder.wandb_log, lambda line: print(line, file=sys.stderr, flush=True)
    )
    verdicts: Mapping[Shape, Verdict] = {}
    with progress(sweep, sys.stderr if arguments.json else sys.stdout) as show:

        def on_tick(tick: Tick) -> None:
            nonlocal verdicts
            verdicts = tick.plan.verdicts
            show(tick)
            if notify is not None:
                notify(tick)
            if send_records is not None:
                send_records(tick)

        try:
            state = controller.run(on_tick)
        except KeyboardInterrupt:
            raise KeyboardInterrupt(
                after_interrupt(controller.state, controller.cluster.outlives_controller, sweep.folder)
            ) from None
    if send_records is not None:
        send_records.finish(state)
    if arguments.json:
        from sweeps.cli.live_snapshot import Snapshot

        print(json.dumps(Snapshot(sweep.folder, verdicts).to_dict()))
    else:
        show_end(sweep, state, verdicts)
    return ExitCode.FINISHED if state.counts["done"] == len(state.runs) else ExitCode.CRASH


def launch_as_job(arguments: argparse.Namespace) -> ExitCode:
    from sweeps.cli import controller_job
    from sweeps.notify import ON_EVENT, notifier_of

    sweep = read_launch(arguments)
    if sweep.cluster.kind != "slurm":
        raise ConfigError(
            f"--controller slurm: cluster {sweep.cluster.name} is not a SLURM cluster: choose another, or use --detach"
        )
    target = event_target(arguments, sweep)
    notifier_of(sweep.name, target)  # raises for a mistake in the target
    os.environ[ON_EVENT] = target or ""
    jobs = controller_job.queued(sweep.folder) if controls_the_same(sweep, arguments.max_gpu_hours) else None
    if jobs:
        job, is_new = jobs[0], False
    else:
        make_controller(sweep, arguments.max_gpu_hours).apply_pending_commands()
        job, is_new = controller_job.start(sweep.folder, sweep.cluster)
    if arguments.json:
        print(json.dumps(_started(sweep, is_new, job=job)))
        return ExitCode.FINISHED
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
    if holder is None or not holder.is_alive:
        return
    if _is_defined(sweep):
        raise ConfigError(Lease.held_by(holder))
    raise ConfigError(
        f"a controller is running on sweep {sweep.name} already ({holder.to_text()}), with other runs or settings than "
        "these: end it first, then launch again; its jobs under SLURM go on"
    )


def detach(arguments: argparse.Namespace) -> ExitCode:
    """Run the same launch in a session of its own, without a terminal; wait until it holds the lease.

    One that runs just this already is left alone.
    """
    from sweeps.background import how_to_watch

    sweep = read_launch(arguments)
    check_cap(sweep, arguments.max_gpu_hours)
    running = controls_the_same(sweep, arguments.max_gpu_hours)
    pid = running.pid if running is not None and running.is_here else _start_detached(arguments, sweep)
    if arguments.json:
        print(json.dumps(_started(sweep, running is None, pid=pid)))
    else:
        print(how_to_watch(sweep.folder, pid))
    return ExitCode.FINISHED


def _start_detached(arguments: argparse.Namespace, sweep: Sweep) -> int:
    from sweeps.background import start_process

    check_alone(sweep)
    command = [sys.executable, "-m", "sweeps", "launch", *arguments.overrides]
    for option, value in (("--max-gpu-hours", arguments.max_gpu_hours), ("--on-event", arguments.on_event)):
        command += [option, str(value)] if value is not None else []
    command += config_path().as_arguments()
    command += ["--allow-large"] if arguments.allow_large else []
    command += ["--same-code"] if arguments.same_code else []
    return start_process(command, sweep.folder)


def _started(sweep: Sweep, is_new: bool, pid: int | None = None, job: str | None = None) -> dict[str, Any]:
    """Return what a program is told of a controller in the background: its process here, or its job."""
    log = str(sweep.folder.controller_log)
    return {"sweep": sweep.name, "root": str(sweep.root), "pid": pid, "job": job, "new": is_new, "log": log}


def controls_the_same(sweep: Sweep, max_gpu_hours: float | None) -> Holder | None:
    """Return the controller that runs just this sweep already, with this cap; None where there is none."""
    from sweeps.engine.capacity import MAX_GPU_HOURS
    from sweeps.store.lease import read_holder

    holder = read_holder(sweep.folder.lease_dir)
    if holder is None or not holder.is_alive:
        return None
    if not _is_defined(sweep):
        return None
    caps = sweep.folder.read_state(sweep.folder.read_definition()).state.own_limits
    return holder if max_gpu_hours is None or caps.get(MAX_GPU_HOURS) == max_gpu_hours else None


def _is_defined(sweep: Sweep) -> bool:
    """Whether the sweep in the folder has these runs and settings; what runs are expected to take changes with time."""
    before, now = sweep.folder.read_definition(), sweep.definition
    runs = [{work.name: work.arguments for work in one.works} for one in (before, now)]
    return runs[0] == runs[1] and before.cluster == now.cluster


if __name__ == "__main__":
    main()
