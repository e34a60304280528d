"""Parses the output of SLURM's commands: the one module that knows their formats.

Pure functions of text. Only `squeue -O` and `sacct -P` are read, whose text has been stable for years where the
JSON changes with each version. States are matched by prefix, since commands truncate and decorate them
("CANCELLED by 1000", "COMPLETI"); an unknown state means "not finished", never success.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

from sweeps.engine.cluster import RefusalKind
from sweeps.engine.minutes import parse_minutes

_SQUEUE_FIELDS = ("JobArrayID", "UserName", "State", "NumNodes", "NumCPUs", "NumTasks", "tres-alloc", "tres-per-node",
                  "tres-per-job", "tres-per-task", "Partition", "Account", "QOS", "TimeLimit", "StartTime", "EndTime",
                  "NodeList", "Reason", "Comment")  # fmt: skip
# Fields before the last two hold no "|"; a reason may be a sentence, a comment anything.
SQUEUE_FORMAT = ",".join(f"{name}:|" for name in _SQUEUE_FIELDS)
SACCT_FIELDS = "JobID,State,ExitCode,NNodes,Start,End,NodeList,Comment"

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
    """One line of `squeue --states=all --array`: a job that slurmctld still remembers, finished ones included."""

    job_id: str
    """With the task's index where it is of an array: 17 or 17_3."""
    user: str
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
    started_at: str | None
    """Local time as printed; for a pending job the scheduler's guess."""
    ended_at: str | None
    nodes: tuple[str, ...]
    reason: str
    comment: str

    @property
    def is_finished(self) -> bool:
        return known_state(self.state) in FINISHED


@dataclass(frozen=True)
class AccountedJob:
    """One line of `sacct`; the accounting database is a second or two late."""

    job_id: str
    state: str
    exit_code: int
    signal: int
    num_nodes: int
    started_at: str | None
    ended_at: str | None
    """Local time as printed."""
    nodes: tuple[str, ...]
    comment: str

    @property
    def is_finished(self) -> bool:
        return known_state(self.state) in FINISHED


def parse_squeue(text: str) -> list[QueuedJob]:
    """Lines of `squeue --noheader --array --Format=SQUEUE_FORMAT`; lines of another shape raise `ValueError`."""
    jobs = []
    for line in text.splitlines():
        fields = line.removesuffix("|").split("|", len(_SQUEUE_FIELDS) - 1)
        if len(fields) != len(_SQUEUE_FIELDS):
            raise ValueError(f"squeue printed {line!r}, which is not {SQUEUE_FORMAT}")
        job_id, user, state, nodes, cpus, tasks, tres, per_node, per_job, per_task, *others = fields
        partition, account, qos, wall, start, end, names, reason, comment = others
        # Where the site does not track GPUs (AccountingStorageTRES), only the options say how many were asked for.
        asked = (gpus_in(per_node) * _count(nodes), gpus_in(per_job), gpus_in(per_task) * _count(tasks))
        jobs.append(
            QueuedJob(
                job_id=job_id,
                user=user,
                state=state,
                num_nodes=_count(nodes),
                num_cpus=_count(cpus),
                num_gpus=max(gpus_in(tres), *asked),
                partition=partition,
                account=account,
                qos=qos,
                wall_minutes=parse_minutes(wall),
                started_at=_text(start),
                ended_at=_text(end),
                nodes=expand_node_list(names),
                reason=reason,
                comment=_text(comment) or "",
            )
        )
    return jobs


def parse_sacct(text: str) -> list[AccountedJob]:
    """Lines of `sacct -nPXD -o SACCT_FIELDS`; with -D a requeued job has several, the last one counts."""
    jobs = []
    for line in text.splitlines():
        fields = line.split("|", 7)
        if len(fields) != 8:
            raise ValueError(f"sacct printed {line!r}, which is not {SACCT_FIELDS}")
        job_id, state, exit_code, nodes, start, end, names, comment = fields
        code, _, signal = exit_code.partition(":")
        jobs.append(
            AccountedJob(
                job_id=job_id,
                state=state,
                exit_code=int(code or 0),
                signal=int(signal or 0),
                num_nodes=_count(nodes),
                started_at=_text(start),
                ended_at=_text(end),
                nodes=expand_node_list(names),
                comment=comment,
            )
        )
    return jobs


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
