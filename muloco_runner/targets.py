"""Code from outside the package that a run names by `_target_`: where it is, what is in it, and what runs it made.

Without torch, and nothing of it is imported here. What a target does is tried in a process of its own
(`muloco_runner.optimizers.try_target`), once for each state of its code and its arguments; a file under
$XDG_CACHE_HOME/muloco/targets (~/.cache) keeps the answers.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import subprocess
import sys
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from importlib import metadata
from pathlib import Path
from typing import Any

from muloco_runner.config import ConfigError, RunConfig, TargetConfig
from muloco_runner.paths import config_path
from muloco_runner.record import RunFolder, write_atomically, write_folder
from muloco_sweeps import python_command

_TRY_SECONDS = 300.0


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


def targets_of(run: RunConfig) -> list[str]:
    """The classes from outside that a run names."""
    return run.inner_optimizer.targets if isinstance(run.inner_optimizer, TargetConfig) else []


def find_source(target: str) -> Source:
    """The source of a target: on Python's path, or beside a config folder of the user's. One that is nowhere raises
    `ConfigError`."""
    package = _package(target)
    if package == "torch":
        # Thousands of files, and its version is recorded with every run.
        return Source(package, Path(), package, installed=True)
    beside = [folder.parent for folder in config_path().folders]
    for folder in [*(Path(place or ".").resolve() for place in sys.path), *beside]:
        files = _files(folder, package)
        if files:
            return Source(package, folder, _hash(folder, files), "site-packages" in folder.parts)
    raise ConfigError(
        f"inner_optimizer._target_={target}: there is no package or module {package} on Python's path"
        + (f" or in {', '.join(map(str, beside))}" if beside else "")
        + ": install it, put it beside conf/, or name its folder in PYTHONPATH"
    )


def check_targets(runs: Sequence[RunConfig], root: Path, same_code: bool) -> dict[str, Answer]:
    """Try what is new among the runs' targets, and compare their code with that which trained runs of `root` had.

    Returns what was found out, by run id, of the runs with targets. What cannot be used, and code that has changed
    under the same version where `same_code` is not said, raises `ConfigError`.
    """
    concerned = [run for run in runs if targets_of(run)]
    if not concerned:
        return {}
    sources = _sources(concerned)
    if not same_code:
        _refuse_changed(concerned, root, sources)
    keys = {run.run_id: _trial_key(run, sources) for run in concerned}
    of_key = dict(zip(keys.values(), concerned, strict=True))
    answers = {key: answer for key in of_key if (answer := _read_answer(key)) is not None}
    new = {key: run for key, run in of_key.items() if key not in answers}
    if new:
        answers |= _try(new)
    for key, run in of_key.items():
        if problem := answers[key].problem:
            raise ConfigError(f"inner_optimizer._target_={targets_of(run)[0]}: {problem}")
    return {name: answers[key] for name, key in keys.items()}


def record_code(runs: Sequence[RunConfig], root: Path, snapshot: bool) -> None:
    """Write beside each run with targets which code they are; with `snapshot`, also keep a copy under `root` from which
    its jobs import."""
    concerned = [run for run in runs if targets_of(run)]
    sources = _sources(concerned)
    folders = {
        package: str(_keep(source, root) if snapshot else source.folder)
        for package, source in sources.items()
        if not source.installed
    }
    for run in concerned:
        packages, answer = _packages(run), _read_answer(_trial_key(run, sources))
        values: dict[str, Any] = {
            "targets": targets_of(run),
            "hashes": {package: sources[package].hash for package in packages},
            "folders": [folders[package] for package in packages if package in folders],
            "takes_dtensors": None if answer is None else answer.takes_dtensors,
        }
        folder = RunFolder.of(root, run.run_id)
        before = _recorded(folder)
        if before is not None:
            earlier = before.pop("earlier", [])
            # Its first attempts may have trained with other code, which was said to be the same.
            values["earlier"] = earlier if before["hashes"] == values["hashes"] else [*earlier, before]
        write_atomically(_code_file(folder), json.dumps(values, indent=1) + "\n")


def make_importable(run: RunConfig, folder: RunFolder) -> None:
    """Let this process import the run's targets: from the kept copy where its launch made one, else from where they
    are now."""
    if not targets_of(run):
        return
    recorded = _recorded(folder)
    folders = recorded["folders"] if recorded is not None else []
    if recorded is None:
        folders = _own_folders([run])
    sys.path[:0] = [place for place in folders if place not in sys.path]


def refuse_sharded(run: RunConfig, folder: RunFolder) -> None:
    """Raise `ConfigError` for sharded parameters where the run's target was not found to take them: it could come to
    other weights than on one rank without a word."""
    recorded = _recorded(folder) if targets_of(run) else None
    if recorded is not None and not recorded.get("takes_dtensors"):
        raise ConfigError(
            f"{run.inner_optimizer.label} was not found to take parameters that are sharded over ranks (FSDP2): say "
            "execution.sharding=none, or use as few ranks as workers"
        )


def _files(folder: Path, package: str) -> list[Path]:
    if (folder / package).is_dir():
        found = sorted(p for p in (folder / package).rglob("*.py") if "__pycache__" not in p.parts)
        if found:
            return found
    module = folder / f"{package}.py"
    return [module] if module.is_file() else []


def _hash(folder: Path, files: Sequence[Path]) -> str:
    digest = hashlib.sha256()
    for file in files:
        content = file.read_bytes()
        digest.update(f"{file.relative_to(folder).as_posix()} {len(content)}\n".encode() + content)
    return digest.hexdigest()[:16]


def _package(target: str) -> str:
    return target.partition(".")[0]


def _packages(run: RunConfig) -> list[str]:
    return list(dict.fromkeys(map(_package, targets_of(run))))


def _sources(runs: Iterable[RunConfig]) -> dict[str, Source]:
    """The sources of all targets by package, each read once."""
    targets = {_package(target): target for run in runs for target in targets_of(run)}
    return {package: find_source(target) for package, target in targets.items()}


def _own_folders(runs: Iterable[RunConfig]) -> list[str]:
    """Folders to import from, as they are now; installed packages are found without."""
    return [str(source.folder) for source in _sources(runs).values() if not source.installed]


def _refuse_changed(runs: Sequence[RunConfig], root: Path, sources: Mapping[str, Source]) -> None:
    changed: dict[str, list[str]] = {}
    for run in runs:
        for package, before in (_recorded(RunFolder.of(root, run.run_id)) or {"hashes": {}})["hashes"].items():
            if package in sources and sources[package].hash != before:
                changed.setdefault(package, []).append(run.run_id)
    for package, names in changed.items():
        shown = ", ".join(names[:8]) + (f" and {len(names) - 8} more" if len(names) > 8 else "")
        raise ConfigError(
            f"the code of {package} has changed since {len(names)} of these runs were begun ({shown}), under the same "
            "inner_optimizer.version: set another version, which makes new runs, or say --same-code if the change "
            "makes no difference"
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
    """A copy of the package's Python files under `root`."""
    copy = root.resolve() / "code" / f"{source.package}-{source.hash}"
    if not copy.exists():
        write_folder(copy, {str(file.relative_to(source.folder)): file.read_bytes() for file in source.files()})
    return copy


