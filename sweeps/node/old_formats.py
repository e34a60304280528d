"""What earlier versions wrote into a sweep's folder, as today's readers take it. Frozen: today's formats add nothing.

Before a piece of work named its adapter, the engine treated all work as training runs: an attempt counted
`memory_halvings`, and rows of the status table were (algorithm, number of parameters), "" and 0 where there was none.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

_MOVED_ENTRIES = {
    "sweeps.training:train": "sweeps.training.entry:train",
    "sweeps.multirun.program:run": "sweeps.hydra_apps.program:run",
}
_OF_TRAINING = {
    "reports": "sweeps.training.adapter",
    "group_labels": ["algorithm", "num_params"],
    "failure_label": "algorithm",
    "similarity_keys": [
        ["num_params", "algorithm", "num_workers", "global_batch_tokens"],
        ["num_params", "algorithm"],
        ["num_params"],
        [],
    ],
    "resumes": True,
    "adjustments": {"out of memory": "memory_halvings"},
    "speaks_exit_codes": True,
}
_OF_HYDRA_JOBS = {
    "reports": "sweeps.hydra_apps.job_adapter",
    "group_labels": [],
    "failure_label": "",
    "similarity_keys": [[]],
    "adjustments": {},
}
_HYDRA_ENTRY = "sweeps.hydra_apps.program:run"


def work_now(values: Mapping[str, Any]) -> dict[str, Any]:
    """The values of a `Work`."""
    if "adapter" in values:
        adapter = values["adapter"]
        # Once every exit code was read as the trainer's.
        is_trainer = adapter["reports"] != _OF_HYDRA_JOBS["reports"]
        return {**values, "adapter": {"speaks_exit_codes": is_trainer, **adapter}}
    entry = _MOVED_ENTRIES.get(values["entry"], values["entry"])
    return {**values, "entry": entry, "adapter": _OF_HYDRA_JOBS if entry == _HYDRA_ENTRY else _OF_TRAINING}


def request_now(values: Mapping[str, Any]) -> dict[str, Any]:
    """The values of a `JobRequest`."""
    return {**values, "attempts": [_attempt_now(attempt) for attempt in values["attempts"]]}


def _attempt_now(values: Mapping[str, Any]) -> dict[str, Any]:
    others = dict(values)
    work = work_now(others.pop("work"))
    halvings = others.pop("memory_halvings", 0)
    adjustments = {name: halvings for name in work["adapter"]["adjustments"].values() if halvings}
    return {"adjustments": adjustments, **others, "work": work}


def head_now(head: Mapping[str, Any]) -> dict[str, Any]:
    """The first line of a definition."""
    if "adapter" in head["common"] or "entry" not in head["common"]:
        return dict(head)
    labels = work_now(head["common"])["adapter"]["group_labels"]
    return {**head, "groups": [_group_now(group, labels) for group in head["groups"]]}


def counters_now(values: Mapping[str, Any], group_labels: tuple[str, ...]) -> dict[str, Any]:
    """The values of a snapshot's `Counters`, of a sweep whose rows have these labels."""
    lists = ("groups", "left", "finished")
    return {
        **values,
        **{name: [[_group_now(group, group_labels), *rest] for group, *rest in values[name]] for name in lists},
    }


def cancelling_now(value: Mapping[str, str] | str | None, runs: Sequence[str]) -> Mapping[str, str]:
    """Why a snapshot's job is being cancelled, by run; once there was one reason for all its runs, or None."""
    return value if isinstance(value, Mapping) else dict.fromkeys(runs, value) if value is not None else {}


def _group_now(group: list[Any], group_labels: list[str] | tuple[str, ...]) -> list[Any]:
    return [value or None for value in group] if group_labels else []
