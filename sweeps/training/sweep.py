"""Reads a command line as a sweep: names and values in, pieces of work and their folder out."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any

from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.errors import HydraException
from omegaconf import DictConfig, OmegaConf
from yaml import YAMLError

from muloco_runner.compose import (
    AROUND_RUNS,
    as_meant,
    check_one_model,
    compose_tree,
    one_line,
    to_app_config,
    unreadable,
)
from muloco_runner.config import ConfigError, ExecutionConfig, RunConfig
from muloco_runner.data.check import check_data
from muloco_runner.data.identity import named_by_content
from muloco_runner.paths import choices_of
from muloco_runner.targets import Answer, check_targets
from muloco_runner.warm_start import named_by_weights
from sweeps.clusters import read_cluster
from sweeps.engine.cluster_config import ClusterConfig
from sweeps.engine.durations import refine
from sweeps.engine.tuning.study import Coordinates
from sweeps.engine.work import Work
from sweeps.node.reports import measured_minutes
from sweeps.store.definition import Definition
from sweeps.store.folder import SweepFolder
from sweeps.training.budget_branches import branched, branching_of, split_branches
from sweeps.training.derive import configs_of
from sweeps.training.entry import keep_of, need_of, works_of
from sweeps.training.expansion import expand
from sweeps.training.gpus import Gpus
from sweeps.training.study_file import STUDY_KEYS, split_study
from sweeps.training.study_groups import study_of


@dataclass(frozen=True)
class Sweep:
    """A sweep as asked for, checked, not yet launched."""

    name: str
    root: Path
    runs: list[RunConfig]
    execution: ExecutionConfig
    definition: Definition
    cluster: ClusterConfig
    added: Mapping[str, Coordinates] = field(default_factory=dict)
    """Where runs stand that it has added so far, by name; empty where it does not go on by its results."""

    @property
    def folder(self) -> SweepFolder:
        return SweepFolder(self.root, self.name)


def read_sweep(arguments: Sequence[str], allow_large: bool = False, same_code: bool = False) -> Sweep:
    """`+sweep=NAME`, the cluster and any narrowing of the grid, as typed. Mistakes raise `ConfigError`.

    `same_code`: take the code of targets that has changed since their runs were begun as the same.
    Without a name the command line's own lists are the sweep, and its runs name it.
    """
    name, around, narrowing = _split(arguments)
    file = _sweep_file(name)
    own = _read(file) if file is not None else {}
    around = [*_unless_said("cluster", own, around), *around]
    tree = compose_tree([*([f"+sweep={name}"] if name and file is None else []), *around])
    if file is not None:
        _put_into(tree, own, file, around)
        name = file.stem
    app = to_app_config(tree)
    cluster_name = next((a.partition("=")[2] for a in around if a.startswith("cluster=")), "local")
    cluster = read_cluster(cluster_name, OmegaConf.to_container(tree.cluster, resolve=True))
    sweep = OmegaConf.to_container(tree.sweep, resolve=True) if name else {"grids": [{}]}
    if not isinstance(sweep, dict):
        raise ConfigError(f"+sweep={name}: the file holds no keys: give `grids`, or `fixed` and `grid`")
    plain, narrowing, goes_on = split_study({str(key): value for key, value in sweep.items()}, narrowing)
    plain, narrowing, branches = split_branches(plain, narrowing)
    if branches and goes_on is not None:
        raise ConfigError(
            f"branches: a sweep that goes on by its results ({', '.join(STUDY_KEYS)}) adds and stops whole runs: find "
            "the settings first, and branch from the best in a sweep of its own"
        )
    root = Path(app.root)
    runs = expand(plain, narrowing, allow_large=allow_large, root=root)
    for run in {(repr(run.data), run.model.vocab_size, run.model.sequence_length): run for run in runs}.values():
        check_data(run)
        if run.data.validation is not None:
            from muloco_runner.data.validation_sets import check_validation_sets

            check_validation_sets(run)
    # Several paths may lead to one text.
    runs = list({run.run_id: run for run in named_by_content(named_by_weights(runs), root)}.values())
    name = name or _name_of(runs)
    for path in (root, root / "runs", root / "sweeps"):
        if path.exists() and not path.is_dir():
            raise ConfigError(f"root={root}: {path} is a file, not a folder: choose another root")
    execution = replace(app.execution, keep=keep_of(app.execution), final_checkpoint=None)
    for run in runs:
        execution.check(run.num_steps)
    if execution.wandb_project is not None and execution.wandb_group is None:
        execution = replace(execution, wandb_group=name)
    answers = check_targets(runs, root, same_code)
    works = works_of(runs, root, execution, cluster)
    works = refine(branched(works, branching_of(runs)) if branches else works, measured_minutes)
    if answers:
        _refuse_sharded(runs, works, Gpus(cluster, execution), answers)
    study, added = None, dict[str, Coordinates]()
    if goes_on is not None:
        added = SweepFolder(root, name).added_runs()
        check = partial(_check_added, execution=execution, gpus=Gpus(cluster, execution))
        study = study_of(goes_on, {run.run_id: run for run in runs}, configs_of(added, root), check)
    definition = Definition(name, cluster_name, cluster.to_dict(), works, study=study)
    return Sweep(name, root, runs, execution, definition, cluster, added)


def _check_added(run: RunConfig, execution: ExecutionConfig, gpus: Gpus) -> None:
    """Raises `ConfigError` for a run that a sweep could not add, as it does for those of its file."""
    execution.check(run.num_steps)
    need_of(run, gpus)


def _refuse_sharded(
    runs: Sequence[RunConfig], works: Sequence[Work], gpus: Gpus, answers: Mapping[str, Answer]
) -> None:
    """A run whose target does not take sharded parameters, and that would have them, raises `ConfigError`."""
    for run, work in zip(runs, works, strict=True):
        answer = answers.get(work.name)
        if answer is None or answer.takes_dtensors or not work.need.gpus:
            continue
        if work.need.gpus > run.num_workers and gpus.fit(run, work.need.gpus).placement.sharded:
            raise ConfigError(
                f"run {work.name} would be sharded over {work.need.gpus} GPUs (FSDP2), and what it names does not take "
                f"sharded parameters: {answer.why_not}; say execution.sharding=none, or give it fewer GPUs by "
                "cluster.gpus_per_run"
            )


def _name_of(runs: Sequence[RunConfig]) -> str:
    content = "".join(sorted(run.run_id for run in runs))
    return f"multirun-{hashlib.sha256(content.encode()).hexdigest()[:8]}"


def _split(arguments: Sequence[str]) -> tuple[str | None, list[str], dict[str, list[Any]]]:
    """The sweep's name, what goes around the runs, and keys of the runs with their values."""
    check_one_model(arguments)
    words = [as_meant(word) for word in arguments]
    try:
        overrides = OverridesParser.create().parse_overrides(words)
    except HydraException as error:
        raise ConfigError(unreadable(words) or one_line(error)) from error
    name, around, narrowing = None, [], {}
    for override in overrides:
        key = override.key_or_group
        text = override.input_line or ""
        if key == "sweep":
            values = list(override.sweep_iterator()) if override.is_sweep_override() else [override.value()]
            if len(values) != 1:
                raise ConfigError(f"{text}: one sweep at a time: give a single name")
            name = str(_plain(values[0]))
        elif key.split(".")[0] in AROUND_RUNS:
            if override.is_sweep_override():
                raise ConfigError(f"{text}: one value at a time: {key} is the same for all runs of a sweep")
            around.append(text)
        elif override.is_delete():
            raise ConfigError(f"{text}: a sweep's keys cannot be deleted: narrow them with {key}=VALUE")
        else:
            values = list(override.sweep_iterator()) if override.is_sweep_override() else [override.value()]
            narrowing[key.lstrip("+")] = [_plain(value) for value in values]
    if name is None and not narrowing:
        raise ConfigError(f"no sweep is named: add +sweep=NAME, one of {', '.join(sweep_names())}, or lists of values")
    if name is not None and _sweep_file(name) is None and name not in sweep_names():
        raise ConfigError(
            f"+sweep={name}: no such file under conf/sweep; there are {', '.join(sweep_names())}, or give the path "
            "of a file, such as ./mine.yaml"
        )
    return name, around, narrowing


