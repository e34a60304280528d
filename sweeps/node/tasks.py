"""Attempts of several tasks: one process a rank, on one node or many, and one ending for them all.

On one node the ranks are children of the process that supervises them; over several nodes `srun` starts one
`python -m sweeps.node.tasks REQUEST` a rank. A task of one node reads its rank from RANK, WORLD_SIZE, LOCAL_RANK and
MULOCO_RDZV_ID (unique to the attempt), one of `srun` from SLURM's variables.
"""

from __future__ import annotations

import contextlib
import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from types import FrameType

from muloco_runner.record import KILLED_BY_SIGNAL, STOP_SIGNALS, ExitCode
from muloco_sweeps import python_command
from sweeps.engine.cluster import JobRequest
from sweeps.engine.outcome import Ending
from sweeps.engine.work import Attempt
from sweeps.node.attempt_files import write_ending
from sweeps.node.environment import installed_packages, record_environment
from sweeps.node.run_attempt import die_with, run_attempt, run_task, saying

_GRACE_SECONDS = 60.0
"""After one rank has failed the others have so long to say how they saw it."""


@dataclass(frozen=True)
class RankCommand:
    """How `srun` starts the ranks of an attempt over several nodes."""

    request_file: Path
    """Holds the request whose first attempt this is."""
    python: str = ""
    """Shell command that starts Python; where empty, this one."""
    srun_args: tuple[str, ...] = ()

    def words(self) -> list[str]:
        arguments = [*python_command("sweeps.node.tasks"), str(self.request_file)]
        # Within a step, whose processors, GPUs and memory the ranks share with it.
        shared = ["--overlap", "--mem=0"] if "SLURM_STEP_ID" in os.environ else []
        shell = ["sh", "-c", f'exec {self.python} "$@"', "sh", *arguments[1:]] if self.python else arguments
        return [*shared, *self.srun_args, *shell]


def fork_attempt(
    attempt: Attempt, environment: Mapping[str, str] | None = None, ranks: RankCommand | None = None
) -> int:
    """Starts the attempt in a forked child, which dies with this process; returns its pid.

    `ranks` is how its ranks are started where they are on several nodes.
    """
    # Read here, once for all attempts that this process forks.
    installed_packages()
    return _fork(partial(_begin, attempt, ranks), environment or {})


def _begin(attempt: Attempt, ranks: RankCommand | None) -> int:
    record_environment(attempt)
    return supervise(attempt, ranks) if attempt.work.need.tasks > 1 else run_attempt(attempt)


def supervise(attempt: Attempt, ranks: RankCommand | None = None) -> int:
    """Runs every rank of the attempt, waits for them, and leaves their common ending; returns its exit code."""
    started_at = time.time()
    attempt.folder.mkdir(parents=True, exist_ok=True)
    if attempt.work.need.nodes == 1:
        codes = _run_here(attempt)
    else:
        assert ranks is not None, "srun is given the request as a file"
        codes = _run_by_srun(attempt, ranks)
    code = common_code(codes)
    write_ending(attempt, Ending(code, socket.gethostname(), started_at, time.time()))
    return code


def _run_here(attempt: Attempt) -> list[int]:
    count = attempt.work.need.tasks_per_node
    # In containers, attempts one after the other may have one process number.
    rendezvous_id = f"{socket.gethostname()}-{os.getpid()}-{time.time_ns()}"
    pids: dict[int, int] = {}
    with passing_on(pids) as received:
        for rank in range(count):
            rank_environment = {
                "RANK": str(rank),
                "LOCAL_RANK": str(rank),
                "WORLD_SIZE": str(count),
                "MULOCO_RDZV_ID": rendezvous_id,
            }
            pid = _fork(partial(run_task, attempt, rank), rank_environment)
            pids[pid] = rank
            catch_up(pid, received)
        return _wait_for_all(pids)


def _wait_for_all(pids: dict[int, int]) -> list[int]:
    """Exit codes of all; once one has failed the others are given a while, then killed."""
    codes: list[int] = []
    deadline = float("inf")
    while pids:
        pid, status = os.waitpid(-1, os.WNOHANG)
        if pid in pids:
            del pids[pid]
            codes.append(exit_code_of(status))
            if codes[-1] not in (ExitCode.FINISHED, ExitCode.WANTS_MORE_TIME):
                deadline = min(deadline, time.monotonic() + _GRACE_SECONDS)
            continue
        if time.monotonic() > deadline:
            for left in pids:
                os.kill(left, signal.SIGKILL)
            deadline = float("inf")
        time.sleep(0.05)
    return codes


