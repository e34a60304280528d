"""The text of SLURM batch scripts: a pure function of the request, written by submitit.

`sbatch_text` is the one adapter over submitit's own function, which is private: its version is pinned, and tested.
A job's script links the payload, written before it is submitted, under the name that submitit's runner looks for; runs
the `setup`; and becomes the runner, so that SLURM's signals reach it. With `teardown` the shell stays and forwards
them; under srun they go to its steps.
"""

from __future__ import annotations

import math
import shlex
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from muloco_runner.record import STOPPED_CODES, ExitCode
from sweeps.clusters.slurm.slurm_settings import SlurmOptions, controller_of, gres_of, options_of, options_of_job
from sweeps.engine.cluster import JobRequest
from sweeps.engine.cluster_config import AllocationConfig, ClusterConfig
from sweeps.node.attempt_files import SETUP_FAILURE
from sweeps.node.code_snapshot import import_lines, python_text

CONTROLLER_OF = "controller-of-"
"""Prefix of the names of jobs that run a sweep's controller."""
CONTROLLER_SIGNAL_SECONDS = 120
PAYLOADS = "submitit"
"""Folder of the payloads beside the requests."""


def payload_name(name: str) -> str:
    """Return the file name of a payload; submitit's runner looks for that of its job's number."""
    return f"{name}_submitted.pkl"


def sbatch_text(
    log: Path,
    parameters: Mapping[str, Any],
    further: Mapping[str, str | bool | None],
    setup: Sequence[str],
    command: str,
    srun_args: Sequence[str] | None = None,
) -> str:
    """Return the text of a batch script by submitit.

    `parameters` are submitit's, `further` other options of sbatch by long names; None leaves one out. The output of the
    job is appended to `log`. With `srun_args` the first line of the command is started by srun.
    """
    from submitit.slurm.slurm import _make_sbatch_string

    output, lines = _output_to(log)
    options = {**further, **output}
    text: str = _make_sbatch_string(
        command=command,
        folder=log.parent,
        setup=[*lines, *setup],
        **{"wckey": None, **{name: _escaped(value) for name, value in parameters.items()}},
        stderr_to_stdout=True,
        additional_parameters={name: _escaped(value) for name, value in options.items() if value is not None},
        srun_args=srun_args,
        use_srun=srun_args is not None,
    )
    return text


def _escaped(value: Any) -> Any:
    """Double backslashes: sbatch takes them for escapes even within quotes."""
    return value.replace("\\", "\\\\") if isinstance(value, str) else value


def _output_to(log: Path) -> tuple[dict[str, str], list[str]]:
    """Return the options and the lines of shell that send the job's output to the file, whatever its name.

    sbatch replaces %j and the like in names, and removes backslashes from them.
    """
    if "\\" in str(log):
        return {"output": "/dev/null"}, [f"exec >>{shlex.quote(str(log))} 2>&1"]
    return {"output": str(log).replace("%", "%%")}, []


def job_script(
    request: JobRequest, allocation: AllocationConfig, setup: Sequence[str], folder: Path, after: Sequence[str] = ()
) -> str:
    """Return the script of the job that runs a request, whose payload is in `folder`/submitit, once the jobs numbered
    `after` have ended."""
    options = options_of_job(request, allocation)
    uses_srun = options.use_srun if options.use_srun is not None else bool(options.srun_args)
    log = folder / "logs" / f"{request.tag}.log"
    payloads = folder / PAYLOADS
    starts_python = python_text(options.python)
    python = f"{starts_python} -u -m sweeps.clusters.slurm.runner {shlex.quote(str(payloads))}"
    link = f"ln -sfn {payload_name(request.tag)} {shlex.quote(str(payloads))}/{payload_name('${SLURM_JOB_ID}')}"
    return sbatch_text(
        log,
        _parameters(request, options, after),
        {
            # Without srun the signal must reach the batch shell, which the command has replaced; srun's steps get it
            # without.
            "signal": f"{'' if uses_srun else 'B:'}USR1@{options.signal_delay_s}",
            # A requeue by SLURM would be an attempt that the controller does not count.
            "no-requeue": True,
            **options.additional_parameters,
        },
        [
            link,
            *_on_failed_setup([attempt.folder for attempt in request.attempts], log),
            *setup,
            *options.setup,
            *import_lines(request.code),
            # What exec cannot start would end the script without a word of its own.
            f'is_there() {{ type "$1" >/dev/null; }}; is_there {starts_python}',
            *([] if _replaces_shell(options, uses_srun) else ["set +eE", "trap - EXIT ERR"]),
            *(
                ["trap : USR1 USR2 TERM  # they are for srun and its step, for which this shell waits"]
                if uses_srun
                else []
            ),
        ],
        _command(python, options, uses_srun),
        [*_OUTER_STEP, f"--cpus-per-task={request.cpus_per_node}", *options.srun_args] if uses_srun else None,
    )


_OUTER_STEP = ("--output=all", "--nodes=1", "--ntasks=1")
"""srun starts one process, which starts the attempts; its output is the job's."""


