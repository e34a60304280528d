"""Code from outside the package that a run names by `_target_`: where it is, what is in it, and what runs it made.

Without torch, and nothing of it is imported here. What a target does is tried in a process of its own
(`muloco_runner.trials`), once for each state of its code and its arguments; a file under $XDG_CACHE_HOME/muloco/targets
(~/.cache) keeps the answers.
"""

from __future__ import annotations

import contextlib
import hashlib
import importlib
import importlib.util
import json
import os
import re
import subprocess
import sys
import tempfile
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cache
from importlib import metadata
from pathlib import Path
from typing import Any

from muloco_runner.config import (
    ConfigError,
    FromOutside,
    RunConfig,
    TargetCompressionConfig,
    TargetConfig,
    TargetDataConfig,
    TargetModelConfig,
    TargetOuterConfig,
    TargetScheduleConfig,
)
from muloco_runner.config.plain import from_plain, to_plain
from muloco_runner.paths import config_path
from muloco_runner.record import RunFolder, write_atomically, write_folder
from muloco_sweeps import python_command

_TRY_SECONDS = 300.0
"""For each target."""
_GENERATION = 2
"""Of what trials look for: answers of earlier ones do not count."""


@dataclass(frozen=True)
class Source:
    """The code of a target's top package."""

    package: str
    folder: Path
    """What holds it: to be on Python's path."""
    hash: str
    installed: bool
    """Whether it is an installed package, which jobs import from where it is."""

    def files(self) -> list[Path]:
        return _files(self.folder, self.package)


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


def find_source(target: str, part: str = "inner_optimizer") -> Source:
    """The source of a target: on Python's path, or beside a config folder of the user's. One that is nowhere raises
    `ConfigError`. `part` is that of the run which names it."""
    package = _package(target)
    if package in sys.stdlib_module_names:
        raise ConfigError(
            f"{part}._target_={target}: {package} is of the standard library, and a module of yours of that name would "
            "not be imported: name a class or function of yours, in a module with another name"
        )
    if package == "torch":
        # Thousands of files, and its version is recorded with every run.
        return Source(package, Path(), package, installed=True)
    beside = [folder.parent for folder in config_path().folders]
    for folder in [
        *(Path(place or ".").resolve() for place in _path_without_copies()),
        *beside,
        *_found_by_import(package),
    ]:
        if _files(folder, package):
            return _source_in(folder, package)
    raise ConfigError(
        f"{part}._target_={target}: there is no package or module {package} on Python's path"
        + (f" or in {', '.join(map(str, beside))}" if beside else "")
        + ": install it, put it beside conf/, or name its folder in PYTHONPATH"
    )


def _source_in(folder: Path, package: str) -> Source:
    return Source(package, folder, _hash(folder, _files(folder, package)), "site-packages" in folder.parts)


