"""Refuse runs whose targets cannot be used, or are other code than they were begun with, before anything is queued."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import assert_never, get_args

from muloco_runner.config import (
    ConfigError,
    DiLoCoConfig,
    InnerOptimizerConfig,
    OuterOptimizerConfig,
    RunConfig,
    TargetModelConfig,
)
from muloco_runner.record import RunFolder
from muloco_runner.targets.answers import Answer, answers_to, together
from muloco_runner.targets.code_record import recorded_code, recorded_hash
from muloco_runner.targets.questions import Question, Trial, questions_of
from muloco_runner.targets.source_code import Source, package_of, sources_of


def check_targets(runs: Sequence[RunConfig], root: Path, same_code: bool) -> dict[str, Answer]:
    """Try what is new among the runs' targets, and compare their code with that which trained runs of `root` had.

    Returns what was found out, by run id, of the runs with targets. What cannot be used, and code that has changed
    under the same version where `same_code` is not said, raises `ConfigError`.
    """
    concerned = [run for run in runs if run.targets]
    if not concerned:
        return {}
    _refuse_equal_labels(concerned)
    _refuse_without_matrices(concerned)
    sources = sources_of(concerned)
    if not same_code:
        _refuse_changed(concerned, root, sources)
    _refuse_other_sizes(concerned, root)
    asked = {run.run_id: questions_of(run, sources) for run in concerned}
    answers = answers_to({key: question for one in asked.values() for key, question in one.items()}, sources)
    for trial in get_args(Trial):  # one that cannot be built at some rate is not at fault for failing at it
        _refuse_problems(trial, concerned, asked, answers)
    found: dict[str, Answer] = {}
    for run in concerned:
        own = [
            replace(answers[key], why_not=f"{_where(run, question.part)}: {answers[key].why_not}")
            for key, question in asked[run.run_id].items()
        ]
        found[run.run_id] = together(own)
    return found


def _where(run: RunConfig, part: str) -> str:
    return f"{part}._target_={run.targets[part][0]}"


def _refuse_problems(
    trial: Trial, runs: Sequence[RunConfig], asked: Mapping[str, Mapping[str, Question]], answers: Mapping[str, Answer]
) -> None:
    """What showed problems in that trial raises `ConfigError`, which names all settings that have one."""
    problems: dict[str, dict[str, str]] = {}
    for run in runs:
        for key, question in asked[run.run_id].items():
            if question.trial == trial:
                of_target = problems.setdefault(_where(run, question.part), {})
                of_target[_setting(run, question)] = answers[key].problem
    for where, by_setting in problems.items():
        bad = [setting for setting, problem in by_setting.items() if problem]
        if not bad:
            continue
        problem = by_setting[bad[0]].removeprefix(f"{where}: ")
        others = ""
        if trial != "whole" and len(bad) < len(by_setting):
            named = ", ".join(bad[:_MOST_NAMED]) + (", ..." if len(bad) > _MOST_NAMED else "")
            others = (
                f"; so it is with {len(bad)} of the {len(by_setting)} values that were asked for ({named}), and the "
                "others can be used: leave these out"
            )
        raise ConfigError(f"{where}: {problem}{others}")


_MOST_NAMED = 8


def _setting(run: RunConfig, question: Question) -> str:
    """What of the run such a trial tells from others, in words."""
    match question.trial:
        case "rates" if question.part == "inner_optimizer":
            decay = f" with a weight decay of {run.weight_decay:g}" if run.weight_decay else ""
            return f"{question.part}.lr={run.inner_optimizer.lr:g}{decay}"
        case "rates":
            return f"{question.part}.lr={question.values['lr']:g}"
        case "size":
            return f"a model of {run.num_params:,} parameters"
        case "whole":
            return run.run_id
        case _:
            assert_never(question.trial)


def _refuse_equal_labels(runs: Sequence[RunConfig]) -> None:
    """Two targets of one label would be one series in reports: they raise `ConfigError`."""
    by_label: dict[tuple[str, str], str] = {}
    for run in runs:
        for part, config in run.from_outside.items():
            label, target = getattr(config, "label", ""), config.targets[0]
            first = by_label.setdefault((part, label), target)
            if label and first != target:
                raise ConfigError(
                    f"two targets are called {label}, {first} and {target}: give one of them {part}.label=..., or "
                    "their results could not be told apart"
                )


def _refuse_without_matrices(runs: Sequence[RunConfig]) -> None:
    """Muon on a model without a hidden matrix would be another optimizer under its name: it raises `ConfigError`."""
    for run in runs:
        if not isinstance(run.model, TargetModelConfig) or run.model.num_hidden_params:
            continue
        chosen: dict[str, tuple[InnerOptimizerConfig | OuterOptimizerConfig, str]] = {
            "inner_optimizer": (run.inner_optimizer, "adamw")
        }
        if isinstance(run.method, DiLoCoConfig):
            chosen["method/outer_optimizer"] = (run.method.outer_optimizer, "sgd")
        for setting, (optimizer, other) in chosen.items():
            if optimizer.orthogonalizes:
                raise ConfigError(
                    f"{setting}={optimizer.name}: model._target_={run.model._target_} has no hidden matrix, which "
                    f"alone it updates as {optimizer.label}: hidden matrices are the weights of nn.Linear layers, or "
                    f"what model.matrices={{PATTERN: hidden}} names; else use {setting}={other}"
                )


def _refuse_changed(runs: Sequence[RunConfig], root: Path, sources: Mapping[str, Source]) -> None:
    changed: dict[str, list[str]] = {}
    for run in runs:
        recorded = recorded_code(RunFolder.of(root, run.run_id)) or {"hashes": {}}
        for package, before in recorded["hashes"].items():
            if package in sources and recorded_hash(sources[package], recorded) != before:
                changed.setdefault(package, []).append(run.run_id)
    for package, names in changed.items():
        parts = {part for run in runs for part, targets in run.targets.items() if package in map(package_of, targets)}
        shown = ", ".join(names[:8]) + (f" and {len(names) - 8} more" if len(names) > 8 else "")
        raise ConfigError(
            f"the code of {package} has changed since {len(names)} of these runs were begun ({shown}), under the same "
            f"{' and '.join(f'{part}.version' for part in sorted(parts))}: set another version, which makes new runs, "
            "or say --same-code if the change makes no difference"
        )


def _refuse_other_sizes(runs: Sequence[RunConfig], root: Path) -> None:
    """A run that was begun with a model of other parameters under the same version raises `ConfigError`."""
    for run in runs:
        folder = RunFolder.of(root, run.run_id)
        if not isinstance(run.model, TargetModelConfig) or not folder.config_file.exists():
            continue
        before = RunConfig.from_dict(folder.read_config()).model
        if before.shapes != run.model.shapes:
            raise ConfigError(
                f"model._target_={run.model._target_} has {run.num_params:,} parameters now, run {run.run_id} was "
                f"begun with {before.num_params:,} or in other shapes: set another model.version, which makes a new run"
            )
