"""Parses the output of SLURM's commands: the one module that knows their formats.

Pure functions of text. Only `squeue -O` and `sacct -P` are read, whose text has been stable for years where the
JSON changes with each version. States are matched by prefix, since commands truncate and decorate them
("CANCELLED by 1000", "COMPLETI"); an unknown state means "not finished", never success.
"""

from __future__ import annotations

import contextlib
import re
from collections.abc import Callable
from dataclasses import dataclass
from datetime import datetime
from typing import TypeVar

from sweeps.engine.cluster import RefusalKind
from sweeps.engine.minutes import parse_minutes

_SQUEUE_FIELDS = ("JobArrayID", "UserID", "State", "NumNodes", "NumCPUs", "NumTasks", "tres-alloc", "tres-per-node",
                  "tres-per-job", "tres-per-task", "Partition", "Account", "QOS", "TimeLimit", "SubmitTime",
                  "StartTime", "EndTime", "NodeList", "Reason", "Dependency", "Name", "Comment")  # fmt: skip
# What users choose stands last, since it may hold anything: "|", a newline, bytes that are no text.
SQUEUE_FORMAT = ",".join(f"{name}:|" for name in _SQUEUE_FIELDS)
SACCT_FIELDS = "JobID,UID,State,ExitCode,NNodes,Submit,Start,End,NodeList,JobName,Comment"
_ROW = re.compile(r"\d+[\d_+.\[\]%,-]*\|\d+\|")
"""How a row of either begins: a job's number, and its user's. Anything else is the rest of the row before it."""

UNFINISHED = ("PENDING", "RUNNING", "SUSPENDED", "COMPLETING", "CONFIGURING", "REQUEUE", "RESIZING", "SIGNALING",
              "SPECIAL_EXIT", "STAGE_OUT", "STOPPED", "RESV_DEL_HOLD")  # fmt: skip
FINISHED = ("COMPLETED", "FAILED", "TIMEOUT", "DEADLINE", "CANCELLED", "PREEMPTED", "NODE_FAIL", "BOOT_FAIL",
            "OUT_OF_MEMORY", "REVOKED")  # fmt: skip


def known_state(word: str) -> str | None:
    """Return the full name of a state as a command printed it, or None for an unknown one."""
    head = word.split(maxsplit=1)[0] if word.split() else ""
    if len(head) < 4:
        return None
    names = [name for name in UNFINISHED + FINISHED if name.startswith(head) or head.startswith(name)]
    return names[0] if len(names) == 1 else None


@dataclass(frozen=True)
class QueuedJob:
    """One row of `squeue --states=all`: a job that slurmctld still remembers, finished ones included."""

    job_id: str
    """With the task's index where it is of an array: 17 or 17_3."""
    uid: int
    state: str
    """As printed."""
    num_nodes: int
    num_cpus: int
    num_gpus: int
    """On all its nodes together; of a pending job what it asks for."""
    partition: str
    account: str
    qos: str
    wall_minutes: float | None
    submitted_at: float | None
    started_at: float | None
    """Unix seconds, as all times here; for a pending job the scheduler's guess."""
    ended_at: float | None
    nodes: tuple[str, ...]
    reason: str
    after: frozenset[str]
    """Numbers of the jobs that must have ended before it starts."""
    name: str
    """As far as its first "|" or newline."""
    comment: str

    @property
    def is_finished(self) -> bool:
        return known_state(self.state) in FINISHED


@dataclass(frozen=True)
class AccountedJob:
    """One row of `sacct`; the accounting database is a second or two late."""

    job_id: str
    uid: int
    state: str
    exit_code: int
    signal: int
    num_nodes: int
    submitted_at: float | None
    started_at: float | None
    ended_at: float | None
    nodes: tuple[str, ...]
    name: str
    comment: str
    """Empty where the site's accounting stores none."""

    @property
    def is_finished(self) -> bool:
        return known_state(self.state) in FINISHED