def facts_of(part: str, values: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """What is found of models or data from outside (`part`), given as plain values, by trying what is new among them.

    What cannot be used raises `ConfigError`.
    """
    configs = [_without_facts(part, one) for one in values]
    sources = _sources((target, part) for config in configs for target in config.targets)
    keys = [_key_of_facts(config, sources) for config in configs]
    answers = _answers({key: (part, to_plain(config)) for key, config in zip(keys, configs, strict=True)}, sources)
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
        config = _without_facts(part, values)
        answer = _read_answer(_key_of_facts(config, _sources((target, part) for target in config.targets)))
        return answer.facts if answer is not None else None
    return None


def check_targets(runs: Sequence[RunConfig], root: Path, same_code: bool) -> dict[str, Answer]:
    """Try what is new among the runs' targets, and compare their code with that which trained runs of `root` had.

    Returns what was found out, by run id, of the runs with targets. What cannot be used, and code that has changed
    under the same version where `same_code` is not said, raises `ConfigError`.
    """
    concerned = [run for run in runs if run.targets]
    if not concerned:
        return {}
    _refuse_equal_labels(concerned)
    sources = _sources_of(concerned)
    if not same_code:
        _refuse_changed(concerned, root, sources)
    _refuse_other_sizes(concerned, root)
    asked = {run.run_id: _questions(run, sources) for run in concerned}
    answers = _answers({key: question for one in asked.values() for key, question in one.items()}, sources)
    found: dict[str, Answer] = {}
    for run in concerned:
        own = []
        for key, (part, _) in asked[run.run_id].items():
            where = f"{part}._target_={run.targets[part][0]}"
            if problem := answers[key].problem:
                raise ConfigError(f"{where}: {problem.removeprefix(f'{where}: ')}")
            own.append(replace(answers[key], why_not=f"{where}: {answers[key].why_not}"))
        found[run.run_id] = _together(own)
    return found


def record_code(runs: Sequence[RunConfig], root: Path, snapshot: bool) -> None:
    """Write beside each run with targets which code they are; with `snapshot`, also keep a copy under `root` from which
    its jobs import."""
    concerned = [run for run in runs if run.targets]
    sources = _sources_of(concerned)
    folders = {
        package: str(_keep(source, root) if snapshot else source.folder)
        for package, source in sources.items()
        if not source.installed
    }
    for run in concerned:
        packages, answers = _packages(run), [_read_answer(key) for key in _questions(run, sources)]
        known = [answer for answer in answers if answer is not None]
        values: dict[str, Any] = {
            "targets": [target for targets in run.targets.values() for target in targets],
            "hashes": {package: sources[package].hash for package in packages},
            "all_files": True,
            "folders": [folders[package] for package in packages if package in folders],
            "takes_dtensors": _together(known).takes_dtensors if len(known) == len(answers) else None,
        }
        folder = RunFolder.of(root, run.run_id)
        before = _recorded(folder)
        if before is not None:
            earlier = before.pop("earlier", [])
            # Its first attempts may have trained with other code, which was said to be the same.
            is_same = all(_recorded_hash(sources[package], before) == one for package, one in before["hashes"].items())
            values["earlier"] = earlier if is_same else [*earlier, before]
        write_atomically(_code_file(folder), json.dumps(values, indent=1) + "\n")


def hand_on_code(parent: RunFolder, child: RunFolder) -> None:
    """Have a run that goes on from another one's checkpoint use the code that this one was trained with."""
    if (recorded := _recorded(parent)) is not None:
        write_atomically(_code_file(child), json.dumps(recorded, indent=1) + "\n")


def make_importable(run: RunConfig, folder: RunFolder | None) -> None:
    """Let this process import the run's targets: from the kept copy where its launch made one, else from where they
    are now. Code other than what `folder` records raises `ConfigError`; None for a run that records it yet."""
    if not run.targets:
        return
    recorded = _recorded(folder) if folder is not None else None
    if folder is None or recorded is None:
        sources = _sources_of([run])
    else:
        names = {_package(target): (target, part) for part, targets in run.targets.items() for target in targets}
        sources = {
            package: _recorded_source(package, target, part, recorded, folder)
            for package, (target, part) in names.items()
        }
    _import_from(sources)


def _recorded_source(package: str, target: str, part: str, recorded: Mapping[str, Any], folder: RunFolder) -> Source:
    """The package as a run of that record was trained with it; where there is only another one, raises
    `ConfigError`."""
    expected = recorded["hashes"].get(package)
    for place in map(Path, recorded["folders"]):
        if _files(place, package):
            source = _source_in(place, package)
            if expected is None or _recorded_hash(source, recorded) == expected:
                return source
    source = find_source(target, part)
    if expected is not None and _recorded_hash(source, recorded) != expected:
        raise ConfigError(
            f"{folder.path} was trained with other code of {package} than {source.folder} holds now: put it back, or "
            f"set another {part}.version, which makes a new run"
        )
    return source


def _import_from(sources: Mapping[str, Source]) -> None:
    """Have these packages, and no others of their names, imported from now on: modules of one that came from
    elsewhere, or from other content of its files, are forgotten."""
    path = _path_without_copies()
    _added_to_path[:] = dict.fromkeys(_folders(sources))
    sys.path[:] = [*_added_to_path, *path]
    for package, source in sources.items():
        state = str(source.folder), source.hash
        before = _imported.get(package)
        _imported[package] = state
        if before == state or (before is None and source.installed) or package == __name__.partition(".")[0]:
            continue
        for name in [name for name in sys.modules if name == package or name.startswith(f"{package}.")]:
            del sys.modules[name]
    importlib.invalidate_caches()


def _path_without_copies() -> list[str]:
    """Python's path as it would be had no run been loaded here: a kept copy is not where code is now."""
    path = list(sys.path)
    for place in _added_to_path:
        with contextlib.suppress(ValueError):
            path.remove(place)
    return path


_added_to_path: list[str] = []
"""What `_import_from` put before Python's path."""
_imported: dict[str, tuple[str, str]] = {}
"""Folder and hash of what this process imports, by package."""


def refuse_sharded(run: RunConfig, folder: RunFolder) -> None:
    """Raise `ConfigError` for sharded parameters where the run's target was not found to take them: it could come to
    other weights than on one rank without a word."""
    recorded = _recorded(folder) if run.targets else None
    if recorded is not None and not recorded.get("takes_dtensors"):
        raise ConfigError(
            f"{' with '.join(t[0] for t in run.targets.values())} was not found to take parameters that are sharded "
            "over ranks (FSDP2): say execution.sharding=none, or use as few ranks as workers"
        )


def _found_by_import(package: str) -> list[Path]:
    """The folder that holds a package which is on no path, such as one installed to be edited; nothing is imported."""
    with contextlib.suppress(ImportError, ValueError):
        spec = importlib.util.find_spec(package)
        if spec is not None and spec.origin is not None:
            return [Path(spec.origin).resolve().parents[1 if spec.submodule_search_locations else 0]]
    return []


def _files(folder: Path, package: str) -> list[Path]:
    """All of a package's files, since its code may read any of them; none where it has no Python."""
    if (folder / package).is_dir():
        found = sorted(p for p in (folder / package).rglob("*") if p.is_file() and _is_part(p.relative_to(folder)))
        if any(p.suffix == ".py" for p in found):
            return found
    module = folder / f"{package}.py"
    return [module] if module.is_file() else []


def _is_part(path: Path) -> bool:
    """Whether a file of a package's folder is its content, and not what Python, an editor or a system leaves there."""
    if "__pycache__" in path.parts or path.suffix == ".pyc":
        return False
    return path.suffix == ".py" or not any(part.startswith(".") for part in path.parts)


def _recorded_hash(source: Source, recorded: Mapping[str, Any]) -> str:
    """The source's hash as that record has it: an earlier version looked at Python's files alone."""
    if source.package == "torch" or recorded.get("all_files"):
        return source.hash
    return _hash(source.folder, [file for file in source.files() if file.suffix == ".py"])


def _hash(folder: Path, files: Sequence[Path]) -> str:
    digest = hashlib.sha256()
    for file in files:
        content = file.read_bytes()
        digest.update(f"{file.relative_to(folder).as_posix()} {len(content)}\n".encode() + content)
    return digest.hexdigest()[:16]


def _package(target: str) -> str:
    return target.partition(".")[0]


def _packages(run: RunConfig) -> list[str]:
    return list(dict.fromkeys(_package(target) for targets in run.targets.values() for target in targets))


def _sources(targets: Iterable[tuple[str, str]]) -> dict[str, Source]:
    """The sources by package of targets, given with the part of the run that names them, each read once."""
    by_package = {_package(target): (target, part) for target, part in targets}
    return {package: find_source(target, part) for package, (target, part) in by_package.items()}


def _sources_of(runs: Iterable[RunConfig]) -> dict[str, Source]:
    return _sources((target, part) for run in runs for part, targets in run.targets.items() for target in targets)


def _folders(sources: Mapping[str, Source]) -> list[str]:
    """Folders to import from, as they are now; installed packages are found without."""
    return [str(source.folder) for source in sources.values() if not source.installed]


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


def _refuse_changed(runs: Sequence[RunConfig], root: Path, sources: Mapping[str, Source]) -> None:
    changed: dict[str, list[str]] = {}
    for run in runs:
        recorded = _recorded(RunFolder.of(root, run.run_id)) or {"hashes": {}}
        for package, before in recorded["hashes"].items():
            if package in sources and _recorded_hash(sources[package], recorded) != before:
                changed.setdefault(package, []).append(run.run_id)
    for package, names in changed.items():
        parts = {part for run in runs for part, targets in run.targets.items() if package in map(_package, targets)}
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


def _recorded(folder: RunFolder) -> dict[str, Any] | None:
    try:
        values: dict[str, Any] = json.loads(_code_file(folder).read_text())
    except FileNotFoundError:
        return None
    except ValueError:
        raise ConfigError(f"{_code_file(folder)} is damaged: remove it and launch again") from None
    return values


def _code_file(folder: RunFolder) -> Path:
    return folder.path / "target_code.json"


def _keep(source: Source, root: Path) -> Path:
    """A copy of the package's files under `root`."""
    copy = root.resolve() / "code" / f"{source.package}-{source.hash}"
    if not copy.exists():
        write_folder(copy, {str(file.relative_to(source.folder)): file.read_bytes() for file in source.files()})
    return copy


@cache
def _versions() -> tuple[str, str]:
    return metadata.version("torch"), metadata.version("muloco-sweeps")


Question = tuple[str, dict[str, Any]]
"""A part of a run, and what `muloco_runner.trials` is to try of it: the model's values, or the run's."""


def _questions(run: RunConfig, sources: Mapping[str, Source]) -> dict[str, Question]:
    """What is to be tried for a run, by key. A key is the same for what cannot turn out otherwise."""
    asked: dict[str, Question] = {}
    for part, config in run.from_outside.items():
        match config:
            case TargetModelConfig() | TargetDataConfig():
                asked[_key_of_facts(config, sources)] = part, to_plain(_without_facts(part, to_plain(config)))
            case TargetConfig():
                asked[_optimizer_key(run, sources)] = part, run.to_dict()
            case TargetScheduleConfig():
                steps = run.num_steps, run.warmup_steps
                asked[_key(part, config.targets, config.arguments, steps, _hashes(config, sources))] = (
                    part,
                    run.to_dict(),
                )
            case TargetOuterConfig() | TargetCompressionConfig():
                values = {name: value for name, value in to_plain(config).items() if name not in _NOT_TRIED}
                asked[_key(part, values, _hashes(config, sources))] = part, to_plain(config)
            case _:
                raise AssertionError(part)
    return asked


_NOT_TRIED = ("lr", "label", "version", "error_feedback", "exact_embeddings", "exchange")
"""Settings of parts that make no difference to a trial."""


def _hashes(config: FromOutside, sources: Mapping[str, Source]) -> dict[str, str]:
    return {package: sources[package].hash for package in map(_package, config.targets)}


def _without_facts(part: str, values: Mapping[str, Any]) -> TargetModelConfig | TargetDataConfig:
    cls = {"model": TargetModelConfig, "data": TargetDataConfig}[part]
    known = {key: value for key, value in values.items() if key not in ("facts", "content_hash")}
    config: TargetModelConfig | TargetDataConfig = from_plain(cls, known, {}, part)
    return config


def _key_of_facts(config: TargetModelConfig | TargetDataConfig, sources: Mapping[str, Source]) -> str:
    part = "model" if isinstance(config, TargetModelConfig) else "data"
    values = {key: value for key, value in to_plain(config).items() if key not in _NOT_IN_FACTS[part]}
    return _key(part, values, _hashes(config, sources))


_NOT_IN_FACTS = {
    "model": ("label", "version", "flops_per_token", "facts"),
    "data": ("label", "validation_tokens", "content_hash", "facts"),
}
"""Settings that make no difference to what is found. The version of data does: a function may read files, which are in
no hash of its code."""


def _optimizer_key(run: RunConfig, sources: Mapping[str, Source]) -> str:
    """Rates are not in it."""
    inner = run.inner_optimizer
    assert isinstance(inner, TargetConfig)
    model = _key_of_facts(run.model, sources) if isinstance(run.model, TargetModelConfig) else None
    own = _hashes(inner, sources)
    decays = run.weight_decay != 0
    # Patterns may name layers.
    layers = run.model.num_layers if isinstance(inner.applies_to, dict) and model is None else None
    return _key(
        inner.targets, inner.arguments, inner.rest, inner.applies_to, own, decays, run.method.name, model, layers
    )


def _key(*values: Any) -> str:
    text = json.dumps([*values, *_versions(), _GENERATION], sort_keys=True, default=str)
    return hashlib.sha256(text.encode()).hexdigest()[:24]


def _together(answers: Sequence[Answer]) -> Answer:
    """Of what takes part in one run: it takes sharded parameters where all of it does."""
    return next((answer for answer in answers if not answer.takes_dtensors), _NO_ANSWER)


def _cache_file(key: str) -> Path:
    base = os.environ.get("XDG_CACHE_HOME") or Path("~/.cache").expanduser()
    return Path(base) / "muloco" / "targets" / f"{key}.json"


def _read_answer(key: str) -> Answer | None:
    with contextlib.suppress(OSError, ValueError, TypeError):
        answer = Answer(**json.loads(_cache_file(key).read_text()))
        return None if answer.problem else answer
    return None


def _answers(questions: Mapping[str, Question], sources: Mapping[str, Source]) -> dict[str, Answer]:
    """Answers by key: those that are kept, and those to what is tried now."""
    answers = {key: answer for key in questions if (answer := _read_answer(key)) is not None}
    new = {key: question for key, question in questions.items() if key not in answers}
    if not new:
        return answers
    with tempfile.TemporaryDirectory(prefix="muloco-trial-") as place:
        copies = {
            package: source if source.installed else replace(source, folder=_keep(source, Path(place)))
            for package, source in sources.items()
        }
        found = _try(new, _folders(copies), _folders(sources))
    return answers | {key: replace(answer, problem=_in_words(answer.problem, sources)) for key, answer in found.items()}


def _in_words(problem: str, sources: Mapping[str, Source]) -> str:
    """A trial's problem, and what to do where it is that something beside a package was not copied with it."""
    missing = _NO_MODULE.search(problem)
    if missing is None:
        return problem
    for source in sources.values():
        if not source.installed and _files(source.folder, name := _package(missing[1])):
            return (
                f"{problem}: {name} lies beside {source.package}, and jobs import a copy of {source.package} alone: "
                f"move it into a package {source.package}, so that its code is recorded with every run, or install it"
            )
    return problem


_NO_MODULE = re.compile(r"No module named '([\w.]+)'")


def _try(questions: Mapping[str, Question], folders: Sequence[str], left_out: Sequence[str] = ()) -> dict[str, Answer]:
    """Try what is asked in one process that loads torch, and imports from `folders` and not from those `left_out`."""
    parts = " and ".join(sorted({part for part, _ in questions.values()}))
    print(f"trying {len(questions)} target(s) from outside ({parts}), once", file=sys.stderr, flush=True)
    # The same roots as this process, and not the folder it was started in.
    kept_out = {str(source) for source in left_out}
    here = [place for place in _path_without_copies() if place and str(Path(place).resolve()) not in kept_out]
    with tempfile.TemporaryDirectory(prefix="muloco-answers-") as place:
        file = Path(place) / "answers.json"
        try:
            done = subprocess.run(
                python_command("muloco_runner.trials"),
                input=json.dumps({"path": list(folders), "questions": questions, "answers": str(file)}),
                capture_output=True, text=True, timeout=_TRY_SECONDS * len(questions), check=False,
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
