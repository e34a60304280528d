"""Any Python function over a quota: `from sweeps import Work, launch`.

    ROOT/sweeps/NAME/           the sweep: `muloco-sweep status ROOT` and all other commands know it
      functions.pkl             folder, import path and source of the driver: what jobs import from
      runs/<work>/result.json   what the function returned

A job imports the function by its name, in the folder and with the import path of the process that launched it, from
the source as it was then. Pickles are read only from the sweep's own folder, which its user alone writes.
"""

from __future__ import annotations

import importlib
import json
import os
import pickle
import re
import sys
import types
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from omegaconf import OmegaConf

from muloco_runner.config import ConfigError
from muloco_runner.paths import files_of, take_config_path, use_config_path
from muloco_runner.record import ExitCode, write_atomically
from sweeps.clusters import make_cluster, read_cluster
from sweeps.controller import Controller
from sweeps.engine.quota import never_runs
from sweeps.engine.sweep_state import SweepState
from sweeps.engine.work import Work
from sweeps.hydra_apps.sources import SourceFinder, application_sources
from sweeps.node.last_words import why_not_done
from sweeps.node.run_attempt import TASK_RANK
from sweeps.progress_lines import Lines
from sweeps.store.definition import Definition
from sweeps.store.folder import SweepFolder
from sweeps.store.lease import LeaseHeld

_RESULT = "result.json"
_SCRIPT = "__mp_main__"
"""Name of a script that is loaded for its functions alone, as multiprocessing has it: its guarded part does not run."""


class WorkFailed(RuntimeError):
    """Work that ended without a result, or was held; all else has been done, and is not repeated."""

    def __init__(self, reasons: Mapping[str, str]) -> None:
        """`reasons`: why, by the work's name."""
        shown = "; ".join(f"{name}: {why}" for name, why in list(reasons.items())[:5])
        super().__init__(f"{len(reasons)} without a result: {shown}")
        self.reasons = dict(reasons)


def launch(
    works: Sequence[Work],
    root: str | os.PathLike[str],
    *,
    name: str = "functions",
    cluster: str | Mapping[str, Any] = "local",
    quota: Mapping[str, float] | None = None,
    progress: Callable[[str], None] = print,
) -> list[Any]:
    """Run all work under a quota and wait for it; what has a result is not run again.

    Args:
        works: Of `Work.calling`.
        root: Folder of the sweep's state and results, which all nodes of the cluster see.
        name: Of the sweep in it; the same name continues.
        cluster: A file of conf/cluster, own ones first as for all commands, or what such a file holds.
        quota: Limits in place of the cluster's own, in each allocation: nodes, gpus, jobs, submitted_jobs, gpu_hours.
        progress: Is given lines of text meanwhile.

    Returns:
        What the functions returned, in the order of the works.

    Raises:
        ConfigError: A mistake, or work that no limit of the cluster will ever allow; nothing was submitted.
        WorkFailed: Some has failed; the same call tries that again.

    May be killed at any instruction: the same call continues. Ctrl-C stops it in order.
    """
    if TASK_RANK in os.environ:
        raise ConfigError('launch was called within a job: guard it with `if __name__ == "__main__":` in a script')
    if re.fullmatch(r"[\w-]+", name, re.ASCII) is None:
        raise ConfigError(f"name={name!r}: a sweep's name is one or more of letters, digits, - and _")
    if not works:
        return []
    folder = SweepFolder(Path(root), name)
    own = {work.name: _placed(work, folder) for work in works}
    config = read_cluster(*_cluster(cluster, quota))
    definition = Definition(name, config.name, config.to_dict(), list(own.values()))
    try:
        controller = Controller(folder, definition, make_cluster)
    except LeaseHeld as error:
        raise ConfigError(str(error)) from None
    try:
        _check(controller)
        _write_program(folder, works)
        folder.write_definition(definition)
        held = [found for found in own if controller.state.runs[found].held is not None]
        if held:
            folder.send("released", runs=held)
    except BaseException:
        controller.lease.release()
        raise
    lines = Lines(progress, folder.cluster_dir)
    return _values(controller.run(lines), works, folder)