Job = TypeVar("Job", QueuedJob, AccountedJob)


def parse_squeue(text: str) -> list[QueuedJob]:
    """Rows of `squeue --noheader --array --Format=SQUEUE_FORMAT`. Text without any row raises `ValueError`."""
    return _rows(text, len(_SQUEUE_FIELDS), "squeue", _queued_job)


def parse_sacct(text: str) -> list[AccountedJob]:
    """Rows of `sacct -nPXD -o SACCT_FIELDS`; with -D a requeued job has several, the last one counts. Text without any
    row raises `ValueError`."""
    return _rows(text, 11, "sacct", _accounted_job)


def _rows(text: str, num_fields: int, command: str, job_of: Callable[..., Job]) -> list[Job]:
    lines = [line for line in text.split("\n") if line.strip()]
    jobs = []
    for line in lines:
        fields = line.split("|", num_fields - 1)
        if len(fields) == num_fields - 1:
            # A newline in the name: the comment is on another line.
            fields.append("")
        # The rest of somebody's name or comment is passed over.
        if _ROW.match(line) and len(fields) == num_fields:
            with contextlib.suppress(ValueError):
                jobs.append(job_of(*fields))
    if lines and not jobs:
        raise ValueError(f"{command} printed {lines[0]!r}, which is not what it was asked for")
    return jobs


def _queued_job(
    job_id: str, uid: str, state: str, nodes: str, cpus: str, tasks: str, tres: str, per_node: str, per_job: str,
    per_task: str, partition: str, account: str, qos: str, wall: str, submit: str, start: str, end: str, names: str,
    reason: str, dependency: str, name: str, comment: str,
) -> QueuedJob:  # fmt: skip
    # Where the site does not track GPUs (AccountingStorageTRES), only the options say how many were asked for.
    asked = (gpus_in(per_node) * _count(nodes), gpus_in(per_job), gpus_in(per_task) * _count(tasks))
    return QueuedJob(
        job_id=job_id,
        uid=int(uid),
        state=state,
        num_nodes=_count(nodes),
        num_cpus=_count(cpus),
        num_gpus=max(gpus_in(tres), *asked),
        partition=partition,
        account=account,
        qos=qos,
        wall_minutes=parse_minutes(wall),
        submitted_at=parse_time(submit),
        started_at=parse_time(start),
        ended_at=parse_time(end),
        nodes=expand_node_list(names),
        reason=reason,
        after=ends_waited_for(dependency),
        name=name,
        comment=_text(comment.removesuffix("|")) or "",
    )


def _accounted_job(
    job_id: str, uid: str, state: str, exit_code: str, nodes: str, submit: str, start: str, end: str, names: str,
    name: str, comment: str,
) -> AccountedJob:  # fmt: skip
    code, _, signal = exit_code.partition(":")
    return AccountedJob(
        job_id=job_id,
        uid=int(uid),
        state=state,
        exit_code=int(code or 0),
        signal=int(signal or 0),
        num_nodes=_count(nodes),
        submitted_at=parse_time(submit),
        started_at=parse_time(start),
        ended_at=parse_time(end),
        nodes=expand_node_list(names),
        name=name,
        comment=comment,
    )


def parse_time(text: str) -> float | None:
    """Unix seconds of "2026-03-01T10:00:00", local time; None for "N/A", "Unknown" and the like."""
    try:
        return datetime.fromisoformat(text).timestamp()
    except ValueError:
        return None


def ends_waited_for(dependency: str) -> frozenset[str]:
    """The jobs whose end "afterany:17(unfulfilled),afterok:18(unfulfilled)" waits for; none where the end of either of
    two ("?") is enough."""
    found = re.findall(r"(?:afterany|afterok|afternotok):(\d+)\(unfulfilled\)", dependency)
    return frozenset() if "?" in dependency else frozenset(found)


