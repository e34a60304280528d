"""The application's script as the `__main__` of its jobs.

A job runs the script again, up to where it hands its function to Hydra: there the driver stood when it launched the
multirun. So classes, locks, open files and settings of the script are there under their names, in pools too, and
nothing of the script needs to be pickled. Without a script (a notebook, `python -c`) objects travel by value.
"""

from __future__ import annotations

import contextlib
import functools
import importlib
import importlib.util
import sys
import types
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hydra._internal.hydra import Hydra

from sweeps.hydra_apps.sources import Sources


@dataclass(frozen=True)
class MainScript:
    """The script of the driver."""

    file: str
    """Absolute path."""
    module: str | None
    """Where it was started by `python -m MODULE`."""
    arguments: list[str]
    """`sys.argv`."""

    def to_dict(self) -> dict[str, Any]:
        return dict(vars(self))


def driver_script() -> MainScript | None:
    """Return the script that this process runs; None where there is no file to run again."""
    main = sys.modules["__main__"]
    file = getattr(main, "__file__", None)
    if file is None or not Path(file).is_file() or hasattr(sys, "ps1"):
        return None
    spec = getattr(main, "__spec__", None)
    return MainScript(str(Path(file).absolute()), spec.name if spec is not None else None, list(sys.argv))


class _HandsOver(BaseException):
    """The script has come to where it calls Hydra. No `except Exception` of the script may stop it."""


def load(script: MainScript, sources: Sources) -> None:
    """Make the script this process's `__main__`, as far as it ran in the driver before it called Hydra.

    What it imports must be found by now.
    """
    main = types.ModuleType("__main__")
    main.__file__ = script.file
    main.__dict__["__builtins__"] = __builtins__
    if script.module is not None:
        main.__spec__ = importlib.util.find_spec(script.module)
        main.__package__ = script.module.rpartition(".")[0]
    else:
        main.__package__ = ""
    # Its functions may still be running.
    sys.modules["__main__of_job__"], sys.modules["__main__"] = sys.modules["__main__"], main
    sys.argv[:] = script.arguments
    text = sources.get(script.file)
    code = compile(Path(script.file).read_bytes() if text is None else text, script.file, "exec", dont_inherit=True)
    with contextlib.suppress(_HandsOver), _hydra_disarmed():
        exec(code, main.__dict__)


@contextlib.contextmanager
def _hydra_disarmed() -> Iterator[None]:
    def hand_over(*_: Any, **__: Any) -> None:
        raise _HandsOver

    # The module; `hydra.main` is the function.
    places: list[tuple[Any, str]] = [
        (importlib.import_module("hydra.main"), "_run_hydra"),
        (Hydra, "run"),
        (Hydra, "multirun"),
    ]
    armed = [(place, name, getattr(place, name)) for place, name in places]
    try:
        for place, name in places:
            setattr(place, name, hand_over)
        yield
    finally:
        for place, name, before in armed:
            setattr(place, name, before)


def lives_in_script(task: object) -> bool:
    """Return whether a task function has a name in the script, so that a job finds it there."""
    while isinstance(task, functools.partial):
        task = task.func
    if not isinstance(task, types.FunctionType | type):
        task = type(getattr(task, "__self__", task))
    return driver_script() is not None and (reference_to(task) or ("",))[0] == "__main__"


def reference_to(found: object) -> tuple[str, str] | None:
    """Return module and attribute path of a function or class that a module knows by a name; None without such.

    `hydra.main` puts a decorator around the function that it is given: the name then means the decorator.
    """
    module = getattr(found, "__module__", None)
    own = sys.modules.get(module) if isinstance(module, str) else None
    if own is None:
        return None
    qualname = getattr(found, "__qualname__", "")
    for name in [qualname] if _named(own, qualname) is not None else list(vars(own)):
        path, layer = name, _named(own, name)
        while callable(layer):
            if layer is found:
                return str(module), path
            path, layer = f"{path}.__wrapped__", getattr(layer, "__wrapped__", None)
    return None


def _named(module: types.ModuleType, qualname: str) -> Any:
    found: Any = module
    for part in qualname.split("."):
        found = getattr(found, part, None)
    return found
