"""The code of targets: the files of their top packages, where these are, and the copies that a process imports instead.

Nothing of it is imported here.
"""

from __future__ import annotations

import contextlib
import hashlib
import importlib
import importlib.util
import sys
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from muloco_runner.config import ConfigError, RunConfig
from muloco_runner.paths import config_path
from muloco_runner.record import write_folder


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
        return files_of(self.folder, self.package)


def find_source(target: str, part: str = "inner_optimizer") -> Source:
    """The source of a target: on Python's path, or beside a config folder of the user's. One that is nowhere raises
    `ConfigError`. `part` is that of the run which names it."""
    package = package_of(target)
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
        *(Path(place or ".").resolve() for place in path_without_copies()),
        *beside,
        *_found_by_import(package),
    ]:
        if files_of(folder, package):
            return source_in(folder, package)
    raise ConfigError(
        f"{part}._target_={target}: there is no package or module {package} on Python's path"
        + (f" or in {', '.join(map(str, beside))}" if beside else "")
        + ": install it, put it beside conf/, or name its folder in PYTHONPATH"
    )


def source_in(folder: Path, package: str) -> Source:
    return Source(package, folder, content_hash(folder, files_of(folder, package)), "site-packages" in folder.parts)


def _found_by_import(package: str) -> list[Path]:
    """The folder that holds a package which is on no path, such as one installed to be edited; nothing is imported."""
    with contextlib.suppress(ImportError, ValueError):
        spec = importlib.util.find_spec(package)
        if spec is not None and spec.origin is not None:
            return [Path(spec.origin).resolve().parents[1 if spec.submodule_search_locations else 0]]
    return []


def files_of(folder: Path, package: str) -> list[Path]:
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


def content_hash(folder: Path, files: Sequence[Path]) -> str:
    digest = hashlib.sha256()
    for file in files:
        content = file.read_bytes()
        digest.update(f"{file.relative_to(folder).as_posix()} {len(content)}\n".encode() + content)
    return digest.hexdigest()[:16]


def package_of(target: str) -> str:
    return target.partition(".")[0]


def sources_by_package(targets: Iterable[tuple[str, str]]) -> dict[str, Source]:
    """The sources by package of targets, given with the part of the run that names them, each read once."""
    by_package = {package_of(target): (target, part) for target, part in targets}
    return {package: find_source(target, part) for package, (target, part) in by_package.items()}


def sources_of(runs: Iterable[RunConfig]) -> dict[str, Source]:
    return sources_by_package(
        (target, part) for run in runs for part, targets in run.targets.items() for target in targets
    )


def folders_of(sources: Mapping[str, Source]) -> list[str]:
    """Folders to import from, as they are now; installed packages are found without."""
    return [str(source.folder) for source in sources.values() if not source.installed]


def keep_copy(source: Source, root: Path) -> Path:
    """A copy of the package's files under `root`."""
    copy = root.resolve() / "code" / f"{source.package}-{source.hash}"
    if not copy.exists():
        write_folder(copy, {str(file.relative_to(source.folder)): file.read_bytes() for file in source.files()})
    return copy


def import_from(sources: Mapping[str, Source]) -> None:
    """Have these packages, and no others of their names, imported from now on: modules of one that came from
    elsewhere, or from other content of its files, are forgotten."""
    path = path_without_copies()
    _added_to_path[:] = dict.fromkeys(folders_of(sources))
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


def path_without_copies() -> list[str]:
    """Python's path as it would be had no run been loaded here: a kept copy is not where code is now."""
    path = list(sys.path)
    for place in _added_to_path:
        with contextlib.suppress(ValueError):
            path.remove(place)
    return path


_added_to_path: list[str] = []
"""What `import_from` put before Python's path."""


_imported: dict[str, tuple[str, str]] = {}
"""Folder and hash of what this process imports, by package."""
