"""A sweep's controller as a small SLURM job: `python -m sweeps.cli.controller_job ROOT NAME`.

Each such job queues its successor, which SLURM starts when this one has ended, whatever the reason: time limit,
preemption, node failure, crash. The one that sees the sweep's end cancels its successor. All controllers of a sweep
have one job name, by which users find and stop them: `scancel --name=NAME`.
"""

from __future__ import annotations

import os
import shlex
import signal
import sys
import time
from pathlib import Path
from types import FrameType

from muloco_runner.config import ConfigError
from muloco_runner.record import ExitCode, write_atomically
from muloco_sweeps import python_command
from sweeps.clusters import make_cluster
from sweeps.clusters.slurm.commands import answer_of, submit_script
from sweeps.clusters.slurm.script import CONTROLLER_OF, controller_script
from sweeps.controller import Controller, Tick
from sweeps.engine.cluster import Refused
from sweeps.engine.cluster_config import ClusterConfig
from sweeps.engine.sweep_state import SweepState
from sweeps.node.code_snapshot import import_lines, keep_source
from sweeps.node.disk_space import is_disk_full, words_for
from sweeps.notify import ON_EVENT, notifier_of
from sweeps.progress_lines import Lines, summary
from sweeps.store.folder import SweepFolder
from sweeps.store.lease import LeaseHeld
from sweeps.store.submission import STATE, state_folder
from sweeps.training.wandb_sync import syncer_of
from sweeps.training.weights import end_of_sweep

_TICKS_BETWEEN_CONTROLLERS = 2


def start(folder: SweepFolder, cluster: ClusterConfig) -> tuple[str, bool]:
    """Return the number of the job that is to control the sweep, and whether it is new.

    A queued one of the same code will do; one of other code, which may not know what this code wrote, is cancelled.
    Raises `ConfigError` where SLURM refuses the job.
    """
    found = queued(folder)
    if found is None:
        raise ConfigError("SLURM does not answer, so nobody knows whether a controller is queued: try again later")
    if found and _runs_code(folder, keep_source(folder.root)):
        return found[0], False
    if found:
        answer_of("scancel", *found)
    try:
        return _submit(folder, cluster, None), True
    except Refused as refusal:
        raise ConfigError(f"the controller's job: {refusal.message}; see `controller` of the cluster's file") from None


def job_name(folder: SweepFolder) -> str:
    return CONTROLLER_OF + folder.tag_prefix.removesuffix("-")


def queued(folder: SweepFolder, states: str = "PENDING,CONFIGURING,RUNNING") -> list[str] | None:
    """Return job numbers of the sweep's controllers in these states, oldest first; None where SLURM does not answer."""
    which = [f"--user={os.getuid()}", f"--name={job_name(folder)}", f"--states={states}"]
    text = answer_of("squeue", "--noheader", *which, "--format=%i")
    return None if text is None else sorted(filter(str.isdigit, text.split()), key=int)


def _submit(folder: SweepFolder, cluster: ClusterConfig, after: str | None) -> str:
    command = [*python_command("sweeps.cli.controller_job"), str(folder.root.resolve()), folder.name]
    delay_seconds = _TICKS_BETWEEN_CONTROLLERS * cluster.tick_seconds
    log = folder.controller_log.resolve()
    # Sites that start jobs without the caller's environment would have it look elsewhere for the user's other sweeps.
    state = f"export {STATE}={shlex.quote(str(state_folder().absolute()))}"
    setup = [*cluster.setup, state, *import_lines(str(keep_source(folder.root)))]
    script = _script(folder)
    write_atomically(script, controller_script(cluster, job_name(folder), log, after, setup, command, delay_seconds))
    return submit_script(script)


def _script(folder: SweepFolder) -> Path:
    return folder.cluster_dir / "controller.sh"


def _runs_code(folder: SweepFolder, code: Path) -> bool:
    """Whether the newest controller that was queued imports from `code`."""
    try:
        lines = _script(folder).read_text().splitlines()
    except FileNotFoundError:
        return False
    return set(import_lines(str(code))) <= set(lines)


