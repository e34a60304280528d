"""Variables of the user's environment that steer SLURM's commands: none reaches them, and what one asks for is said.

`sbatch` lets SBATCH_* override the script, and the other commands leave out, add or rewrite what they print.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from muloco_runner.config import ConfigError
from sweeps.clusters.slurm.sbatch_options import REFUSED
from sweeps.clusters.slurm.slurm_settings import options_of
from sweeps.engine.cluster_config import AllocationConfig

_STEERING = ("SLURM_", "SBATCH_", "SQUEUE_", "SACCT_", "SACCTMGR_", "SCANCEL_", "SINFO_", "SCONTROL_")
"""Prefixes; those of an enclosing job are among them."""
_KEPT = ("SLURM_CONF", "SLURM_JWT")
"""Where the cluster is, and who asks."""
_ABOUT_THE_COMMAND = ("debug", "verbose", "quiet", "ignore-pbs", "wait", "colors")
"""Options that change nothing about a job."""
_SET_WITHIN_JOBS = ("mem-bind", "cpu-bind")
"""Beginnings of options that SLURM itself says of an enclosing job."""
_MEMORY = ("mem", "mem-per-cpu", "mem-per-gpu")
"""Options of which sbatch takes one."""
_OPTIONS = {
    "timelimit": "time", "array-inx": "array", "mem-per-node": "mem", "req-switch": "switches", "burst-buffer": "bb",
    "cpu-freq-req": "cpu-freq",
}  # fmt: skip
"""Options of sbatch whose variables have another name."""


def unsteered(environment: Mapping[str, str]) -> dict[str, str]:
    """Return the environment without what would steer SLURM's commands."""
    return {name: value for name, value in environment.items() if name in _KEPT or not name.startswith(_STEERING)}


def overruled_variables(environment: Mapping[str, str], allocation: AllocationConfig) -> Iterator[str]:
    """Yield a line for each SBATCH_* that asks for something else than the plan, which goes first.

    A variable for an option that the plan leaves open raises `ConfigError`, since nobody can tell what is meant.
    """
    settings = vars(options_of(allocation))
    named = {name.replace("_", "-"): value for name, value in settings.items()}
    planned = {**named, **settings["additional_parameters"]}
    memory = next((f"{name}={named[name]}" for name in ("mem-gb", *_MEMORY) if named[name] is not None), None)
    for variable, value in sorted(environment.items()):
        if not variable.startswith("SBATCH_"):
            continue
        word = variable.removeprefix("SBATCH_").lower().replace("_", "-")
        option = _OPTIONS.get(word, word)
        if option in _ABOUT_THE_COMMAND or str(planned.get(option)) == value:
            continue
        if "SLURM_JOB_ID" in environment and option.startswith(_SET_WITHIN_JOBS):
            continue
        if option in REFUSED:
            yield f"{variable}={value} is not followed: {REFUSED[option]}"
        elif option in _MEMORY and memory is not None:
            yield f"{variable}={value} is not followed: allocation {allocation.name} says {memory}"
        elif planned.get(option) is not None:
            yield f"{variable}={value} is not followed: allocation {allocation.name} says {option}={planned[option]}"
        else:
            setting = option.replace("-", "_")
            remedy = f"{setting}: {value}" if option in named else f"additional_parameters: {{{option}: {value}}}"
            raise ConfigError(
                f"allocation {allocation.name}: the environment has {variable}={value}, which jobs do not follow: "
                f"give the allocation `{remedy}`, or unset {variable}"
            )
