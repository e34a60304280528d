"""What trying targets showed. It is done in a process of its own (`muloco_runner.trials`), once for each question.

A file under $XDG_CACHE_HOME/muloco/targets (~/.cache) keeps each answer.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from muloco_runner.config import ConfigError
from muloco_runner.config.plain import to_plain
from muloco_runner.record import write_atomically
from muloco_runner.targets.questions import Question, key_of_facts, without_facts
from muloco_runner.targets.source_code import (
    Source,
    files_of,
    folders_of,
    keep_copy,
    package_of,
    path_without_copies,
    sources_by_package,
)
from muloco_sweeps import python_command

_TRY_SECONDS = 300.0
"""For each target."""


@dataclass(frozen=True)
class Answer:
    """What trying a target showed."""

    problem: str = ""
    """Why it cannot be used; empty where it can."""
    takes_dtensors: bool = True
    """Whether two ranks that shard parameters by rows (FSDP2) get what one rank gets."""
    why_not: str = ""
    facts: dict[str, Any] | None = None
    """Of a model: what was found when it was built without memory; of data: what it holds."""


_NO_ANSWER = Answer()


def facts_of(part: str, values: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """What is found of models or data from outside (`part`), given as plain values, by trying what is new among them.

    What cannot be used raises `ConfigError`.
    """
    configs = [without_facts(part, one) for one in values]
    sources = sources_by_package((target, part) for config in configs for target in config.targets)
    keys = [key_of_facts(config, sources) for config in configs]
    questions = {key: Question(part, "whole", to_plain(one)) for key, one in zip(keys, configs, strict=True)}
    answers = answers_to(questions, sources)
    found = []
    for key, config in zip(keys, configs, strict=True):
        if problem := answers[key].problem:
            where = f"{part}._target_={config.targets[0]}: "
            raise ConfigError(where + problem.removeprefix(where))
        found.append(answers[key].facts or {})
    return found


def known_facts(part: str, values: Mapping[str, Any]) -> dict[str, Any] | None:
    """The same of one that was tried before; None of another one, which is not tried now."""
    with contextlib.suppress(ConfigError):
        config = without_facts(part, values)
        answer = read_answer(key_of_facts(config, sources_by_package((target, part) for target in config.targets)))
        return answer.facts if answer is not None else None
    return None


def answers_to(questions: Mapping[str, Question], sources: Mapping[str, Source]) -> dict[str, Answer]:
    """Answers by key: those that are kept, and those to what is tried now."""
    answers = {key: answer for key in questions if (answer := read_answer(key)) is not None}
    new = {key: question for key, question in questions.items() if key not in answers}
    if not new:
        return answers
    with tempfile.TemporaryDirectory(prefix="muloco-trial-") as place:
        copies = {
            package: source if source.installed else replace(source, folder=keep_copy(source, Path(place)))
            for package, source in sources.items()
        }
        found = _try(new, folders_of(copies), folders_of(sources))
    return answers | {key: replace(answer, problem=_in_words(answer.problem, sources)) for key, answer in found.items()}


def together(answers: Sequence[Answer]) -> Answer:
    """Of what takes part in one run: it takes sharded parameters where all of it does."""
    return next((answer for answer in answers if not answer.takes_dtensors), _NO_ANSWER)


def _cache_file(key: str) -> Path:
    base = os.environ.get("XDG_CACHE_HOME") or Path("~/.cache").expanduser()
    return Path(base) / "muloco" / "targets" / f"{key}.json"


def read_answer(key: str) -> Answer | None:
    with contextlib.suppress(OSError, ValueError, TypeError):
        answer = Answer(**json.loads(_cache_file(key).read_text()))
        return None if answer.problem else answer
    return None


def _in_words(problem: str, sources: Mapping[str, Source]) -> str:
    """A trial's problem, and what to do where it is that something beside a package was not copied with it."""
    missing = _NO_MODULE.search(problem)
    if missing is None:
        return problem
    for source in sources.values():
        if not source.installed and files_of(source.folder, name := package_of(missing[1])):
            return (
                f"{problem}: {name} lies beside {source.package}, and jobs import a copy of {source.package} alone: "
                f"move it into a package {source.package}, so that its code is recorded with every run, or install it"
            )
    return problem


_NO_MODULE = re.compile(r"No module named '([\w.]+)'")


def _try(questions: Mapping[str, Question], folders: Sequence[str], left_out: Sequence[str] = ()) -> dict[str, Answer]:
    """Try what is asked in one process that loads torch, and imports from `folders` and not from those `left_out`."""
    parts = " and ".join(sorted({question.part for question in questions.values()}))
    whole = sum(question.trial == "whole" for question in questions.values())
    what = f"{whole} target(s) from outside ({parts})" if whole else f"new values of targets from outside ({parts})"
    print(f"trying {what}, once", file=sys.stderr, flush=True)
    # The same roots as this process, and not the folder it was started in.
    kept_out = {str(source) for source in left_out}
    here = [place for place in path_without_copies() if place and str(Path(place).resolve()) not in kept_out]
    with tempfile.TemporaryDirectory(prefix="muloco-answers-") as place:
        file = Path(place) / "answers.json"
        try:
            done = subprocess.run(
                python_command("muloco_runner.trials"),
                input=json.dumps({"path": list(folders), "questions": questions, "answers": str(file)}),
                capture_output=True, text=True, timeout=_TRY_SECONDS * max(1, whole), check=False,
                env={
                    **os.environ,
                    "PYTHONPATH": os.pathsep.join(here), "CUDA_VISIBLE_DEVICES": "", "OMP_NUM_THREADS": "1",
                },
            )  # fmt: skip
        except subprocess.TimeoutExpired:
            raise ConfigError(f"{parts}._target_: trying it took more than {_TRY_SECONDS:g} s: it hangs") from None
        try:
            found = {key: Answer(**values) for key, values in json.loads(file.read_text()).items()}
        except (OSError, ValueError, TypeError):
            last = " ".join(done.stderr.strip().splitlines()[-1:]) or f"exit code {done.returncode}"
            raise ConfigError(f"{parts}._target_: trying it ended without an answer: {last}") from None
    for key, answer in found.items():
        if answer.problem:
            continue  # it may be that of this machine, of now, or of this run's values alone
        with contextlib.suppress(OSError):
            _cache_file(key).parent.mkdir(parents=True, exist_ok=True)
            write_atomically(_cache_file(key), json.dumps(answer.__dict__) + "\n")
    return found