@cache
def _versions() -> tuple[str, str]:
    return metadata.version("torch"), metadata.version("muloco-sweeps")


def _trial_key(run: RunConfig, sources: Mapping[str, Source]) -> str:
    """The same for what cannot turn out otherwise: rates are not in it."""
    inner = run.inner_optimizer
    assert isinstance(inner, TargetConfig)
    own = {package: sources[package].hash for package in _packages(run)}
    values = [
        inner.targets, inner.arguments, inner.rest, inner.applies_to, own, run.weight_decay != 0, run.method.name,
        *_versions(),
    ]  # fmt: skip
    return hashlib.sha256(json.dumps(values, sort_keys=True, default=str).encode()).hexdigest()[:24]


def _cache_file(key: str) -> Path:
    base = os.environ.get("XDG_CACHE_HOME") or Path("~/.cache").expanduser()
    return Path(base) / "muloco" / "targets" / f"{key}.json"


def _read_answer(key: str) -> Answer | None:
    with contextlib.suppress(OSError, ValueError, TypeError):
        return Answer(**json.loads(_cache_file(key).read_text()))
    return None


def _try(runs: dict[str, RunConfig]) -> dict[str, Answer]:
    """Try the targets of these runs in one process that loads torch."""
    words = {"path": _own_folders(runs.values()), "runs": {key: run.to_dict() for key, run in runs.items()}}
    print(f"trying {len(runs)} optimizer(s) from outside, once", file=sys.stderr, flush=True)
    # The same roots as this process, and not the folder it was started in.
    here = [place for place in sys.path if place]
    try:
        done = subprocess.run(
            python_command("muloco_runner.optimizers.try_target"),
            input=json.dumps(words), capture_output=True, text=True, timeout=_TRY_SECONDS, check=False,
            env={**os.environ, "PYTHONPATH": os.pathsep.join(here), "CUDA_VISIBLE_DEVICES": "", "OMP_NUM_THREADS": "1"},
        )  # fmt: skip
        found = {key: Answer(**values) for key, values in json.loads(done.stdout.splitlines()[-1]).items()}
    except subprocess.TimeoutExpired:
        raise ConfigError(f"inner_optimizer._target_: one step took more than {_TRY_SECONDS:g} s: it hangs") from None
    except (IndexError, ValueError, TypeError):
        last = " ".join(done.stderr.strip().splitlines()[-1:]) or f"exit code {done.returncode}"
        raise ConfigError(f"inner_optimizer._target_: trying it ended without an answer: {last}") from None
    for key, answer in found.items():
        with contextlib.suppress(OSError):
            _cache_file(key).parent.mkdir(parents=True, exist_ok=True)
            write_atomically(_cache_file(key), json.dumps(answer.__dict__) + "\n")
    return found
