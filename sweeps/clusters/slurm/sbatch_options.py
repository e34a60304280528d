"""Options of sbatch as users give them: names and values in sbatch's own form, the engine's own options refused.

sbatch takes any unambiguous beginning of a name (`--part=gpu`), so names that begin like one that is read here must be
written in full.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping, Sequence
from typing import Any

from muloco_runner.config import ConfigError

_SIZE = (
    "each job asks for what its run needs: see gpus_per_node, cpus_per_node and, with Hydra, hydra.launcher.resources"
)
_TIME = "use max_wall_minutes, and with Hydra hydra.launcher.resources.wall_minutes: the engine chooses within them"
_LOG = "a job's log is in its sweep's folder under cluster/logs, and each attempt's output in the attempt's folder"
_TAG = "the name of a job is its tag, by which it is found again: use comment, or the name of the sweep"
_ARRAY = "each job is submitted alone: use quota.jobs for the number that runs at once"
_REQUEUE = "the engine resubmits by cause: see `muloco-sweep explain`"
_SIGNAL = "use signal_delay_s for how long before the time limit a job is told"
_ALONE = "it changes what sbatch itself does, and the engine reads its answer: leave it out"

REFUSED: dict[str, str] = {
    **dict.fromkeys(("job-name",), _TAG),
    **dict.fromkeys(("array",), _ARRAY),
    **dict.fromkeys(("requeue", "no-requeue"), _REQUEUE),
    "signal": _SIGNAL,
    **dict.fromkeys(("output", "error", "open-mode"), _LOG),
    **dict.fromkeys(("time", "time-min"), _TIME),
    **dict.fromkeys(
        ("nodes", "ntasks", "ntasks-per-node", "ntasks-per-core", "ntasks-per-gpu", "ntasks-per-socket",
         "cpus-per-task", "cpus-per-gpu", "gpus", "gpus-per-node", "gpus-per-task", "gpus-per-socket"),
        _SIZE,
    ),
    "wrap": "use setup and teardown for lines of shell before and after the work",
    "hold": "use `muloco-sweep pause`",
    "clusters": "jobs of another cluster are not seen: give it a file under conf/cluster of its own",
    **dict.fromkeys(("uid", "gid"), "jobs belong to who launches the sweep: leave it out"),
    **dict.fromkeys(("parsable", "test-only", "wait", "quiet", "help", "usage", "version"), _ALONE),
}  # fmt: skip
"""Options that the engine needs for itself, by sbatch's long names: what to use instead."""
REFUSED_OF_CONTROLLER: dict[str, str] = {
    **REFUSED,
    **dict.fromkeys(
        ("time", "time-min"), "use controller.wall_minutes: a successor, queued from the start, continues after it"
    ),
    **dict.fromkeys(("dependency", "begin"), "the controller's successor waits for it by this option: leave it out"),
    "mem": "use controller.memory_gigabytes",
}
"""The same for the controller's job."""


def long_name(key: object, refused: Mapping[str, str], known: Collection[str] = ()) -> str:
    """Return the option's name as sbatch spells it: `mail_type` is `mail-type`.

    Raises `ConfigError` for one that the engine needs, and for abbreviations of those and of `known` names.
    """
    name = str(key).replace("_", "-")
    if name in refused:
        raise ConfigError(f"{key}: {refused[name]}")
    if not re.fullmatch(r"[a-z][a-z0-9-]+", name):
        raise ConfigError(f"{key}: give sbatch's long name of the option, without dashes before it")
    longer = [other for other in (*refused, *known) if other.startswith(name) and other != name]
    if longer and name not in known:
        raise ConfigError(f"{key}: sbatch may read this as {longer[0]}: write the option's name in full")
    return name


def text_value(value: Any, key: str, takes_list: bool = True) -> str | None:
    """Return the value as sbatch takes it, a list joined by commas; None where there is none. Raises `ConfigError`."""
    if value is None:
        return None
    if isinstance(value, str | int | float) and not isinstance(value, bool):
        text = str(value)
        if not text or re.search(r"[\n\r\0]", text):
            raise ConfigError(f"{key}={text!r}: give one line of text, or null for none")
        return text
    if isinstance(value, Sequence) and not isinstance(value, str) and takes_list and value:
        return ",".join(text_value(item, key, takes_list=False) or "" for item in value)
    raise ConfigError(f"{key}={value!r}: give {'text, or a list of it' if takes_list else 'text, not a list'}")


def sbatch_values(options: Mapping[str, Any]) -> dict[str, str | bool]:
    """Return options by long names with their values: True is an option without a value, False and null leave it out,
    lists are joined by commas. Raises `ConfigError`."""
    values: dict[str, str | bool] = {}
    for name, value in options.items():
        if value is True:
            values[name] = True
        elif value is not False and value is not None:
            values[name] = text_value(value, name) or ""
    return values