def _parameters(request: JobRequest, options: SlurmOptions, after: Sequence[str]) -> dict[str, Any]:
    """Return submitit's parameters."""
    same = ("partition", "account", "qos", "constraint", "nodelist", "mem_per_cpu", "mem_per_gpu", "exclusive", "wckey",
            "mail_type", "mail_user")  # fmt: skip
    excluded = [*(options.exclude or "").split(","), *request.excluded_nodes]
    return {
        **{name: getattr(options, name) for name in same},
        "dependency": ":".join(["afterany", *after]) if after else options.dependency,
        "job_name": request.tag,
        "comment": options.comment or request.tag,
        "nodes": request.nodes,
        "ntasks_per_node": 1,
        "cpus_per_task": request.cpus_per_node,
        "time": max(1, math.ceil(request.wall_minutes)),
        "gres": gres_of(options, request.gpus_per_node),
        "mem": _memory(request, options),
        "exclude": ",".join(dict.fromkeys(name for name in excluded if name)) or None,
    }


def _memory(request: JobRequest, options: SlurmOptions) -> str | None:
    """Return the memory of each node in sbatch's notation."""
    from submitit.slurm.slurm import _convert_mem

    if request.memory_gigabytes is not None:
        return f"{math.ceil(1024 * request.memory_gigabytes)}M"
    return options.mem if options.mem_gb is None else str(_convert_mem(options.mem_gb))


def _replaces_shell(options: SlurmOptions, uses_srun: bool) -> bool:
    return not uses_srun and not options.teardown


def _command(python: str, options: SlurmOptions, uses_srun: bool) -> str:
    if _replaces_shell(options, uses_srun):
        # exec: a shell would not forward the signals.
        return f"exec {python}"
    run = [python, "code=$?"] if uses_srun else _in_background(python)
    # In a shell of its own, which cannot end this one with another code.
    after = ["(", *options.teardown, ")"] if options.teardown else []
    return "\n".join([*run, "trap '' USR1 USR2 TERM", *after, 'exit "$code"'])


def _in_background(python: str) -> list[str]:
    """Lines that run the command, forward signals to it, and set `code`: bash handles none while it waits for a
    command in the foreground."""
    return [
        "asked= child=",
        'forward() { asked="$asked $1"; [ -z "$child" ] || kill -"$1" "$child"; }',
        'for name in USR1 USR2 TERM; do trap "forward $name" "$name"; done',
        f"{python} &",
        "child=$!",
        'for name in $asked; do kill -"$name" "$child"; done',
        'while kill -0 "$child" 2>/dev/null; do wait "$child"; done',
        'wait "$child"',
        "code=$?",
    ]


def _on_failed_setup(folders: Sequence[Path], log: Path) -> list[str]:
    """Lines after which the first command that fails ends the script, and each attempt's folder says which it was.

    A shell that a signal ends comes here too, with whatever code its last command had: only what bash takes for an
    error, an `exit`, and bash's own words after a mistake in the lines count.
    """
    stopped = "|".join(str(code) for code in (0, *STOPPED_CODES))
    quoted = " ".join(shlex.quote(str(folder)) for folder in folders)
    return [
        "setup_failed() {",
        '  code=$? what="${failed:-$BASH_COMMAND}"',
        "  set +e",
        f"  said=$(tail -n 1 {shlex.quote(str(log))})",
        f"  case $code in {stopped}) return ;; esac",
        r'  [[ -n "$failed" || "$what" == exit* || "$said" =~ :\ line\ [0-9]+:\  ]] || return',
        f"  for folder in {quoted}; do",
        f'    mkdir -p "$folder" && printf \'%s\\n\' "$code" "$said" "$what" > "$folder/{SETUP_FAILURE}"',
        "  done",
        f"  exit {int(ExitCode.SETUP_FAILED)}",
        "}",
        "failed=",
        "trap 'failed=\"$BASH_COMMAND\"' ERR",
        "trap setup_failed EXIT",
        "set -eE",
    ]


def controller_script(
    cluster: ClusterConfig,
    name: str,
    log: Path,
    after: str | None,
    setup: Sequence[str],
    command: Sequence[str],
    delay_seconds: float,
) -> str:
    """Return the script of the job that runs a sweep's controller: once job `after` has ended, and not within
    `delay_seconds` from now."""
    where, first = controller_of(cluster), options_of(cluster.allocations[0])
    parameters: dict[str, Any] = {
        "job_name": name,
        "comment": name,
        "nodes": 1,
        "cpus_per_task": 1,
        "mem": f"{math.ceil(1024 * where.memory_gigabytes)}M",
        "time": math.ceil(where.wall_minutes),
        "dependency": f"afterany:{after}" if after else None,
        "partition": where.partition or first.partition,
        "account": where.account or first.account,
        "qos": where.qos or first.qos,
    }
    further = {
        "ntasks": "1",
        "signal": f"B:USR1@{CONTROLLER_SIGNAL_SECONDS}",
        "no-requeue": True,
        # Controllers that fail at once must not follow each other without a pause.
        "begin": f"now+{math.ceil(delay_seconds)}" if after else None,
        **where.sbatch,
    }
    return sbatch_text(log, parameters, further, setup, f"exec {shlex.join(command)}")