def submitted_number(text: str) -> str | None:
    """The job's number in what `sbatch --parsable` prints ("17" or "17;cluster"), whatever a site's own wrapper says
    before or after it; None where there is none, or more than one."""
    numbers = {match[1] for match in re.finditer(r"^(\d+)(?:;\S+)?[ \t\r]*$", text, re.MULTILINE)}
    return numbers.pop() if len(numbers) == 1 else None


def says_unknown_job(stderr: str) -> bool:
    """Whether `squeue --jobs` failed because the one job it was asked for has left the queue."""
    return "invalid job id" in stderr.lower()


def gpus_in(text: str) -> int:
    """GPUs named by "gres:gpu:h100:8", "gpu:8(S:0-1)", "gres/gpu=8", "cpu=4,gres/gpu=8,gres/gpu:h100=8" or "N/A"."""
    untyped, typed = 0, 0
    for item in re.sub(r"\([^)]*\)", "", text).split(","):
        *names, last = re.split("[:=/]", item.strip())
        number = int(last) if last.isdigit() else 1
        kinds = [*names, *([] if last.isdigit() else [last])]
        if kinds[-1:] == ["gpu"]:
            untyped += number
        elif "gpu" in kinds:
            typed += number
    # TRES name the sum of all types, and beside it the types that the site tracks.
    return max(untyped, typed) if "=" in text else untyped + typed


def expand_node_list(text: str) -> tuple[str, ...]:
    """node[01-03,07],login -> node01, node02, node03, node07, login."""
    names: list[str] = []
    if not _text(text) or text == "None assigned":
        return ()
    for group in re.findall(r"[^,\[]+(?:\[[^\]]*\][^,\[]*)*", text):
        expanded = [""]
        for literal, ranges in re.findall(r"([^\[\]]+)|\[([^\]]*)\]", group):
            endings = [literal] if literal else _expand_ranges(ranges)
            expanded = [head + ending for head in expanded for ending in endings]
        names += expanded
    return tuple(names)


def _expand_ranges(text: str) -> list[str]:
    numbers = []
    for part in text.split(","):
        low, _, high = part.partition("-")
        numbers += [f"{n:0{len(low)}d}" for n in range(int(low), int(high or low) + 1)]
    return numbers


def _text(word: str) -> str | None:
    return None if word.strip() in ("", "N/A", "(null)", "Unknown", "None") else word.strip()


def _count(word: str) -> int:
    """A count, also in the form of a range ("2-4": the least)."""
    match = re.match(r"\d+", word)
    return int(match[0]) if match else 0


# Messages of slurm_strerror() and names of pending reasons, which sbatch prints before them.
_MAY_EXIST = ("socket timed out", "zero bytes were transmitted", "connection reset", "message receive failure",
              "unexpected message received", "timed out")  # fmt: skip
_DEFER = ("maxsubmit", "submitjobslimit", "job violates accounting/qos policy", "maxjobcount", "temporarily unable",
          "resource temporarily unavailable", "rate limit exceeded", "unable to contact slurm controller",
          "connection refused", "connection timed out", "in standby mode", "controller is in", "try again",
          "transport endpoint", "communication connection failure", "unable to connect", "slurm backup controller",
          "too many jobs", "job submit limit")  # fmt: skip
_NEVER = ("maxwall", "maxtresperjob", "maxnodeperjob", "maxcpuperjob", "perjoblimit", "mintres", "grouptres")


def classify_refusal(stderr: str) -> RefusalKind:
    """Classify a refusal by its text. What is unknown is fatal: a held run costs less than retries."""
    text = stderr.lower()
    if any(word in text for word in _NEVER):
        return RefusalKind.FATAL
    if any(word in text for word in _DEFER):
        return RefusalKind.DEFER
    if any(word in text for word in _MAY_EXIST):
        return RefusalKind.MAY_EXIST
    return RefusalKind.FATAL
