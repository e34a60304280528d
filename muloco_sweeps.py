"""The door to this project's programs: its packages are its own, whatever else on Python's path bears their names.

    python -P -m muloco_sweeps MODULE ARGUMENT...    runs a module of the project, as `python_command` writes it

The console scripts start here, and so does every Python that the project starts itself. -P keeps the folder where it
happens to be started off the path; folders that the user lists (PYTHONPATH, those beside conf/, an application's own)
stay on it. Standard library only; bears the distribution's name, which nobody else's module has.
"""

from __future__ import annotations

import contextlib
import importlib
import importlib.util
import os
import runpy
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from importlib.machinery import ModuleSpec, PathFinder
from pathlib import Path
from types import ModuleType
from typing import Any, NoReturn

ROOT = Path(__file__).resolve().parent
"""What holds the packages: a working tree, site-packages, or a copy of the code that jobs run."""
_RUNNING = ("muloco_runner", "sweeps")
"""The packages that every program but the report loads: `analysis` may be the user's own in all others."""
_MARK = b'DISTRIBUTION = "muloco-sweeps"'
"""Stands in the `__init__.py` of each."""
_MISTAKE = 2
PYTHON = [sys.executable, "-P"]
"""Imports nothing from the folder where it happens to be started."""


class NameTaken(RuntimeError):
    """Another package stands where one of the project's own should be."""


def python_command(module: str) -> list[str]:
    """Return the command that runs a module of this project."""
    return [*PYTHON, "-m", "muloco_sweeps", module]


@contextlib.contextmanager
def environment_variable(name: str, value: str) -> Iterator[None]:
    """Set it within, for the processes that are started there and what reads it there; then as it was before."""
    before = os.environ.get(name)
    os.environ[name] = value
    try:
        yield
    finally:
        if before is None:
            os.environ.pop(name, None)
        else:
            os.environ[name] = before


def loads_at_first_use(package: str, offered: Mapping[str, str]) -> Callable[[str], Any]:
    """Return the `__getattr__` of a package that offers names of its modules and loads none before one is asked for.

    `offered`: of each name its module.
    """

    def get(name: str) -> Any:
        if name not in offered:
            raise AttributeError(f"module {package!r} has no attribute {name!r}")
        return getattr(importlib.import_module(offered[name]), name)

    return get


def claim_names(names: Iterable[str] = _RUNNING, error: type[Exception] = NameTaken) -> None:
    """Make these names mean this project's packages in this process from now on.

    A package of that name elsewhere on the path, such as a folder of the user's own, stays where it is, unused. One
    that is loaded already, and one that another distribution has installed over ours, raise `error`.
    """
    names = list(names)
    for name in names:
        ours = ROOT / name / "__init__.py"
        if not ours.is_file() or _MARK not in ours.read_bytes():
            raise error(_overwritten(name, ours))
        loaded = sys.modules.get(name)
        if loaded is not None and _file_of(loaded) != str(ours):
            raise error(
                f"{name} is {_file_of(loaded)} in this process, not that of muloco-sweeps ({ours}): rename the other, "
                "two packages of one name cannot be loaded at once"
            )
    found = [name for name in names if name not in sys.modules and _origin(name) != str(ROOT / name / "__init__.py")]
    if found:
        sys.meta_path.insert(0, _Ours(found))


class _Ours:
    """Finds those of the project's packages that the path would find elsewhere."""

    def __init__(self, names: Sequence[str]) -> None:
        self.names = frozenset(names)

    def find_spec(self, name: str, path: object = None, target: ModuleType | None = None) -> ModuleSpec | None:
        return PathFinder.find_spec(name, [str(ROOT)]) if name in self.names else None


def _origin(name: str) -> str | None:
    spec = importlib.util.find_spec(name)
    return None if spec is None or spec.origin is None else os.path.realpath(spec.origin)


def _file_of(module: ModuleType) -> str:
    file = getattr(module, "__file__", None)
    return os.path.realpath(file) if file else f"a folder without __init__.py ({', '.join(module.__path__)})"


def _overwritten(name: str, ours: Path) -> str:
    owner = next((f"{found} has installed it" for found in _owners(name)), "another package's, or edited")
    return (
        f"{ours} is not that of muloco-sweeps ({owner}): install the two in environments of their own, or reinstall "
        "muloco-sweeps last"
    )


def _owners(name: str) -> list[str]:
    from importlib import metadata

    file = f"{name}/__init__.py"
    return sorted(
        found.metadata["Name"]
        for found in metadata.distributions()
        if found.metadata["Name"] != "muloco-sweeps" and any(str(path) == file for path in found.files or ())
    )


def _program(module: str, names: Sequence[str] = _RUNNING) -> None:
    """A console script: runs the module's `main`, without the script's own folder on the path."""
    if not sys.flags.safe_path and sys.path and sys.path[0] == os.path.dirname(os.path.realpath(sys.argv[0])):
        del sys.path[0]
    _claim_or_exit(names)
    importlib.import_module(module).main()


def _claim_or_exit(names: Iterable[str]) -> None:
    try:
        claim_names(names)
    except NameTaken as error:
        print(f"{Path(sys.argv[0]).name}: {error}", file=sys.stderr)
        sys.exit(_MISTAKE)


def train() -> None:
    """`muloco-train`."""
    _program("muloco_runner.__main__")


def data() -> None:
    """`muloco-data`."""
    _program("muloco_runner.data.command")


def sweep() -> None:
    """`muloco-sweep`."""
    _program("sweeps.__main__")


def model() -> None:
    """`muloco-model`."""
    _program("muloco_runner.inference.command")


def report() -> None:
    """`muloco-report`."""
    _program("analysis.__main__", ("muloco_runner", "analysis"))


def main() -> NoReturn:
    """`python -m muloco_sweeps MODULE ARGUMENT...`: the module as a program of its own."""
    del sys.argv[0]
    _claim_or_exit(dict.fromkeys([*_RUNNING, sys.argv[0].partition(".")[0]]))
    runpy.run_module(sys.argv[0], run_name="__main__", alter_sys=True)
    sys.exit(0)


if __name__ == "__main__":
    main()
