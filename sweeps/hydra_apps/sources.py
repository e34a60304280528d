"""The application's own source files, kept as they were when its multirun was launched.

A job that waits in a queue runs that text, whatever becomes of the files. Modules keep their paths, so that data beside
them is found; processes that a job starts anew (multiprocessing's spawn) read the files as they are.
"""

from __future__ import annotations

import functools
import importlib.abc
import importlib.util
import sys
import sysconfig
from collections.abc import Iterator, Mapping, Sequence
from importlib.machinery import ModuleSpec, SourceFileLoader
from pathlib import Path
from types import CodeType, ModuleType
from typing import Any

from sweeps.node.code_snapshot import HERE

Sources = Mapping[str, bytes]
"""Text by absolute path."""
MOST_BYTES = 50_000_000
"""Beyond this, files that were not loaded when the multirun was launched are read as they are later."""


def application_sources(script: str | None) -> dict[str, bytes]:
    """Return the source of all loaded modules that are not installed, of their packages, and beside the script."""
    found: dict[str, bytes] = {}
    size = 0
    for path in _files(script):
        if str(path) not in found and path.is_file():
            found[str(path)] = path.read_bytes()
            size += len(found[str(path)])
            if size > MOST_BYTES:
                break
    return found


def _files(script: str | None) -> Iterator[Path]:
    """Files without which the jobs cannot run come first."""
    if script is not None:
        yield Path(script)
    modules = [module for module in list(sys.modules.values()) if is_own(_origin(module))]
    for module in modules:
        yield Path(_origin(module))
    for folder in sorted({Path(place) for module in modules for place in _package_folders(module)}):
        yield from sorted(folder.rglob("*.py"))
    if script is not None and is_own(script):
        yield from sorted(Path(script).parent.glob("*.py"))


def _origin(module: ModuleType) -> str:
    # Some libraries put objects into sys.modules that answer every question with another such object.
    origin = getattr(getattr(module, "__spec__", None), "origin", None)
    return origin if isinstance(origin, str) else ""


def _package_folders(module: ModuleType) -> list[str]:
    name = getattr(module, "__name__", None)
    top = sys.modules.get(name.partition(".")[0]) if isinstance(name, str) else None
    return [str(place) for place in getattr(top, "__path__", ())] if top is not None and is_own(_origin(top)) else []


def is_own(path: str) -> bool:
    """Return whether the file belongs to the application: not to Python, an environment, or this project."""
    if not path.endswith(".py"):
        return False
    parts = Path(path).parts
    elsewhere = any(Path(path).is_relative_to(folder) for folder in _installed())
    ours = any(Path(path).is_relative_to(HERE / part) for part in ("muloco_runner", "sweeps", "analysis"))
    return not (elsewhere or ours or "site-packages" in parts or "dist-packages" in parts)


@functools.cache
def _installed() -> frozenset[str]:
    """Return the folders of Python and its environment, which take longer to ask for than a file to look at."""
    return frozenset(sysconfig.get_path(name) for name in ("stdlib", "platstdlib", "purelib", "platlib", "scripts"))


class SourceFinder(importlib.abc.MetaPathFinder):
    """Imports modules from the kept text, under the paths that they had."""

    def __init__(self, sources: Sources) -> None:
        self.sources = sources

    def find_spec(
        self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        tail = fullname.rpartition(".")[2]
        for place in sys.path if path is None else path:
            folder = Path(place or ".").absolute() / tail
            for file, inner in ((folder / "__init__.py", [str(folder)]), (folder.with_suffix(".py"), None)):
                if str(file) in self.sources:
                    loader = _Loader(fullname, str(file), self.sources)
                    return importlib.util.spec_from_file_location(
                        fullname, file, loader=loader, submodule_search_locations=inner
                    )
        return None


class _Loader(SourceFileLoader):
    def __init__(self, name: str, path: str, sources: Sources) -> None:
        super().__init__(name, path)
        self.sources = sources

    def get_data(self, path: Any) -> bytes:
        kept = self.sources.get(str(path))
        return super().get_data(path) if kept is None else kept

    def path_stats(self, path: Any) -> Mapping[str, Any]:
        # Compiled files beside the source may be of another text.
        raise OSError

    def source_to_code(self, data: Any, path: Any, **options: Any) -> CodeType:  # type: ignore[override]
        code: CodeType = compile(data, path, "exec", dont_inherit=True)
        return code
