"""A run that differs from another of its sweep in a few values: what a sweep adds by its results."""

from __future__ import annotations

import contextlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from muloco_runner.config import ConfigError, ExecutionConfig, RunConfig
from muloco_runner.record import RecordError, RunFolder
from sweeps.engine.cluster_config import ClusterConfig
from sweeps.engine.tuning.study import BATCH, Coordinates
from sweeps.engine.work import Work
from sweeps.formatting import plural
from sweeps.training.entry import prepare, works_of
from sweeps.training.study_groups import identity_of, others_of


def derived_work(like: Work, values: Mapping[str, Any], cluster: ClusterConfig) -> Work:
    """The same training run with other values of some keys, its folder written.

    It is expected to take as much longer than a first guess as the other does. Values that make no run, and runs that
    fit on no GPUs or end before what `execution` asks of their steps, raise `ConfigError`.
    """
    before = run_of(like)
    run = before.with_values(values)
    if run.algorithm != before.algorithm:
        raise ConfigError(f"{dict(values)} makes {run.algorithm} of {before.algorithm}, which is another series")
    root = Path(like.folder).parent.parent
    # Whatever the sweep decided for all its runs stands in their arguments.
    execution = ExecutionConfig(**like.arguments["execution"])
    _check_steps(run, execution)
    made, guess = works_of([run, before], root, execution, cluster)
    made = replace(made, arguments=like.arguments)
    prepare([run], root)
    longer = like.need.expected_minutes / guess.need.expected_minutes if guess.need.expected_minutes > 0 else 1.0
    return made.expecting(made.need.expected_minutes * longer)


def _check_steps(run: RunConfig, execution: ExecutionConfig) -> None:
    try:
        execution.check(run.num_steps)
    except ConfigError as error:
        raise ConfigError(
            f"a run of {run.num_steps} steps, with global_batch_tokens={run.global_batch_tokens}, is to be added: "
            f"{error}"
        ) from error


def run_of(work: Work) -> RunConfig:
    """The training run that a piece of work is, as its folder has it. One that does not raises `ConfigError`."""
    try:
        return RunConfig.from_dict(RunFolder(work.folder).read_config())
    except RecordError as error:
        raise ConfigError(f"{error}: launch the sweep again, which writes it anew") from None


def configs_of(names: Iterable[str], root: Path) -> dict[str, RunConfig]:
    """The runs of those names, as their folders have them; those that are gone are left out."""
    found = {}
    for name in names:
        with contextlib.suppress(RecordError, OSError, ConfigError):
            found[name] = RunConfig.from_dict(RunFolder.of(root, name).read_config())
    return found


@dataclass(frozen=True)
class LostConfigs:
    """Runs that a sweep has added and whose folders have lost their configs, by name."""

    rewritten: Sequence[str] = ()
    unknown: Sequence[str] = ()
    """Of which no run that is left tells what they were."""

    def lines(self) -> Iterator[str]:
        """Say what was done, and what is left to do."""
        if self.rewritten:
            yield (
                f"the config.yaml of {plural(len(self.rewritten), 'run')} that the sweep had added was gone and is "
                f"written anew: {', '.join(self.rewritten)}; `retry` starts those that are held for it"
            )
        if self.unknown:
            yield (
                f"the config.yaml of {plural(len(self.unknown), 'run')} that the sweep had added is gone, and no run "
                f"of this sweep tells what they were: {', '.join(self.unknown)}: launch with the sweep's file as it "
                "was when they were added, which writes it anew, or put their folders back"
            )


def rewrite_lost_configs(runs: Sequence[RunConfig], added: Mapping[str, Coordinates], root: Path) -> LostConfigs:
    """Write the configs that the folders of added runs have lost.

    An added run is one of its group with other values of a few keys. A run's name is made of its config, so it tells
    whether what is found is that run. `runs` are those of the sweep's file.
    """
    lost = {name: at for name, at in added.items() if not RunFolder.of(root, name).config_file.exists()}
    if not lost:
        return LostConfigs()
    groups: dict[str, list[RunConfig]] = {}
    for one in [*runs, *configs_of(added.keys() - lost.keys(), root).values()]:
        groups.setdefault(identity_of(one), []).append(one)
    there = {name: _run_at(name, at, groups.get(at.group, ())) for name, at in lost.items()}
    found = {name: run for name, run in there.items() if run is not None}
    prepare(list(found.values()), root)
    return LostConfigs(list(found), [name for name in lost if name not in found])


def _run_at(name: str, at: Coordinates, group: Sequence[RunConfig]) -> RunConfig | None:
    """The run of that name, made of one of its group that differs from it in no more than where it stands."""
    keys = [key for key in at.values if key != BATCH]
    for like in {others_of(run, keys): run for run in group}.values():
        with contextlib.suppress(ConfigError):
            run = like.with_values({**at.values, "seed": at.seed})
            if run.run_id == name:
                return run
    return None
