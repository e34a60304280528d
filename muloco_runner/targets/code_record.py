"""Which code of its targets a run was trained with: written beside the run, and imported by whatever loads it."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from muloco_runner.config import ConfigError, RunConfig
from muloco_runner.record import RunFolder, write_atomically
from muloco_runner.targets.answers import read_answer, together
from muloco_runner.targets.questions import questions_of
from muloco_runner.targets.source_code import (
    Source,
    content_hash,
    files_of,
    find_source,
    import_from,
    keep_copy,
    package_of,
    source_in,
    sources_of,
)


def record_code(runs: Sequence[RunConfig], root: Path, snapshot: bool) -> None:
    """Write beside each run with targets which code they are; with `snapshot`, also keep a copy under `root` from which
    its jobs import."""
    concerned = [run for run in runs if run.targets]
    sources = sources_of(concerned)
    folders = {
        package: str(keep_copy(source, root) if snapshot else source.folder)
        for package, source in sources.items()
        if not source.installed
    }
    for run in concerned:
        packages, answers = _packages(run), [read_answer(key) for key in questions_of(run, sources)]
        known = [answer for answer in answers if answer is not None]
        values: dict[str, Any] = {
            "targets": [target for targets in run.targets.values() for target in targets],
            "hashes": {package: sources[package].hash for package in packages},
            "all_files": True,
            "folders": [folders[package] for package in packages if package in folders],
            "takes_dtensors": together(known).takes_dtensors if len(known) == len(answers) else None,
        }
        folder = RunFolder.of(root, run.run_id)
        before = recorded_code(folder)
        if before is not None:
            earlier = before.pop("earlier", [])
            # Its first attempts may have trained with other code, which was said to be the same.
            is_same = all(recorded_hash(sources[package], before) == one for package, one in before["hashes"].items())
            values["earlier"] = earlier if is_same else [*earlier, before]
        write_atomically(_code_file(folder), json.dumps(values, indent=1) + "\n")


def hand_on_code(parent: RunFolder, child: RunFolder) -> None:
    """Have a run that goes on from another one's checkpoint use the code that this one was trained with."""
    if (recorded := recorded_code(parent)) is not None:
        write_atomically(_code_file(child), json.dumps(recorded, indent=1) + "\n")


def make_importable(run: RunConfig, folder: RunFolder | None) -> None:
    """Let this process import the run's targets: from the kept copy where its launch made one, else from where they
    are now. Code other than what `folder` records raises `ConfigError`; None for a run that records it yet."""
    if not run.targets:
        return
    recorded = recorded_code(folder) if folder is not None else None
    if folder is None or recorded is None:
        sources = sources_of([run])
    else:
        names = {package_of(target): (target, part) for part, targets in run.targets.items() for target in targets}
        sources = {
            package: _recorded_source(package, target, part, recorded, folder)
            for package, (target, part) in names.items()
        }
    import_from(sources)


def _recorded_source(package: str, target: str, part: str, recorded: Mapping[str, Any], folder: RunFolder) -> Source:
    """The package as a run of that record was trained with it; where there is only another one, raises
    `ConfigError`."""
    expected = recorded["hashes"].get(package)
    for place in map(Path, recorded["folders"]):
        if files_of(place, package):
            source = source_in(place, package)
            if expected is None or recorded_hash(source, recorded) == expected:
                return source
    source = find_source(target, part)
    if expected is not None and recorded_hash(source, recorded) != expected:
        raise ConfigError(
            f"{folder.path} was trained with other code of {package} than {source.folder} holds now: put it back, or "
            f"set another {part}.version, which makes a new run"
        )
    return source


def refuse_sharded(run: RunConfig, folder: RunFolder) -> None:
    """Raise `ConfigError` for sharded parameters where the run's target was not found to take them: it could come to
    other weights than on one rank without a word."""
    recorded = recorded_code(folder) if run.targets else None
    if recorded is not None and not recorded.get("takes_dtensors"):
        raise ConfigError(
            f"{' with '.join(t[0] for t in run.targets.values())} was not found to take parameters that are sharded "
            "over ranks (FSDP2): say execution.sharding=none, or use as few ranks as workers"
        )


def recorded_code(folder: RunFolder) -> dict[str, Any] | None:
    try:
        values: dict[str, Any] = json.loads(_code_file(folder).read_text())
    except FileNotFoundError:
        return None
    except ValueError:
        raise ConfigError(f"{_code_file(folder)} is damaged: remove it and launch again") from None
    return values


def recorded_hash(source: Source, recorded: Mapping[str, Any]) -> str:
    """The source's hash as that record has it: an earlier version looked at Python's files alone."""
    if source.package == "torch" or recorded.get("all_files"):
        return source.hash
    return content_hash(source.folder, [file for file in source.files() if file.suffix == ".py"])


def _code_file(folder: RunFolder) -> Path:
    return folder.path / "target_code.json"


def _packages(run: RunConfig) -> list[str]:
    return list(dict.fromkeys(package_of(target) for targets in run.targets.values() for target in targets))