def _plain(value: Any) -> Any:
    """Hydra's parser keeps quotes apart; a sweep wants the text."""
    return value.text if hasattr(value, "text") else value


def sweep_names() -> list[str]:
    return choices_of("sweep")


def _sweep_file(name: str | None) -> Path | None:
    """The file that a sweep is given by, where it is a path and no name. One that is not there raises `ConfigError`."""
    if name is None or not ("/" in name or name.endswith((".yaml", ".yml"))):
        return None
    file = Path(name).expanduser()
    if not file.is_file():
        raise ConfigError(f"+sweep={name}: there is no such file")
    return file


_OF_FILES = ("root", "cluster")
"""Keys of a sweep file that is given by its path; words of the command line go before them."""


def _read(file: Path) -> dict[str, Any]:
    """What a sweep file outside conf/sweep holds. Mistakes raise `ConfigError`."""
    try:
        sweep = OmegaConf.load(file)
    except (OSError, ValueError, YAMLError) as error:
        raise ConfigError(f"+sweep={file}: {one_line(error)}") from None
    if not isinstance(sweep, DictConfig) or not sweep or "defaults" in sweep:
        raise ConfigError(f"+sweep={file}: must hold the keys of a sweep, such as grids, and no defaults list")
    values = {str(key): value for key, value in sweep.items()}
    for key in _OF_FILES:
        if key in values and not (isinstance(values[key], str) and values[key]):
            raise ConfigError(f"+sweep={file}: {key}: {values[key]!r} is no name: give text, such as {key}: local")
    return values


def _unless_said(key: str, values: Mapping[str, Any], around: Sequence[str]) -> list[str]:
    is_said = any(word.startswith(f"{key}=") for word in around)
    return [f"{key}={values[key]}"] if key in values and not is_said else []


def _put_into(tree: DictConfig, values: Mapping[str, Any], file: Path, around: Sequence[str]) -> None:
    """Sets the tree's sweep, and its root unless the command line has one: a path from the file's folder."""
    if _unless_said("root", values, around):
        root = (file.resolve().parent / Path(values["root"]).expanduser()).resolve()
        here = Path.cwd().resolve()
        OmegaConf.update(tree, "root", str(root.relative_to(here) if root.is_relative_to(here) else root))
    sweep = {key: value for key, value in values.items() if key not in _OF_FILES}
    OmegaConf.update(tree, "sweep", sweep, force_add=True)