def _placed(work: Work, folder: SweepFolder) -> Work:
    if work.folder:
        return work
    program = {"program": str(_program_file(folder).absolute())}
    return replace(
        work, folder=str(folder.path.absolute() / "runs" / work.name), arguments={**work.arguments, **program}
    )


def _cluster(cluster: str | Mapping[str, Any], quota: Mapping[str, float] | None) -> tuple[str, Any]:
    """The name of the cluster and what its file holds, with the quota."""
    if isinstance(cluster, str):
        use_config_path(take_config_path([])[1])
        files = files_of("cluster")
        if cluster not in files:
            raise ConfigError(
                f"cluster={cluster}: there is no such file under conf/cluster; there are {', '.join(files)}"
            )
        name, values = cluster, OmegaConf.to_container(OmegaConf.load(files[cluster]), resolve=True)
    else:
        name, values = str(cluster.get("name", "given")), {k: v for k, v in cluster.items() if k != "name"}
    if quota is not None and isinstance(values, dict):
        values["allocations"] = [{**entry, "quota": dict(quota)} for entry in values.get("allocations", ())]
    return name, values


def _check(controller: Controller) -> None:
    """Work that can never run raises `ConfigError`."""
    controller.cluster.check()
    live = controller.cluster.limits(controller.folder.owns)
    found = never_runs(controller.definition.works, controller.config, live, controller.state)
    if found is not None:
        work, why = found
        raise ConfigError(f"work {work.name} ({work.labels}) can never run: {why}")


def _program_file(folder: SweepFolder) -> Path:
    return folder.path / "functions.pkl"


def _write_program(folder: SweepFolder, works: Sequence[Work]) -> None:
    places = {str(work.arguments.get("function", "")).rpartition(":")[0] for work in works}
    script = next((place for place in places if place.endswith(".py")), None)
    content = {"folder": os.getcwd(), "search": sys.path, "sources": application_sources(script)}
    write_atomically(_program_file(folder), pickle.dumps(content))


def _values(state: SweepState, works: Sequence[Work], folder: SweepFolder) -> list[Any]:
    left = {
        work.name: why_not_done(state.runs[work.name], folder.cluster_dir) or "it never started"
        for work in works
        if not state.runs[work.name].done
    }
    if left:
        raise WorkFailed(left)
    files = [Path(state.runs[work.name].work.folder) / work.result for work in works]
    return [json.loads(file.read_text())["value"] for file in files]


def call(folder: str, attempt: int, function: str, arguments: Mapping[str, Any], program: str) -> int:
    """The entry of a function's work: calls it, and keeps what it returns, of several tasks that of the first."""
    content = pickle.loads(Path(program).read_bytes())
    os.chdir(content["folder"])
    sys.path[:0] = [path for path in content["search"] if path not in sys.path]
    sys.meta_path.insert(0, SourceFinder(content["sources"]))
    place, _, name = function.rpartition(":")
    module = _script(place, content["sources"]) if place.endswith(".py") else importlib.import_module(place)
    value = getattr(module, name)(**arguments)
    if os.environ[TASK_RANK] == "0":
        try:
            text = json.dumps({"value": value})
        except (TypeError, ValueError) as error:
            raise TypeError(
                f"{name} returned what JSON cannot hold ({error}): return numbers, text, lists and dicts, and the path "
                "of a file for others"
            ) from None
        write_atomically(Path(folder) / _RESULT, text + "\n")
    return int(ExitCode.FINISHED)


def _script(path: str, sources: Mapping[str, bytes]) -> types.ModuleType:
    module = types.ModuleType(_SCRIPT)
    module.__file__ = path
    sys.modules[_SCRIPT] = module
    text = sources.get(path) or Path(path).read_bytes()
    exec(compile(text, path, "exec", dont_inherit=True), module.__dict__)
    return module
