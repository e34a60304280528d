"""`launch`: runs the controller of a sweep here, in the background, or as a job of SLURM."""

from __future__ import annotations

import argparse
import json
import os
import signal
import sys
from collections.abc import Mapping
from typing import Any

from muloco_runner.config import ConfigError
from muloco_runner.paths import config_path
from muloco_runner.record import ExitCode
from muloco_sweeps import python_command
from sweeps.background import how_to_watch, start_process
from sweeps.cli import controller_job
from sweeps.cli.display import progress, show_end
from sweeps.cli.live_snapshot import Snapshot
from sweeps.clusters import make_cluster
from sweeps.controller import Controller, Tick
from sweeps.engine.capacity import MAX_GPU_HOURS
from sweeps.engine.quota import Verdict, all_limits
from sweeps.engine.works import Shape
from sweeps.notify import ON_EVENT, notifier_of
from sweeps.progress_lines import after_interrupt
from sweeps.store.lease import Holder, Lease, LeaseHeld, read_holder, take_over
from sweeps.training.derive import rewrite_lost_configs
from sweeps.training.entry import prepare
from sweeps.training.preview import check_cap, cuts_of
from sweeps.training.sweep import Sweep, read_sweep
from sweeps.training.wandb_sync import syncer_of
from sweeps.training.weights import cost_of_weights, end_of_sweep, without_weights


def launch(arguments: argparse.Namespace) -> ExitCode:
    """Run a sweep, or continue it. Mistakes raise `ConfigError` before anything is submitted."""
    if arguments.controller == "slurm":
        return _launch_as_job(arguments)
    return _detach(arguments) if arguments.detach else _launch_here(arguments)


def _make_controller(sweep: Sweep, max_gpu_hours: float | None) -> Controller:
    """Check all that can be checked before submission, then write the sweep's folder and return its controller."""
    check_cap(sweep, max_gpu_hours)
    _check_alone(sweep)
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
    if line := cost_of_weights(without_weights(sweep.definition.works)):
        print(line, file=sys.stderr)
    return controller


def _read_launch(arguments: argparse.Namespace) -> Sweep:
    """Return the sweep that a launch names, taken over from a dead controller where that is asked."""
    sweep = read_sweep(arguments.overrides, arguments.allow_large, arguments.same_code)
    if arguments.take_over:
        try:
            take_over(sweep.folder.lease_dir)
        except LeaseHeld as error:
            raise ConfigError(str(error)) from None
    # A controller that is at work does not mind: a run's config is what the run's name says.
    for line in rewrite_lost_configs(sweep.runs, sweep.added, sweep.root).lines():
        print(line, file=sys.stderr)
    return sweep


def _launch_here(arguments: argparse.Namespace) -> ExitCode:
    sweep = _read_launch(arguments)
    notify = notifier_of(sweep.name, _event_target(arguments, sweep))
    controller = _make_controller(sweep, arguments.max_gpu_hours)
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
    if state.is_over and (line := end_of_sweep(sweep.folder, state.runs.works)):
        print(line, file=sys.stderr)
    if arguments.json:
        print(json.dumps(Snapshot(sweep.folder, verdicts).to_dict()))
    else:
        show_end(sweep, state, verdicts)
    return ExitCode.FINISHED if state.num_with_result == len(state.runs) else ExitCode.CRASH


def _launch_as_job(arguments: argparse.Namespace) -> ExitCode:
    sweep = _read_launch(arguments)
    if sweep.cluster.kind != "slurm":
        raise ConfigError(
            f"--controller slurm: cluster {sweep.cluster.name} is not a SLURM cluster: choose another, or use --detach"
        )
    target = _event_target(arguments, sweep)
    notifier_of(sweep.name, target)  # raises for a mistake in the target
    os.environ[ON_EVENT] = target or ""
    jobs = controller_job.queued(sweep.folder) if _controls_the_same(sweep, arguments.max_gpu_hours) else None
    if jobs:
        job, is_new = jobs[0], False
    else:
        _make_controller(sweep, arguments.max_gpu_hours).apply_pending_commands()
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


def _event_target(arguments: argparse.Namespace, sweep: Sweep) -> str | None:
    """Return what to notify of events; `--on-event ''` notifies nobody."""
    target: str | None = arguments.on_event
    return sweep.cluster.on_event if target is None else target


def _check_alone(sweep: Sweep) -> None:
    """Raise `ConfigError` where a controller is running, before anything is written; the lease decides a race."""
    holder = read_holder(sweep.folder.lease_dir)
    if holder is None or not holder.is_alive:
        return
    if _is_defined(sweep):
        raise ConfigError(Lease.held_by(holder))
    raise ConfigError(
        f"a controller is running on sweep {sweep.name} already ({holder.to_text()}), with other runs or settings than "
        "these: end it first, then launch again; its jobs under SLURM go on"
    )


def _detach(arguments: argparse.Namespace) -> ExitCode:
    """Run the same launch in a session of its own, without a terminal; wait until it holds the lease.

    One that runs just this already is left alone.
    """
    sweep = _read_launch(arguments)
    check_cap(sweep, arguments.max_gpu_hours)
    running = _controls_the_same(sweep, arguments.max_gpu_hours)
    pid = running.pid if running is not None and running.is_here else _start_detached(arguments, sweep)
    if arguments.json:
        print(json.dumps(_started(sweep, running is None, pid=pid)))
    else:
        print(how_to_watch(sweep.folder, pid))
    return ExitCode.FINISHED


def _start_detached(arguments: argparse.Namespace, sweep: Sweep) -> int:
    _check_alone(sweep)
    command = [*python_command("sweeps"), "launch", *arguments.overrides]
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


def _controls_the_same(sweep: Sweep, max_gpu_hours: float | None) -> Holder | None:
    """Return the controller that runs just this sweep already, with this cap; None where there is none."""
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
    return runs[0] == runs[1] and before.cluster == now.cluster and before.study == now.study