def exit_code_of(status: int) -> int:
    """The exit code for a status that `waitpid` gave; 128 + N for a process killed by signal N, as in a shell."""
    code = os.waitstatus_to_exitcode(status)
    return code if code >= 0 else KILLED_BY_SIGNAL - code


def _run_by_srun(attempt: Attempt, ranks: RankCommand) -> list[int]:
    need = attempt.work.need
    command = ["srun", f"--nodes={need.nodes}", f"--ntasks={need.tasks}", f"--ntasks-per-node={need.tasks_per_node}"]
    cpus = max(1, need.cpus_per_node // need.tasks_per_node)
    command += [f"--cpus-per-task={cpus}", "--kill-on-bad-exit=1", f"--wait={_GRACE_SECONDS:.0f}"]
    if need.gpus_per_node:
        # Every rank sees its node's GPUs and takes the one of its local rank.
        command += [f"--gres=gpu:{need.gpus_per_node}", "--gpu-bind=none"]
    folder = attempt.folder / "codes"
    folder.mkdir(exist_ok=True)
    with open(attempt.folder / "stderr.log", "ab") as log:
        process = subprocess.Popen(
            [*command, *ranks.words()],
            stdin=subprocess.DEVNULL, stdout=log, stderr=log,
        )  # fmt: skip
        with passing_on({process.pid: 0}):
            process.wait()
    codes = [int(path.read_text() or ExitCode.CRASH) for path in folder.glob("*")]
    # A rank that was killed has left no code.
    return codes if len(codes) == need.tasks else [*codes, int(ExitCode.CRASH)]


def common_code(codes: Sequence[int]) -> int:
    """One exit code for all ranks: the failure that explains the others; a crash before a request for more time."""
    for known in (ExitCode.CONFIG_CANNOT_RUN, ExitCode.USAGE, ExitCode.OUT_OF_MEMORY):
        if known in codes:
            return int(known)
    failed = [code for code in codes if code not in (ExitCode.FINISHED, ExitCode.WANTS_MORE_TIME)]
    if failed:
        return failed[0]
    return int(ExitCode.WANTS_MORE_TIME if ExitCode.WANTS_MORE_TIME in codes else ExitCode.FINISHED)


@contextlib.contextmanager
def passing_on(pids: Mapping[int, object]) -> Iterator[list[tuple[int, float]]]:
    """Within, signals that ask for a checkpoint are forwarded to the processes in `pids`.

    Yields those that have come, each with its time (Unix seconds).
    """
    received: list[tuple[int, float]] = []

    def pass_on(signal_number: int, frame: FrameType | None) -> None:
        received.append((signal_number, time.time()))
        for pid in list(pids):
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal_number)

    before = {name: signal.signal(name, pass_on) for name in STOP_SIGNALS}
    try:
        yield received
    finally:
        for name, handler in before.items():
            signal.signal(name, handler)


def catch_up(pid: int, received: Sequence[tuple[int, float]]) -> None:
    """Passes the last of the signals on to a process that was not there when it came."""
    for signal_number, _ in received[-1:]:
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal_number)


def _fork(work: Callable[[], int], environment: Mapping[str, str]) -> int:
    parent = os.getpid()
    # A signal that comes before the child has let go of this process's handlers waits; it would be lost on them.
    before = signal.pthread_sigmask(signal.SIG_BLOCK, STOP_SIGNALS)
    pid = os.fork()
    if pid:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)
        return pid
    code: int = ExitCode.CRASH
    try:
        die_with(parent)
        for name in (*STOP_SIGNALS, signal.SIGINT):
            signal.signal(name, signal.SIG_DFL)
        signal.pthread_sigmask(signal.SIG_SETMASK, before)
        os.environ.update(environment)
        code = work()
    finally:
        try:
            sys.stdout.flush()
            sys.stderr.flush()
        finally:
            # Nothing, such as a full disk, may let this copy go on as its parent.
            os._exit(code)


def main(request_file: str) -> int:
    """One rank of a step of srun."""
    (attempt,) = JobRequest.from_dict(json.loads(Path(request_file).read_text())).attempts
    rank = int(os.environ["SLURM_PROCID"])
    file = attempt.folder / "codes" / str(rank)

    def say(code: int) -> None:
        file.write_text(str(code))

    return saying(say, lambda: run_task(attempt, rank))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1]))