class _Succession:
    """Keeps a successor queued."""

    def __init__(self, folder: SweepFolder, cluster: ClusterConfig, own_job: str) -> None:
        self.folder, self.cluster, self.own_job = folder, cluster, own_job
        self.successor: str | None = None
        self.told = ""
        """Why there is none yet, as said last."""

    def ensure(self) -> None:
        """Queue a successor unless there is one. Tries once; the next call tries again."""
        if self.successor is not None:
            return
        waiting = queued(self.folder, "PENDING")
        if waiting:
            # Queued by this job before SLURM restarted it, or by another controller.
            self.successor = waiting[-1]
        elif waiting is not None:
            try:
                self.successor = _submit(self.folder, self.cluster, self.own_job)
            except Refused as refusal:
                self._tell(refusal.message)
            except OSError as error:
                if not is_disk_full(error):
                    raise
                self._tell(f"no disk space for its script ({words_for(error)})")

    def _tell(self, why: str) -> None:
        if why != self.told:
            self.told = why
            print(f"no successor yet: {why}", flush=True)


def main(root: str, name: str) -> ExitCode:
    folder = SweepFolder(Path(root), name)
    own_job = os.environ["SLURM_JOB_ID"]
    for number in (signal.SIGTERM, signal.SIGUSR1):
        signal.signal(number, _interrupt)
    try:
        state = _control(folder, own_job)
    except KeyboardInterrupt:
        print(f"job {own_job} was asked to stop; its successor continues", flush=True)
        return ExitCode.WANTS_MORE_TIME
    except ConfigError as error:
        # Successors would fail alike: the user corrects it and launches the sweep again.
        print(error, flush=True)
        _cancel_successors(folder, own_job)
        return ExitCode.USAGE
    _cancel_successors(folder, own_job)
    print(summary(state), flush=True)
    return ExitCode.FINISHED if state.num_with_result == len(state.runs) else ExitCode.CRASH


def _control(folder: SweepFolder, own_job: str) -> SweepState:
    """Control the sweep until it is over; return its last state."""
    cluster = folder.read_definition().read_cluster()
    succession = _Succession(folder, cluster, own_job)
    print(f"job {own_job} controls sweep {folder.name}", flush=True)
    controller = _when_free(folder, cluster, succession)
    lines = Lines(lambda line: print(line, flush=True), folder.cluster_dir)
    notify = notifier_of(folder.name, os.environ.get(ON_EVENT))
    send_records = syncer_of(controller.definition.works, folder.wandb_log, lambda line: print(line, flush=True))

    def on_tick(tick: Tick) -> None:
        succession.ensure()
        lines(tick)
        notify(tick)
        if send_records is not None:
            send_records(tick)

    state = controller.run(on_tick)
    if send_records is not None:
        send_records.finish(state)
    if state.is_over and (line := end_of_sweep(folder, state.runs.works)):
        print(line, flush=True)
    return state


def _cancel_successors(folder: SweepFolder, own_job: str) -> None:
    """Cancel the sweep's other queued controllers."""
    others = [job for job in queued(folder) or () if job != own_job]
    if others:
        answer_of("scancel", *others)


def _when_free(folder: SweepFolder, cluster: ClusterConfig, succession: _Succession) -> Controller:
    """Return the controller once no other is running, one on a lost node counting as alive for a while, and once there
    is disk space for its first files."""
    printed = ""
    while True:
        succession.ensure()
        try:
            return Controller(folder, folder.read_definition(), make_cluster)
        except LeaseHeld as error:
            why = str(error)
        except OSError as error:
            if not is_disk_full(error):
                raise
            why = f"waits for disk space for the sweep's own files ({words_for(error)})"
        if why != printed:
            printed = why
            print(printed, flush=True)
        time.sleep(cluster.tick_seconds)


def _interrupt(number: int, frame: FrameType | None) -> None:
    """Raise `KeyboardInterrupt` once: stopping must not be interrupted."""
    for other in (signal.SIGTERM, signal.SIGUSR1):
        signal.signal(other, signal.SIG_IGN)
    raise KeyboardInterrupt


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
