"""The application's script as the `__main__` of its jobs.

A job runs the script again up to where it hands its function to Hydra: there the driver stood when it launched the
multirun, and there the job does its work and ends. So classes, locks, open files, settings and contexts of the script
are there, in pools too, and nothing of it needs to be pickled. Without a script (a notebook, `python -c`) objects
travel by value.
"""

from __future__ import annotations

import functools
import importlib
import importlib.util
import sys
import types
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hydra._internal.hydra import Hydra
from hydra.types import TaskFunction

from sweeps.hydra_apps.sources import Sources, is_own

Name = tuple[str, str]
"""Module and qualified name."""


@dataclass(frozen=True)
class MainScript:
    """The script of the driver."""

    file: str
    """Absolute path."""
    module: str | None
    """Where it was started by `python -m MODULE`."""
    arguments: list[str]
    """`sys.argv` as it was at the start."""
    arguments_then: list[str]
    """`sys.argv` when it called Hydra: some scripts take theirs out before."""

    def to_dict(self) -> dict[str, Any]:
        return dict(vars(self))


def driver_script() -> MainScript | None:
    """Return the script that this process runs; None where there is no file to run again."""
    main = sys.modules["__main__"]
    file = getattr(main, "__file__", None)
    if file is None or not Path(file).is_file() or hasattr(sys, "ps1"):
        return None
    spec = getattr(main, "__spec__", None)
    path, module = str(Path(file).absolute()), spec.name if spec is not None else None
    return MainScript(path, module, _arguments(path, module), list(sys.argv))


def _arguments(file: str, module: str | None) -> list[str]:
    """Return `sys.argv` as Python made it of the command line."""
    for position, word in enumerate(sys.orig_argv):
        if module is not None and word == "-m":
            return [file, *sys.orig_argv[position + 2 :]]
        if module is None and position and Path(word).name == Path(file).name and Path(word).suffix != "":
            return sys.orig_argv[position:]
    return list(sys.argv)


def run_as_main(script: MainScript, sources: Sources, name: Name, work: Callable[[TaskFunction], None]) -> None:
    """Run the script as this process's `__main__`; where it calls Hydra with the task function of that name, give that
    to `work`, which ends the process: nothing of the script behind that call is run.

    What the script imports must be found by now. One that does not come to the call is a `RuntimeError`.
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

    def called(*arguments: Any, **named: Any) -> None:
        """Another call than the one that is meant has had its turn in the driver."""
        for given in (*arguments, *named.values()):
            if callable(given) and name_of(given) == name and sys.argv == script.arguments_then:
                restore()
                work(given)

    # The module; `hydra.main` is the function.
    places: list[tuple[Any, str]] = [
        (importlib.import_module("hydra.main"), "_run_hydra"),
        (Hydra, "run"),
        (Hydra, "multirun"),
    ]
    armed = [(place, attribute, getattr(place, attribute)) for place, attribute in places]

    def restore() -> None:
        for place, attribute, before in armed:
            setattr(place, attribute, before)

    for place, attribute in places:
        setattr(place, attribute, called)
    try:
        exec(code, main.__dict__)
    finally:
        restore()
    raise RuntimeError(
        f"{script.file} did not come to its call of Hydra in the job, with the arguments {script.arguments}: what "
        "stands before that call must do the same each time"
    )


def name_of(task: object) -> Name:
    """Return module and qualified name of a task function, of the function in a partial one, of a callable's class."""
    while isinstance(task, functools.partial):
        task = task.func
    if not isinstance(task, types.FunctionType | type):
        task = getattr(task, "__func__", type(task))
    return str(getattr(task, "__module__", "")), str(getattr(task, "__qualname__", ""))


def lives_in_script(task: object) -> bool:
    """Return whether jobs are to run the script again, where they find the task function by its name.

    A script that is installed, such as a test runner, is no application's.
    """
    script = driver_script()
    return script is not None and is_own(script.file) and name_of(task)[0] in sys.modules


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
